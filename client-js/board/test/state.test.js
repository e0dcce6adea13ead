import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Channel, Link, ProtocolError, backoff, compareOffsets, mayReconnect, parseToken } from '../state.js';

const NAME = 'departures/JFK';

/** A client whose handshake began at 1,000 of our clock, when the node's clock said 500,000. */
function client({ outcome = 'snapshot', begunAt = 1_000 } = {}) {
  const link = new Link();
  const channel = new Channel(NAME);
  link.begin(begunAt);
  link.hello({ op: 'hello', now_ms: 500_000, heartbeat_ms: 25_000, live_for_ms: 30_000 });
  channel.outcome({ outcome, reason: 'new' }, begunAt);
  const say = (message, now = begunAt) => channel.receive({ channel: NAME, ...message }, link, now);
  const rows = () => Object.fromEntries([...channel.rows].map(([row, { data }]) => [row, data]));
  const state = (now) => channel.freshness(link, now).state;
  return { link, channel, say, rows, state };
}
const snapshot = (position, rows, more = {}) => ({
  op: 'snapshot', position, ...more,
  rows: Object.fromEntries(Object.entries(rows).map(([row, data]) => [row, { ts: 0, data }])),
});
const update = (position, row, data) => ({ op: 'update', position, row, ts: 0, data });
const deleted = (position, row) => ({ op: 'update', position, row, deleted: true });
const heartbeat = (position, proved_at_ms) => ({ op: 'heartbeat', position, proved_at_ms });

test('a snapshot, an update, a deleted row', () => {
  const { channel, say, rows } = client();
  say(snapshot('0.a:7', { x: 1, y: 2 }));
  say(update('0.a:9', 'x', 3));
  say(deleted('0.a:12', 'y'));
  assert.deepEqual(rows(), { x: 3 });
  assert.equal(channel.token, '0.a:12');
});

test('a snapshot in parts is shown only whole', () => {
  const { channel, say, rows, state } = client();
  say(snapshot(undefined, { x: 1 }, { part: 0, more: true }));
  say(snapshot(undefined, { y: 2 }, { part: 1, more: true }));
  assert.deepEqual(rows(), {});
  assert.equal(channel.token, '');
  assert.equal(state(1_000), 'catching_up');
  say(snapshot('0.a:7', { z: 3 }, { part: 2 }));
  assert.deepEqual(rows(), { x: 1, y: 2, z: 3 });
  assert.equal(channel.token, '0.a:7');
});

test('part 0 discards an unfinished snapshot', () => {
  const { say, rows } = client();
  say(snapshot(undefined, { x: 1 }, { part: 0, more: true }));
  say(snapshot(undefined, { y: 2 }, { part: 0, more: true }));
  say(snapshot('0.a:7', { z: 3 }, { part: 1 }));
  assert.deepEqual(rows(), { y: 2, z: 3 });
});

test('a cut in mid-snapshot keeps the old rows with the old token', () => {
  const { channel, link, say, rows } = client();
  say(snapshot('0.a:7', { x: 1 }));
  say(snapshot(undefined, { x: 9 }, { part: 0, more: true }));
  channel.reset();
  link.end(2_000, 2_100);
  assert.deepEqual(rows(), { x: 1 });
  assert.equal(channel.token, '0.a:7');
  assert.throws(() => say(snapshot('0.a:9', { y: 2 }, { part: 1 })), ProtocolError);
  assert.deepEqual(rows(), { x: 1 });
});

test('a part out of turn breaks the protocol and forgets the token', () => {
  const { channel, say } = client();
  say(snapshot('0.a:7', { x: 1 }));
  say(snapshot(undefined, {}, { part: 0, more: true }));
  assert.throws(() => say(snapshot('0.a:9', {}, { part: 2 })), ProtocolError);
  assert.equal(channel.token, '');
});

test('duplicates are ignored, per row, partition and epoch', () => {
  const { channel, say, rows } = client();
  say(snapshot('0.a:7', { x: 1 }));
  say(update('0.a:7', 'x', 'at the snapshot'));
  say(update('0.a:10', 'x', 2));
  say(update('0.a:10', 'x', 'again'));
  say(update('0.a:9', 'x', 'older'));
  assert.deepEqual(rows(), { x: 2 });
  assert.equal(channel.updates, 1);
  say(update('0.b:1', 'x', 'another epoch'));
  assert.deepEqual(rows(), { x: 'another epoch' });
});

test('a duplicate does not bring a deleted row back', () => {
  const { say, rows } = client();
  say(snapshot('0.a:7', { x: 1 }));
  say(deleted('0.a:9', 'x'));
  say(update('0.a:8', 'x', 'older'));
  assert.deepEqual(rows(), {});
  say(update('0.a:10', 'x', 'new'));
  assert.deepEqual(rows(), { x: 'new' });
});

