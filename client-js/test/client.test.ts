/**
 * The client against gateways, proxies and pages that behave badly, in a world without time: each ends in a typed error
 * or a documented fallback, and the view is marked.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Client, type ConnectOptions, connect } from '../src/client.js';
import type { EventItem } from '../src/channel.js';
import { FakeGateway, json, problem } from './support/gateway.js';
import { type FakeSocket, World, chance, eventStream, settle } from './support/world.js';

const JFK = 'departures/JFK';
/** Each test has an address of its own: what worked at one is remembered for it. */
let addresses = 0;

function setup(options: ConnectOptions = {}, names: Record<string, number> = { [JFK]: 1, 'departures/LGA': 1 }) {
  const world = new World();
  const gateway = new FakeGateway(world, names);
  // The plainest of what it may do.
  gateway.pick = (of) => of - 1;
  addresses += 1;
  const client = connect(`https://gateway-${addresses}.example`, { platform: world.platform, ...options });
  const errors: string[] = [];
  client.onError((error) => errors.push(error.code));
  const deliver = async () => {
    await settle();
    for (let i = 0; i < 4; i += 1) {
      for (const session of gateway.sessions) session.pump();
      await settle();
    }
  };
  /** Lets time go by, everything being delivered, and a heartbeat each second. */
  const run = async (ms: number) => {
    for (let gone = 0; gone < ms; gone += 1_000) {
      await world.pass(Math.min(1_000, ms - gone));
      for (const session of gateway.sessions) gateway.heartbeat(session);
      await deliver();
    }
  };
  const socket = () => world.sockets.at(-1)!;
  return { world, gateway, client, errors, deliver, run, socket };
}

const bad: Record<string, unknown> = {
  'no JSON': 'how do you do', 'half a message': '{"op":"update","chan', 'a number': '5', 'nothing': '""', 'null': 'null',
  'an update without data': { op: 'update', channel: JFK, position: '0.e1:9', ts: 0, row: 'x' },
  'a position that is none': { op: 'update', channel: JFK, position: 'soon', ts: 0, row: 'x', data: 1 },
  'a snapshot without rows': { op: 'snapshot', channel: JFK, part: 0, position: '0.e1:9' },
  'rows that are none': { op: 'snapshot', channel: JFK, part: 0, rows: { x: 5 }, position: '0.e1:9' },
  'a part out of turn': { op: 'snapshot', channel: JFK, part: 7, rows: {}, position: '0.e1:9' },
  'a gap in a view': { op: 'gap', channel: JFK, from: '0.e1:1', to: '0.e1:5', reason: 'too_old' },
  'a time that is none': '{"op":"heartbeat","channel":"departures/JFK","proved_at_ms":"soon"}',
  'an outcome that is none': { op: 'outcome', channel: JFK, outcome: 'constructor' },
  'an answer that is none': { id: 77 },
  'a second hello': { op: 'hello', now_ms: 0, heartbeat_ms: 1, live_for_ms: 1 },
};

for (const [what, said] of Object.entries(bad)) {
  test(`garbage, ${what}: a typed error, the rows stay and are marked, and it begins again`, async () => {
    const { gateway, client, errors, deliver, run, socket } = setup();
    gateway.publish(JFK, 'a', 1);
    const view = client.view<number>(JFK);
    await deliver();
    assert.equal(view.freshness.state, 'live');
    socket().say(said);
    await settle();
    assert.deepEqual(errors, ['bad_answer']);
    assert.deepEqual([view.freshness.state, view.freshness.reason, view.get('a')], ['stale', 'bad_answer', 1]);
    await run(2_000);
    assert.equal(view.freshness.state, 'live');
    client.close();
  });
}

