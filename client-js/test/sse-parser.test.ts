/**
 * The reader of event streams: any division of a stream into chunks gives the same blocks, and nothing makes it hang.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Block, sseParser } from '../src/transport/sse-parser.js';
import { decode } from '../src/wire.js';
import { chance } from './support/world.js';

function blocks(chunks: string[]): Block[] {
  const found: Block[] = [];
  const feed = sseParser((block) => found.push(block));
  chunks.forEach(feed);
  return found;
}

const cases: [string, string, Block[]][] = [
  ['a block', 'id: 0.e:1\nevent: update\ndata: {"a":1}\n\n', [{ id: '0.e:1', data: '{"a":1}' }]],
  ['lines of data are joined', 'data: a\ndata: b\n\n', [{ data: 'a\nb' }]],
  ['one space only is left out', 'data:  a\ndata:b\n\n', [{ data: ' a\nb' }]],
  ['an id alone, and an empty one', 'id: 7\n\nid\n\nid:\n\n', [{ id: '7' }, { id: '' }, { id: '' }]],
  ['comments, other fields and empty blocks are nothing', ': hi\n\nretry: 5\nevent: x\n\n\n\n', []],
  ['ends of lines of all kinds', 'data: a\r\n\r\ndata: b\r\rdata: c\n\n', [{ data: 'a' }, { data: 'b' }, { data: 'c' }]],
  ['an unfinished block is nothing', 'data: a\n', []],
  ['an id with a null is none', 'id: a\0b\ndata: x\n\n', [{ data: 'x' }]],
];

for (const [what, text, expected] of cases) {
  test(`${what}, however it is divided`, () => {
    assert.deepEqual(blocks([text]), expected);
    assert.deepEqual(blocks([...text]), expected);
    for (let seed = 1; seed <= 50; seed += 1) {
      const { below } = chance(seed);
      const chunks: string[] = [];
      for (let at = 0; at < text.length;) {
        const size = below(4);
        chunks.push(text.slice(at, at + size));
        at += size;
      }
      assert.deepEqual(blocks(chunks), expected, JSON.stringify(chunks));
    }
  });
}

test('an event that does not end is refused', () => {
  const feed = sseParser(() => {});
  const chunk = 'x'.repeat(1024 * 1024);
  assert.throws(() => { for (let i = 0; i < 40; i += 1) feed(chunk); }, { code: 'bad_answer' });
});

test('any text is a message, nothing, or a typed error', () => {
  const good = ['{"op":"update","channel":"a/b","position":"0.e:1","ts":0,"row":"x","data":1}', '{"id":1,"ok":{}}',
    '{"op":"snapshot","channel":"a/b","part":0,"rows":{"x":{"ts":0,"data":1}},"position":"0.e:1"}'];
  for (let seed = 1; seed <= 3_000; seed += 1) {
    const { below, pick } = chance(seed);
    const letters = [...pick(good)];
    for (let n = below(4); n >= 0; n -= 1) letters.splice(below(letters.length), below(3), pick(['"', '{', '}', '[', ',', ':', '5', 'null', '\\', '-1e999']));
    try {
      const message = decode(letters.join(''));
      assert.ok(message === null || typeof message === 'object');
    } catch (error) {
      assert.equal((error as { code?: string }).code, 'bad_answer', letters.join(''));
    }
  }
});
