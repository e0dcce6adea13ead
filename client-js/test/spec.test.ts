/**
 * SPEC.md and README.md say what the code says: states, events, codes, bounds; and each test that they name is there.
 */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { test } from 'node:test';

const read = (path: string) => readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8');
const spec = read('SPEC.md');
const words = (text: string) => new Set([...text.matchAll(/`([a-z_]+)`/g)].map(([, word]) => word!));
/** The first cells of the table that follows a head. */
const cells = (head: string) => {
  const table = spec.slice(spec.indexOf(`| ${head} |`)).split('\n\n')[0]!;
  return words(table.split('\n').slice(2).map((row) => row.split('|')[1]).join());
};
/** The names of a union's members in a source. */
const union = (source: string, type: string) => {
  const text = read(source);
  const from = text.indexOf(`export type ${type} =`);
  return new Set([...text.slice(from, text.indexOf(';\n\nexport', from)).matchAll(/readonly name: '([a-z_]+)'/g)].map(([, name]) => name!));
};

test('the states and events of the machine are those of SPEC.md', () => {
  assert.deepEqual([...cells('state')].sort(), [...union('src/machine.ts', 'State')].sort());
  assert.deepEqual([...cells('event')].sort(), [...union('src/machine.ts', 'Event')].sort());
  assert.ok(cells('state').size === 8 && cells('event').size === 15);
});

test('the codes of the SDK are all in README.md', () => {
  const source = read('src/errors.ts');
  const own = source.slice(source.indexOf('export type OwnCode')).split(';')[0]!;
  const named = words(read('README.md'));
  for (const [, code] of own.matchAll(/'([a-z_]+)'/g)) assert.ok(named.has(code!), code);
});

test('the codes of the gateway are those of the protocol\'s page', () => {
  const page = readFileSync(new URL('../../../docs/protocol.md', import.meta.url), 'utf8');
  const source = read('src/errors.ts');
  const known = new Set([...source.slice(0, source.indexOf('Codes of the SDK itself')).matchAll(/'([a-z_]+)'/g)].map(([, code]) => code));
  const errors = [...page.slice(page.indexOf('## Error codes'), page.indexOf('## Close codes')).matchAll(/^\| `([a-z_]+)` \| \d/gm)];
  const closes = [...page.slice(page.indexOf('## Close codes')).matchAll(/^\| (\d{4}) \| `([a-z_]+)`/gm)];
  assert.ok(errors.length > 25 && closes.length > 12);
  for (const [, code] of errors) assert.ok(known.has(code), code);
  const transport = read('src/transport/transport.ts');
  for (const [, number, word] of closes) {
    assert.ok(known.has(word), word);
    assert.ok(transport.includes(`${number}: '${word}'`), `${number} ${word}`);
    if (Number(number) >= 4500) assert.match(transport, new RegExp(`FINAL_WORDS = .*'${word}'`));
  }
});

test('every source and every test that SPEC.md names is there, and every source has its header', () => {
  for (const [, file] of spec.matchAll(/`((?:src\/|transport\/)?[a-z-]+(?:\.test)?\.ts)`/g)) {
    const paths = file!.includes('.test.') ? [`test/${file}`] : [file!, `src/${file}`];
    assert.ok(paths.some((path) => existsSync(new URL(`../../${path}`, import.meta.url))), file);
  }
  const root = new URL('../../src/', import.meta.url);
  const sources = readdirSync(root).concat(readdirSync(new URL('transport/', root)).map((name) => `transport/${name}`)).filter((name) => name.endsWith('.ts'));
  for (const name of sources) {
    const head = read(`src/${name}`).split('*/')[0]!.replace(/\s*\* ?/g, ' ');
    for (const part of [' Does:', ' Owns']) assert.ok(head.includes(part), `${name}: ${part}`);
    assert.match(head, /[Nn]ever knows|Owns, knows/, name);
  }
});