test('what a newer gateway says besides is ignored', async () => {
  const { gateway, client, errors, deliver, socket } = setup();
  gateway.publish(JFK, 'a', 1);
  const view = client.view(JFK);
  await deliver();
  for (const said of [{ op: 'weather', sun: true }, { op: 'constructor' }, { op: 'pong', also: 1 },
    { op: 'update', channel: 'departures/XYZ', position: '0.e9:1', ts: 0, row: 'x', data: 1 }, { id: 99, ok: {} }]) socket().say(said);
  await settle();
  assert.deepEqual([errors, view.freshness.state], [[], 'live']);
  client.close();
});

test('a protocol that it does not know: an error, and the next transport', async () => {
  const { world, gateway, client, errors, deliver, run } = setup();
  world.onSocket = (socket) => world.platform.setTimer(() => { socket.open(); socket.say({ op: 'hello', version: 2 }); }, 1);
  gateway.publish(JFK, 'a', 1);
  const view = client.view(JFK);
  await world.pass(100);
  assert.deepEqual([errors, view.freshness.state, view.freshness.reason], [['bad_answer'], 'connecting', 'bad_answer']);
  await run(2_000);
  await deliver();
  assert.deepEqual([client.transport, view.freshness.state], ['sse', 'live']);
  client.close();
});

test('positions that go back change nothing', async () => {
  const { gateway, client, deliver, socket } = setup();
  for (let n = 1; n < 5; n += 1) gateway.publish(JFK, 'a', n);
  const view = client.view(JFK);
  await deliver();
  socket().say({ op: 'update', channel: JFK, position: '0.e1:2', ts: 0, row: 'a', data: 'old' });
  await settle();
  assert.equal(view.get('a'), 4);
  client.close();
});

test('a snapshot that never ends: loading, then given up and begun again', async () => {
  const { world, client, errors, socket } = setup();
  world.onSocket = (socket) => {
    socket.open();
    socket.heard = ({ id, op, channel }) => {
      if (op !== 'subscribe') return;
      socket.say({ id, ok: { outcome: 'snapshot', reason: 'new' } });
      socket.say({ op: 'snapshot', channel, part: 0, rows: { a: { ts: 0, data: 1 } }, more: true });
    };
    world.platform.setTimer(() => socket.say({ op: 'hello', now_ms: 0, heartbeat_ms: 25_000, live_for_ms: 30_000 }), 1);
  };
  const view = client.view(JFK);
  await world.pass(50);
  assert.deepEqual([view.freshness.state, view.freshness.reason, view.rows.size], ['catching_up', 'loading', 0]);
  for (let i = 0; i < 70; i += 1) { await world.pass(1_000); socket().say({ op: 'pong' }); }
  assert.ok(errors.includes('silent'), String(errors));
  assert.ok(world.sockets.length > 1);
  client.close();
});

test('a subscription that is never answered is given up', async () => {
  const { world, client, errors, socket } = setup();
  world.onSocket = (socket) => {
    socket.open();
    world.platform.setTimer(() => socket.say({ op: 'hello', now_ms: 0, heartbeat_ms: 25_000, live_for_ms: 30_000 }), 1);
  };
  client.view(JFK);
  for (let i = 0; i < 32; i += 1) { await world.pass(1_000); socket().say({ op: 'pong' }); }
  assert.deepEqual(errors, ['silent']);
  client.close();
});

test('a token\'s provider that throws, gives nothing, or never answers', async () => {
  for (const [token, code] of [
    [() => { throw new Error('no'); }, 'token_failed'], [() => '' , 'token_failed'],
    [async () => Promise.reject(new Error('no')), 'token_failed'], [() => new Promise<string>(() => {}), 'token_timeout'],
  ] as const) {
    const { world, client, errors } = setup({ token, tokenTimeoutMs: 700 });
    const view = client.view(JFK);
    await world.pass(900);
    assert.equal(errors[0], code);
    assert.deepEqual([view.freshness.state, view.freshness.reason], ['connecting', code]);
    await world.pass(60_000);
    assert.ok(errors.length > 2 && errors.length < 100, 'it is tried again, not without pause');
    assert.equal(world.sockets.length, 0);
    client.close();
    assert.equal(world.timers, 0);
  }
});