test('a snapshot resets the guard, also to an older position', () => {
  const { channel, say, rows } = client();
  say(snapshot('0.a:70', { x: 1 }));
  say(deleted('0.a:90', 'x'));
  say(snapshot('0.a:20', { y: 2 }));
  say(update('0.a:21', 'x', 3));
  assert.deepEqual(rows(), { x: 3, y: 2 });
  assert.equal(channel.token, '0.a:21');
});

test('a token names the newest position of each partition', () => {
  const { channel, say, rows } = client();
  say(snapshot('0.a:7', { x: 1 }));
  say(snapshot('1.b:3', { y: 2 }));
  say(update('1.b:5', 'y', 3));
  say(update('0.a:6', 'x', 'older than the snapshot'));
  say(heartbeat('0.a:11,1.b:4', 500_000));
  assert.deepEqual(rows(), { x: 1, y: 3 });
  assert.equal(channel.token, '0.a:11,1.b:5');
});

test('a snapshot replaces the rows of exactly the partitions that it names', () => {
  const { say, rows } = client();
  say(snapshot('0.a:7', { x: 1 }));
  say(snapshot('1.b:3', { y: 2, gone: 0 }));
  say(snapshot('1.c:1', { z: 3 }));
  assert.deepEqual(rows(), { x: 1, z: 3 });
});

test('of a row the newest partition is right that has said anything of it', () => {
  const { channel, say, rows } = client();
  say(snapshot('1.a:7', { x: 1, y: 2, z: 3 }));
  say({ op: 'snapshot', position: '3.b:2', rows: { x: { ts: 0, data: 4 }, y: { ts: 0, deleted: true } } });
  assert.deepEqual(rows(), { x: 4, z: 3 });
  // Who still writes where the channel was before is late.
  say(update('1.a:8', 'x', 5));
  say(update('1.a:9', 'y', 5));
  say(update('1.a:10', 'z', 6));
  assert.deepEqual(rows(), { x: 4, z: 6 });
  say(deleted('3.b:3', 'z'));
  say(update('3.b:4', 'y', 7));
  assert.deepEqual(rows(), { x: 4, y: 7 });
  say(snapshot('1.a:11', { z: 8 }));
  assert.deepEqual(rows(), { x: 4, y: 7 });
  // Another log: what it hid before is there again.
  say(snapshot('3.c:1', {}));
  assert.deepEqual(rows(), { z: 8 });
  assert.equal(channel.token, '1.a:11,3.c:1');
});

test('a gap in a view asks for a snapshot', () => {
  const { channel, say } = client();
  say(snapshot('0.a:7', { x: 1 }));
  assert.throws(() => say({ op: 'gap', from: '0.a:7', to: '0.a:9', reason: 'slow_consumer' }), ProtocolError);
  assert.equal(channel.token, '');
});

test('only a proof renews live, and live ends with its lease', () => {
  const { say, state } = client();
  say(snapshot('0.a:7', { x: 1 }), 1_050);
  assert.equal(state(1_050), 'catching_up');
  say(heartbeat('0.a:7', 500_100), 1_200);
  assert.equal(state(1_200), 'live');
  say(update('0.a:8', 'x', 2), 20_000);
  say({ op: 'freshness', state: 'live', age_ms: 0 }, 20_000);
  assert.equal(state(31_099), 'live');
  assert.equal(state(31_100), 'stale');
  say(heartbeat('0.a:9', 530_000), 31_200);
  assert.equal(state(31_200), 'live');
});

test('a proof that waited in a socket renews no more than it should', () => {
  const { channel, link, say, state } = client();
  say(snapshot('0.a:7', {}));
  say(heartbeat('0.a:7', 500_000), 25_000);
  assert.deepEqual(channel.freshness(link, 25_000), { state: 'live', reason: null, message: null, ageMs: 24_000 });
  assert.equal(state(31_000), 'stale');
});

test('a heartbeat without a proof, or with one from the future, promises nothing more', () => {
  const { say, state } = client();
  say(snapshot('0.a:7', {}));
  say({ op: 'heartbeat', position: '0.a:8' }, 2_000);
  assert.equal(state(2_000), 'catching_up');
  say(heartbeat('0.a:8', 900_000), 2_000);
  assert.equal(state(31_999), 'live');
  assert.equal(state(32_000), 'stale');
});

