/**
 * The shared vectors: what every client must hold, and what every reader of tokens and messages must take and refuse.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { Channel, type EventItem } from '../src/channel.js';
import { TidegateError } from '../src/errors.js';
import { formatToken, parseToken } from '../src/position.js';
import { decode, refusalOf } from '../src/wire.js';

const read = (name: string) => JSON.parse(readFileSync(new URL(`../../../tests/vectors/${name}.json`, import.meta.url), 'utf8'));

interface Step { at: number; do?: 'connect' | 'cut'; receive?: object; expect?: Record<string, unknown> }

/** One client that does what a connection does, without one. */
class Holder {
  events: unknown[] = [];
  restart = false;
  begun = 0;
  channel: Channel;

  constructor(name: string, readonly mode: 'view' | 'events') {
    const event = (item: EventItem) => this.events.push(item.type === 'gap' ? { gap: [item.from, item.to] } : item.data);
    this.channel = new Channel(name, mode, {}, { event });
  }

  connect(now: number) {
    this.channel.cut('network', false, now);
    this.begun = now;
  }

  cut(now: number) {
    this.channel.cut('network', false, now);
  }

  receive(given: object, now: number) {
    try {
      const message = decode(JSON.stringify(given));
      if (!message || message.op === 'pong' || message.op === 'bye') return;
      if (message.op === 'hello') {
        this.channel.greet({ offset: this.begun - message.now_ms, liveForMs: message.live_for_ms });
        this.channel.ask(now);
      } else if (message.op === undefined || message.op === 'outcome') {
        const outcome = message.op ? message.outcome : message.ok?.['outcome'];
        if (message.error) this.channel.refuse(refusalOf(message.error), now);
        else this.channel.answer(String(outcome), now);
      } else {
        this.channel.receive(message, now);
      }
    } catch (error) {
      assert.ok(error instanceof TidegateError, String(error));
      this.restart = true;
      this.cut(now);
    }
  }

  /** What a vector may expect. */
  holds(now: number) {
    const held = this.mode === 'view' ? { rows: Object.fromEntries(this.channel.rows.data) } : { events: this.events };
    return { ...held, token: this.channel.token, live: this.channel.freshness(now).state === 'live', restart: this.restart };
  }
}

const vectors: { name: string; mode: 'view' | 'events'; channel: string; steps: Step[] }[] = read('behaviour').vectors;
test('there are vectors', () => assert.ok(vectors.length >= 42));

for (const { name, mode, channel, steps } of vectors) {
  test(`vector: ${name}`, () => {
    const holder = new Holder(channel, mode);
    for (const step of steps) {
      if (step.do) holder[step.do](step.at);
      if (step.receive) holder.receive(step.receive, step.at);
      if (step.expect) assert.deepEqual(holder.holds(step.at), { restart: false, ...step.expect }, `at ${step.at}`);
    }
  });
}

test('tokens: good ones are read and written, bad ones refused', () => {
  const { good, bad, large } = read('tokens');
  for (const { text, canonical } of [...good, ...large]) assert.equal(formatToken(parseToken(text)), canonical ?? text);
  for (const { text, why } of bad) assert.throws(() => parseToken(text), { code: 'bad_answer' }, why);
});

test('every message of the gateway is read', () => {
  const { vectors } = read('server');
  assert.ok(vectors.length > 20);
  for (const { name, json } of vectors) assert.deepEqual(decode(json), JSON.parse(json), name);
});