test('no WebSocket: event streams; none of the transports: an error at once', async () => {
  const { gateway, client, run } = setup({ platform: undefined as never });
  client.close();
  const world = new World();
  const other = new FakeGateway(world, { [JFK]: 1 });
  other.pick = (of) => of - 1;
  const without = new Client('https://no-sockets.example', { platform: { ...world.platform, WebSocket: undefined } });
  const view = without.view(JFK);
  for (let i = 0; i < 4; i += 1) { await settle(); for (const session of other.sessions) session.pump(); await settle(); }
  assert.deepEqual([without.transport, view.freshness.state], ['sse', 'live']);
  without.close();
  assert.throws(() => new Client('https://a.example', { transports: ['ws'], platform: { ...world.platform, WebSocket: undefined } }), { code: 'unsupported' });
  assert.throws(() => connect('ftp://a.example'), { code: 'bad_request' });
  assert.ok(gateway && run);
});

test('a WebSocket that may not be made: the next transport', async () => {
  const { gateway, client, run } = setup({}, { [JFK]: 1 });
  client.close();
  const world = gateway.world;
  const forbids = class { constructor() { throw new DOMException('no', 'SecurityError'); } } as never;
  const other = connect('https://policy.example', { platform: { ...world.platform, WebSocket: forbids } });
  const view = other.view(JFK);
  await run(3_000);
  assert.deepEqual([other.transport, view.freshness.state], ['sse', 'live']);
  other.close();
});

test('a proxy that buffers: found by the first byte that does not come; the better one is tried again later', async () => {
  const { gateway, client, run } = setup();
  gateway.blocked.add('ws').add('sse');
  gateway.publish(JFK, 'a', 1);
  const view = client.view(JFK);
  await run(9_000);
  assert.deepEqual([client.transport, view.freshness.state, view.get('a')], ['poll', 'live', 1]);
  gateway.blocked.clear();
  await run(90_000);
  assert.deepEqual([client.transport, view.freshness.state], ['ws', 'live']);
  client.close();
});

test('what worked is remembered by the next client of that address', async () => {
  const world = new World();
  const gateway = new FakeGateway(world, { [JFK]: 1 });
  gateway.pick = (of) => of - 1;
  gateway.blocked.add('ws');
  const go = async (client: Client) => {
    const view = client.view(JFK);
    for (let i = 0; i < 5; i += 1) { await world.pass(500); for (const session of gateway.sessions) session.pump(); await settle(); }
    assert.equal(view.freshness.state, 'live');
    client.close();
  };
  await go(connect('https://remember.example', { platform: world.platform }));
  const sockets = world.sockets.length;
  await go(connect('https://remember.example', { platform: world.platform }));
  assert.equal(world.sockets.length, sockets);
});

const pages: Record<string, [() => Response, string]> = {
  'a proxy\'s 502 with a page': [() => new Response('<html>Bad Gateway</html>', { status: 502 }), 'http'],
  'a portal\'s 200 with a page': [() => new Response('<html>Please sign in</html>', { headers: { 'content-type': 'text/html' } }), 'http'],
  'a firewall\'s 403 with a page': [() => new Response('<html>No</html>', { status: 403 }), 'http'],
  'a 429 that says when': [() => problem(429, 'rate_limited', { 'retry-after': '7' }), 'rate_limited'],
  'a 503': [() => problem(503, 'overloaded'), 'overloaded'],
};
for (const transport of ['sse', 'poll'] as const) {
  for (const [what, [answer, code]] of Object.entries(pages)) {
    test(`over ${transport}, ${what}: ${code}, and tried again`, async () => {
      const { world, gateway, client, errors, run } = setup({ transports: [transport] });
      const answers = world.onRequest;
      world.onRequest = (request) => request.answer(answer());
      const view = client.view(JFK);
      await world.pass(50);
      assert.deepEqual(errors, [code]);
      assert.deepEqual([view.freshness.state, view.freshness.reason], ['connecting', code]);
      assert.equal(client.status.state, 'waiting');
      if (code === 'rate_limited') assert.ok(client.status.retryInMs! > 6_000);
      world.onRequest = answers;
      await run(8_000);
      assert.equal(view.freshness.state, 'live');
      assert.ok(gateway);
      client.close();
    });
  }
}

