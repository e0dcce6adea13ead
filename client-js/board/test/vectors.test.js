/**
 * The shared vectors: what any client must hold after the messages of `tests/vectors/behaviour.json`. The board shows
 * views, so it runs those; clients of events run the others.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { Channel, Link, ProtocolError, parseToken } from '../state.js';

const read = (name) => JSON.parse(readFileSync(new URL(`../../../tests/vectors/${name}.json`, import.meta.url), 'utf8'));

/** One client that does what `tide.js` does, without a socket. */
class Client {
  link = new Link();
  restart = false;

  constructor(name) {
    this.channel = new Channel(name);
  }

  connect(now) {
    this.link.begin(now);
    this.channel.reset();
  }

  cut(now) {
    this.link.end(now, now);
    this.channel.reset();
  }

  receive(message, now) {
    try {
      if (message.op === 'hello') this.link.hello(message);
      else if (message.ok) this.channel.outcome(message.ok, now);
      else if (message.error && !message.op) this.channel.refuse(message.error);
      else this.channel.receive(message, this.link, now);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.restart = true;
      this.cut(now);
    }
  }

  /** What a vector may expect. */
  holds(now) {
    return {
      rows: Object.fromEntries([...this.channel.rows].map(([row, { data }]) => [row, data])),
      token: this.channel.token,
      live: this.channel.freshness(this.link, now).state === 'live',
      restart: this.restart,
    };
  }
}

const views = read('behaviour').vectors.filter(({ mode }) => mode === 'view');

test('there are vectors', () => assert.ok(views.length >= 30));

for (const { name, channel, steps } of views) {
  test(`vector: ${name}`, () => {
    const client = new Client(channel);
    for (const step of steps) {
      if (step.do) client[step.do](step.at);
      if (step.receive) client.receive(step.receive, step.at);
      if (step.expect) {
        assert.deepEqual(client.holds(step.at), { restart: false, ...step.expect }, `at ${step.at}`);
      }
    }
  });
}

test('tokens that are good are read', () => {
  const { good, large } = read('tokens');
  for (const { text } of [...good, ...large]) assert.equal(parseToken(text).length, text.split(',').length);
});