test('stale, with its age counting, then live by a newer proof', () => {
  const { channel, link, say, state } = client();
  say(snapshot('0.a:7', {}));
  say(heartbeat('0.a:7', 500_500), 1_600);
  say({ op: 'freshness', state: 'stale', reason: 'paused', age_ms: 5_100 }, 6_700);
  assert.deepEqual(channel.freshness(link, 7_700), { state: 'stale', reason: 'paused', message: null, ageMs: 6_100 });
  say(heartbeat('0.a:7', 500_500), 8_000);
  assert.equal(state(8_000), 'stale', 'the proof that the bad news overtook');
  say(heartbeat('0.a:8', 509_000), 10_200);
  assert.equal(state(10_200), 'live');
});

test('unavailable until the first proof', () => {
  const { channel, link, say, state } = client();
  say({ op: 'freshness', state: 'unavailable', reason: 'source_unavailable' }, 1_100);
  assert.deepEqual(channel.freshness(link, 9_000),
    { state: 'unavailable', reason: 'source_unavailable', message: null, ageMs: null });
  say(snapshot('0.a:7', {}), 9_100);
  say(heartbeat('0.a:7', 508_000), 9_200);
  assert.equal(state(9_200), 'live');
});

test('a lost connection is stale at once, its rows stay, and a resumed one waits for a proof', () => {
  const { channel, link, say, rows, state } = client();
  say(snapshot('0.a:7', { x: 1 }));
  say(heartbeat('0.a:7', 500_100), 1_200);
  link.end(2_000, 2_500);
  channel.reset();
  assert.equal(channel.freshness(link, 3_000).reason, 'disconnected');
  assert.equal(channel.freshness(link, 3_100).ageMs, 2_000);
  link.begin(3_000);
  link.hello({ now_ms: 77, heartbeat_ms: 25_000, live_for_ms: 30_000 });
  channel.outcome({ outcome: 'resumed' }, 3_050);
  assert.equal(channel.freshness(link, 3_100).reason, 'awaiting_proof');
  assert.deepEqual(rows(), { x: 1 });
  say(heartbeat('0.a:7', 100), 3_200);
  assert.equal(state(3_200), 'live');
});

test('without a proof, waiting ends', () => {
  const { channel, link } = client({ outcome: 'resumed' });
  assert.equal(channel.freshness(link, 30_999).state, 'catching_up');
  assert.deepEqual(channel.freshness(link, 31_000), { state: 'stale', reason: 'lapsed', message: null, ageMs: null });
});

test('catching up, refused, closed for good', () => {
  const { channel, link, state } = client({ outcome: 'catching_up' });
  assert.equal(state(1_000), 'catching_up');
  channel.refuse({ code: 'forbidden', message: 'not yours' });
  assert.equal(channel.freshness(link, 1_000).reason, 'forbidden');
  channel.outcome({ op: 'outcome', error: { code: 'ahead', message: 'not so far yet', retry_after_ms: 500 } }, 1_500);
  assert.deepEqual(channel.freshness(link, 1_500),
    { state: 'unavailable', reason: 'ahead', message: 'not so far yet', ageMs: null });
  link.end(2_000, null, 'go away');
  assert.deepEqual(channel.freshness(link, 2_000),
    { state: 'unavailable', reason: 'closed', message: 'go away', ageMs: null });
});

test('nothing yet is connecting', () => {
  const link = new Link();
  link.begin(0);
  assert.equal(new Channel(NAME).freshness(link, 10).state, 'connecting');
  assert.throws(() => link.hello({ op: 'hello', now_ms: 1 }), ProtocolError);
});

test('offsets compare as numbers of any length, and as pairs', () => {
  const order = [
    ['9', '10', -1], ['007', '7', 0], ['18446744073709551616', '18446744073709551615', 1], ['5-9', '5-10', -1],
    ['6-0', '5-99', 1], ['5-0', '5', 0], [`1${'0'.repeat(128)}`, '9'.repeat(128), 1],
  ];
  for (const [a, b, expected] of order) {
    assert.equal(Math.sign(compareOffsets(a, b)), expected, `${a} ${b}`);
    assert.equal(Math.sign(compareOffsets(b, a)), -expected || 0, `${b} ${a}`);
  }
});

test('what is no token is refused', () => {
  for (const text of ['', '0', '0.a', '0.a:', '.a:1', '0.a:-1', '0.a:1,', '0.a b:1', undefined, null, {}]) {
    assert.throws(() => parseToken(text), ProtocolError, String(text));
  }
});

test('codes and waits of reconnecting', () => {
  assert.deepEqual([1000, 1006, 1012, 4000, 4499, 4500, 4999].map(mayReconnect),
    [true, true, true, true, true, false, false]);
  assert.equal(backoff(0, 0.5), 250);
  assert.equal(backoff(3, 0.999), 3_996);
  assert.equal(backoff(1_000, 0.5), 15_000);
  assert.equal(backoff(5, 0), 0);
});