test('over SSE, half an event, broken UTF-8 and an end: nothing of it counts, and it begins again', async () => {
  const { world, gateway, client, errors, run } = setup({ transports: ['sse'] });
  const answers = world.onRequest;
  world.onRequest = (request) => {
    const stream = eventStream(request.signal);
    request.answer(stream.response);
    stream.write(`data: ${JSON.stringify(gateway.hello())}\n\ndata: {"op":"outcome","channel":"${JFK}","outcome":"snapshot"}\n\ndata: {"op":"snapsho`);
    stream.write(new Uint8Array([0xff, 0xfe]));
    stream.end();
    world.onRequest = answers;
  };
  gateway.publish(JFK, 'a', 1);
  const view = client.view(JFK);
  await settle();
  await settle();
  assert.deepEqual([errors, view.rows.size], [['network'], 0]);
  await run(2_000);
  assert.deepEqual([view.get('a'), view.freshness.state], [1, 'live']);
  client.close();
});

test('over SSE, what follows garbage in the same piece is not heard', async () => {
  const { world, gateway, client, errors } = setup({ transports: ['sse'] });
  world.onRequest = (request) => {
    const stream = eventStream(request.signal);
    request.answer(stream.response);
    stream.write(`data: ${JSON.stringify(gateway.hello())}\n\ndata: nonsense\n\ndata: {"op":"bye","code":"closed"}\n\n`);
  };
  client.view(JFK);
  await settle();
  await settle();
  assert.deepEqual([errors, client.status.state], [['bad_answer'], 'waiting']);
  client.close();
});

test('over SSE, what a request that was left still says changes nothing', async () => {
  const { world, gateway, client } = setup({ transports: ['sse'] });
  const streams: ReturnType<typeof eventStream>[] = [];
  world.onRequest = (request) => {
    // A body that goes on after the request was aborted.
    const stream = eventStream();
    streams.push(stream);
    request.answer(stream.response);
    const say = (message: object) => stream.write(`data: ${JSON.stringify(message)}\n\n`);
    say(gateway.hello());
    for (const channel of request.url.searchParams.getAll('channel')) {
      say({ op: 'outcome', channel, outcome: 'snapshot', reason: 'new' });
      say({ op: 'snapshot', channel, part: 0, rows: { a: { ts: 0, data: 1 } }, position: '0.e:5' });
    }
  };
  const view = client.view(JFK);
  await settle();
  const other = client.view('departures/LGA');
  await settle();
  assert.deepEqual([streams.length, view.rows.size, other.rows.size], [2, 1, 1]);
  streams[0]!.write(`data: {"op":"update","channel":"${JFK}","position":"0.e:9","ts":0,"row":"stray","data":1}\n\n`);
  await settle();
  assert.deepEqual([...view.rows.keys()], ['a']);
  client.close();
});

test('by long-polling a proof is as old as its request at least', async () => {
  const { world, client } = setup({ transports: ['poll'] });
  const answers = world.onRequest;
  world.onRequest = (request) => void world.platform.setTimer(() => answers(request), 2_000);
  const view = client.view(JFK);
  await world.pass(2_000);
  await settle();
  assert.equal(view.freshness.state, 'live');
  assert.ok(view.freshness.ageMs! >= 2_000, String(view.freshness.ageMs));
  client.close();
});

test('live lapses by itself, and is told', async () => {
  const { world, client, deliver } = setup();
  const view = client.view(JFK);
  await deliver();
  const told: string[] = [];
  view.onFreshness(({ state, reason }) => told.push(`${state} ${reason}`));
  assert.equal(view.freshness.state, 'live');
  world.time += 30_001;
  assert.equal(view.freshness.state, 'stale', 'whether or not a timer ran');
  await world.pass(0);
  assert.deepEqual(told, ['stale lapsed']);
  client.close();
});

test('a time of day that is wrong by an hour changes nothing', async () => {
  for (const wrong of [-3_600_000, 3_600_000]) {
    const { world, client, gateway, run } = setup();
    world.wallOffset += wrong;
    gateway.publish(JFK, 'a', 1);
    const view = client.view(JFK);
    await run(5_000);
    assert.deepEqual([view.freshness.state, view.get('a'), world.sockets.length], ['live', 1, 1]);
    assert.ok(view.freshness.ageMs! < 2_000);
    // Set right while it runs: back changes nothing; forward looks like sleep, which costs a reconnect at most.
    world.wallOffset -= wrong;
    await run(5_000);
    assert.deepEqual([view.freshness.state, view.get('a')], ['live', 1]);
    assert.ok(world.sockets.length <= 2);
    client.close();
  }
});

test('after sleep nothing is live before a new proof', async () => {
  const { world, client, deliver, run } = setup();
  const view = client.view(JFK);
  await deliver();
  assert.equal(view.freshness.state, 'live');
  world.wallOffset += 60_000;
  assert.notEqual(view.freshness.state, 'live');
  await run(2_000);
  assert.equal(view.freshness.state, 'live');
  assert.equal(world.sockets.length, 2);
  client.close();
});

test('offline, frozen and back', async () => {
  const { world, client, run, socket } = setup();
  const view = client.view(JFK);
  await run(1_000);
  world.page('freeze');
  assert.ok(socket().gone, 'a page that may come back has no socket open');
  assert.deepEqual([client.status.state, view.freshness.state], ['held', 'stale']);
  world.page('thaw');
  await run(1_000);
  assert.equal(view.freshness.state, 'live');
  world.page('offline');
  assert.equal(socket().sent.at(-1)!['op'], 'ping', 'a page may be wrong about that');
  socket().cut();
  await world.pass(2_000);
  assert.equal(client.status.state, 'held');
  world.page('online');
  await run(2_000);
  assert.equal(view.freshness.state, 'live');
  client.close();
});

test('bye is obeyed; a final code is not tried again', async () => {
  const { world, client, run, socket } = setup();
  const view = client.view(JFK);
  await run(1_000);
  socket().say({ op: 'bye', code: 'draining', reconnect_after_ms: 3_120 });
  await settle();
  assert.deepEqual([view.freshness.state, view.freshness.reason, client.status.retryInMs], ['stale', 'draining', 3_120]);
  await world.pass(3_000);
  assert.equal(world.sockets.length, 1);
  await run(1_000);
  assert.deepEqual([world.sockets.length, view.freshness.state], [2, 'live']);
  socket().cut(4502, 'closed');
  await world.pass(100_000);
  assert.deepEqual([world.sockets.length, view.freshness.state, view.freshness.reason, client.status.state], [2, 'unavailable', 'closed', 'closed']);
  client.close();
});

test('a token: first message of the socket; refreshed in place; refused in place changes nothing', async () => {
  let token = 'one';
  const { gateway, client, errors, run, socket, world } = setup({ token: () => token });
  gateway.token = 'one';
  const view = client.view(JFK);
  await run(1_000);
  assert.deepEqual(socket().sent.map(({ op }) => op), ['auth', 'subscribe']);
  assert.ok(!socket().url.includes('one'));
  assert.equal(view.freshness.state, 'live');
  token = gateway.token = 'two';
  await client.refreshToken();
  await run(1_000);
  assert.deepEqual([socket().sent.at(-1), world.sockets.length], [{ id: 3, op: 'auth', token: 'two' }, 1]);
  token = 'bad';
  await client.refreshToken();
  await run(1_000);
  assert.deepEqual([errors, view.freshness.state], [['unauthorized'], 'live']);
  client.close();
});

test('a JWT is refreshed before its time is over, whatever the time of day says', async () => {
  const claims = (n: number) => btoa(JSON.stringify({ iat: 5_000, exp: 5_100, n })).replace(/=+$/, '');
  let asked = 0;
  const { gateway, client, run, socket, world } = setup({ token: () => `h.${claims(asked += 1)}.s` });
  gateway.token = `h.${claims(1)}.s`;
  client.view(JFK);
  await run(79_000);
  assert.equal(asked, 1);
  await run(2_000);
  assert.deepEqual([asked, socket().sent.at(-1)!['op'], world.sockets.length], [2, 'auth', 1]);
  client.close();
});

test('a token that does not hold: no more attempts, until another is given', async () => {
  for (const transport of ['ws', 'sse', 'poll'] as const) {
    const { gateway, client, errors, run } = setup({ token: 'bad', transports: [transport] });
    gateway.token = 'good';
    const view = client.view(JFK);
    await run(40_000);
    assert.deepEqual([errors, view.freshness.state, view.freshness.reason], [['unauthorized'], 'unavailable', 'unauthorized'], transport);
    await client.refreshToken('good');
    await run(2_000);
    assert.equal(view.freshness.state, 'live', transport);
    client.close();
  }
});

test('a channel that is refused harms no other, over each transport', async () => {
  for (const transport of ['ws', 'sse', 'poll'] as const) {
    const { gateway, client, run } = setup({ transports: [transport] });
    gateway.publish(JFK, 'a', 1);
    const [good, none] = [client.view(JFK), client.view('departures/NONE')];
    await run(6_000);
    assert.deepEqual([good.freshness.state, good.get('a')], ['live', 1], transport);
    assert.deepEqual([none.freshness.state, none.freshness.reason, none.error?.code], ['unavailable', 'unknown_stream', 'unknown_stream'], transport);
    await assert.rejects(none.live(AbortSignal.timeout(1_000)), { code: 'unknown_stream' });
    client.close();
  }
});

test('events over long-polling: a typed refusal', async () => {
  const { client, run } = setup({ transports: ['poll'] });
  const events = client.events(JFK);
  await run(3_000);
  assert.deepEqual([events.freshness.state, events.error?.code], ['unavailable', 'unsupported']);
  client.close();
});

test('handles share a channel; the last one to close unsubscribes; what was on its way is nobody\'s', async () => {
  const { gateway, client, deliver, socket } = setup();
  gateway.publish(JFK, 'a', 1);
  const [one, two] = [client.view(JFK), client.view(JFK)];
  await deliver();
  assert.equal(socket().sent.length, 1);
  one.close();
  assert.deepEqual([one.freshness.state, two.freshness.state], ['unavailable', 'live']);
  two.close();
  // Closing the last channel ends the connection; a channel beside it keeps it, and then it is told.
  const other = client.view('departures/LGA');
  await deliver();
  const again = client.view(JFK);
  await deliver();
  again.close();
  const third = client.view(JFK);
  socket().say({ op: 'update', channel: JFK, position: '0.e1:900', ts: 0, row: 'stray', data: 1 });
  assert.equal(third.rows.size, 0, 'before the outcome nothing is its own');
  await deliver();
  assert.deepEqual([[...third.rows.keys()], other.freshness.state, third.freshness.state], [['a'], 'live', 'live']);
  client.close();
  assert.throws(() => client.view(JFK), { code: 'ended' });
});

test('signals: closed before, closed later, the whole client', async () => {
  const { client, deliver, world } = setup();
  const gone = client.view(JFK, { signal: AbortSignal.abort() });
  assert.equal(gone.freshness.reason, 'ended');
  assert.equal(world.sockets.length, 0);
  const control = new AbortController();
  const view = client.view(JFK, { signal: control.signal });
  await deliver();
  const reading = (async () => { const seen = []; for await (const change of view) seen.push(change.row); return seen; })();
  control.abort();
  assert.deepEqual(await reading, []);
  await assert.rejects(client.view(JFK).live(AbortSignal.abort(new Error('enough'))), { code: 'aborted' });
  const all = new AbortController();
  const other = setup({ signal: all.signal });
  other.client.view(JFK);
  await other.deliver();
  all.abort();
  assert.deepEqual([other.client.status.state, other.world.timers, other.socket().gone], ['closed', 0, true]);
  client.close();
});

test('a slow reader of a view gets the newest of each row; one of events is told what it missed', async () => {
  const { gateway, client, deliver, socket } = setup();
  const view = client.view<number>(JFK);
  const changes = view[Symbol.asyncIterator]();
  await deliver();
  for (let n = 0; n < 50; n += 1) { gateway.publish(JFK, n % 2 ? 'a' : 'b', n); await deliver(); }
  const seen = [(await changes.next()).value, (await changes.next()).value];
  assert.deepEqual(seen.map(({ row, data }) => [row, data]).sort(), [['a', 49], ['b', 48]]);
  client.close();

  const other = setup({}, {});
  other.world.onSocket = (opened: FakeSocket) => {
    opened.open();
    opened.heard = ({ id }) => opened.say({ id, ok: { outcome: 'started' } });
    other.world.platform.setTimer(() => opened.say({ op: 'hello', now_ms: 0, heartbeat_ms: 25_000, live_for_ms: 30_000 }), 1);
  };
  const events = other.client.events<number>('trades/ACME');
  await other.world.pass(10);
  const items = events[Symbol.asyncIterator]();
  for (let n = 1; n <= 10_001; n += 1) other.socket().say({ op: 'update', channel: 'trades/ACME', position: `0.e:${n}`, ts: 0, row: '', data: n });
  const first = (await items.next()).value as EventItem<number>;
  assert.deepEqual(first, { type: 'gap', from: '0.e:1', to: '0.e:5000', reason: 'slow_reader', dropped: 5_000 });
  const second = (await items.next()).value as EventItem<number>;
  assert.equal(second.type === 'event' && second.data, 5_001);
  other.client.close();
  assert.ok(socket);
});

test('events whose token had to be forgotten are told as a gap', async () => {
  const { world, client, socket } = setup();
  let outcome = 'started';
  world.onSocket = (opened: FakeSocket) => {
    opened.open();
    opened.heard = ({ id, op }) => op === 'subscribe' && opened.say(outcome ? { id, ok: { outcome } } : { id, error: { code: 'bad_token' } });
    world.platform.setTimer(() => opened.say({ op: 'hello', now_ms: 0, heartbeat_ms: 25_000, live_for_ms: 30_000 }), 1);
  };
  const events = client.events('trades/ACME');
  const items: EventItem[] = [];
  events.onEvent((item) => items.push(item));
  await world.pass(10);
  socket().say({ op: 'update', channel: 'trades/ACME', position: '0.e:7', ts: 0, row: '', data: 1 });
  outcome = '';
  socket().cut();
  await world.pass(1_000);
  outcome = 'started';
  await world.pass(2_000);
  assert.deepEqual(items.map((item) => (item.type === 'gap' ? [item.from, item.to, item.reason] : item.position)), ['0.e:7', ['0.e:7', null, 'forgotten']]);
  client.close();
});

test('a schema: rows that it refuses are reported and not shown', async () => {
  const { gateway, client, errors, deliver } = setup();
  const schema = {
    '~standard': {
      version: 1 as const, vendor: 'test',
      validate: (value: unknown) => (typeof value === 'number' ? { value: value * 10 } : { issues: [{ message: 'not a number' }] }),
    },
  };
  gateway.publish(JFK, 'a', 1);
  gateway.publish(JFK, 'b', 'two');
  const view = client.view(JFK, { schema });
  await deliver();
  assert.deepEqual([Object.fromEntries(view.rows), errors], [{ a: 10 }, ['bad_row']]);
  gateway.publish(JFK, 'a', 'gone bad');
  gateway.publish(JFK, 'b', 2);
  await deliver();
  assert.deepEqual([Object.fromEntries(view.rows), view.freshness.state], [{ b: 20 }, 'live']);
  client.close();
});

test('a listener that throws harms no other', async () => {
  const { gateway, client, deliver } = setup();
  const view = client.view(JFK);
  const thrown: unknown[] = [];
  // What a listener throws reaches the runtime by a microtask: caught here, where the runner would take it for its own.
  const later = globalThis.queueMicrotask;
  globalThis.queueMicrotask = (run) => later(() => { try { run(); } catch (error) { thrown.push((error as Error).message); } });
  let told = 0;
  view.onChange(() => { throw new Error('mine'); });
  view.onChange(() => { told += 1; });
  await deliver();
  gateway.publish(JFK, 'a', 1);
  await deliver();
  globalThis.queueMicrotask = later;
  assert.deepEqual([told, thrown], [1, ['mine']]);
  client.close();
});

test('publishing: over the open socket, in order; by a request where there is none', async () => {
  const { world, gateway, client, deliver, socket } = setup();
  world.random = chance(7).next;
  const view = client.view<number>(JFK);
  await deliver();
  const done = [1, 2, 3].map((n) => client.publish(JFK, n, { row: 'a' }));
  await settle();
  assert.equal(socket().sent.filter(({ op }) => op === 'publish').length, 1, 'the next one once the log has the first');
  for (let i = 0; i < 6; i += 1) await deliver();
  assert.match((await Promise.all(done))[2]!.position, /^0\.e1:\d+$/);
  assert.equal(view.get('a'), 3);
  const records = socket().sent.filter(({ op }) => op === 'publish').map(({ record }) => record as { data: number; id: string });
  assert.deepEqual(records.map(({ data }) => data), [1, 2, 3]);
  assert.equal(new Set(records.map(({ id }) => id)).size, 3, 'each has an id');
  view.close();
  await settle();
  world.onRequest = (request) => request.answer(json({ position: '0.e1:9', duplicate: true }));
  assert.deepEqual(await client.publish(JFK, null, { row: 'a', ts: 5, id: 'mine' }), { position: '0.e1:9', duplicate: true });
  const request = world.requests.at(-1)!;
  assert.equal(request.url.pathname, '/v1/publish/departures');
  assert.deepEqual(JSON.parse(request.body!), { channel: 'JFK', row: 'a', ts: 5, data: null, id: 'mine' });
  assert.ok(gateway);
  client.close();
});

test('publishing: what passes is tried again under the same id; what does not is told; time and signals end it', async () => {
  const { world, client } = setup();
  const answers = [() => problem(503, 'overloaded', { 'retry-after': '2' }), () => new Response('<html>', { status: 502 }), () => json({ position: '0.e:1' })];
  world.onRequest = (request) => (answers.length > 1 ? request.answer(answers.shift()!()) : request.answer(answers[0]!()));
  const done = client.publish(JFK, 1);
  await world.pass(5_000);
  assert.equal((await done).position, '0.e:1');
  assert.equal(new Set(world.requests.map(({ body }) => JSON.parse(body!).id)).size, 1);
  world.onRequest = (request) => request.answer(problem(403, 'forbidden'));
  await assert.rejects(client.publish(JFK, 1), { code: 'forbidden' });
  world.onRequest = (request) => request.fail();
  const late = assert.rejects(client.publish(JFK, 1, { timeoutMs: 3_000 }), { code: 'timeout' });
  await world.pass(4_000);
  await late;
  world.onRequest = () => {};
  const control = new AbortController();
  const aborted = assert.rejects(client.publish(JFK, 1, { signal: control.signal }), { code: 'aborted' });
  await settle();
  control.abort();
  await aborted;
  await assert.rejects(client.publish('nowhere', 1), { code: 'bad_channel' });
  client.close();
  await assert.rejects(client.publish(JFK, 1), { code: 'ended' });
});
