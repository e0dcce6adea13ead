/**
 * The built package before the real gateway: killed and started again, paused, with tokens that end, over each transport.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { Client, ConnectOptions, EventItem, TransportName } from '../src/index.js';
import { KEY, RealGateway, jwt, until } from './support/real.js';

// What is published, not the sources.
const dist = new URL('../../dist/index.js', import.meta.url).href;
const { connect } = (await import(dist)) as typeof import('../src/index.js');
const gateway = new RealGateway();
const clients: Client[] = [];
const TRANSPORTS: TransportName[] = globalThis.WebSocket ? ['ws', 'sse', 'poll'] : ['sse', 'poll'];
let channels = 0;

before(() => gateway.start());
after(async () => {
  for (const client of clients) client.close();
  await gateway.stop();
});

function client(options: ConnectOptions = {}) {
  const made = connect(gateway.url, { token: KEY, ...options });
  clients.push(made);
  return made;
}

const fresh = (stream: string) => `${stream}/c${(channels += 1)}`;

test('WebSocket is there to be tested, or this runtime has none', () => {
  const major = Number(process.versions.node.split('.')[0]);
  assert.ok(globalThis.WebSocket || major < 21, 'Node 21 and newer have WebSocket');
});

for (const transport of TRANSPORTS) {
  test(`over ${transport}: killed and started again, the view is whole and live`, async () => {
    const [reader, writer] = [client({ transports: [transport] }), client()];
    const name = fresh('departures');
    await writer.publish(name, { gate: 'B1' }, { row: 'a' });
    await writer.publish(name, { gate: 'B2' }, { row: 'b' });
    const view = reader.view<{ gate: string }>(name);
    await view.live(AbortSignal.timeout(30_000));
    assert.deepEqual(Object.fromEntries(view.rows), { a: { gate: 'B1' }, b: { gate: 'B2' } });
    await gateway.kill();
    await until('the view is stale', () => view.freshness.state === 'stale');
    assert.equal(view.rows.size, 2, 'the rows stay');
    const published = [writer.publish(name, null, { row: 'a' }), writer.publish(name, { gate: 'C9' }, { row: 'c' })];
    await gateway.start();
    await Promise.all(published);
    await until('the view has what was published since', () => view.get('c')?.gate === 'C9' && !view.rows.has('a'));
    await view.live(AbortSignal.timeout(30_000));
    assert.deepEqual(Object.fromEntries(view.rows), { b: { gate: 'B2' }, c: { gate: 'C9' } });
    assert.equal(reader.transport, transport);
    reader.close();
  });

  if (transport !== 'poll') {
    test(`over ${transport}: killed and started again, each event once and in order, no gap`, async () => {
      const [reader, writer] = [client({ transports: [transport] }), client()];
      const name = fresh('trades');
      const items: EventItem<number>[] = [];
      const events = reader.events<number>(name);
      events.onEvent((item) => items.push(item));
      await until('the events are live', () => events.freshness.state === 'live');
      let n = 0;
      let open = true;
      const publishing = (async () => {
        for (; open; n += 1) await writer.publish(name, n);
      })();
      for (let kills = 0; kills < 2; kills += 1) {
        const at = items.length;
        await until('events come', () => items.length > at + 30);
        await gateway.kill();
        await gateway.start();
      }
      const at = items.length;
      await until('events come again', () => items.length > at + 30);
      open = false;
      await publishing;
      await until('the last one came', () => items.length >= n);
      assert.deepEqual(items.map((item) => (item.type === 'event' ? item.data : item)), Array.from({ length: n }, (_, i) => i));
      reader.close();
    });
  }

  test(`over ${transport}: stale while the source is paused, then live`, async () => {
    const reader = client({ transports: [transport] });
    const view = reader.view(fresh('departures'));
    await view.live(AbortSignal.timeout(30_000));
    await gateway.admin('/streams/departures/pause');
    try {
      await until('it is stale', () => view.freshness.state === 'stale');
      assert.equal(view.freshness.reason, 'paused');
    } finally {
      await gateway.admin('/streams/departures/resume');
    }
    await view.live(AbortSignal.timeout(30_000));
    reader.close();
  });

  test(`over ${transport}: a token that does not hold, a channel that does not exist`, async () => {
    const refused = client({ transports: [transport], token: 'nobody' });
    const view = refused.view(fresh('departures'));
    await until('it is refused', () => view.freshness.state === 'unavailable');
    assert.equal(view.freshness.reason, 'unauthorized');
    refused.close();
    const reader = client({ transports: [transport] });
    const [none, good] = [reader.view('nowhere/x'), reader.view(fresh('departures'))];
    await assert.rejects(none.live(AbortSignal.timeout(30_000)), { code: 'unknown_stream' });
    await good.live(AbortSignal.timeout(30_000));
    reader.close();
  });
}

test('a token is replaced in place before its time is over: the connection stays', { skip: !globalThis.WebSocket && 'no WebSocket' }, async () => {
  let asked = 0;
  const reader = client({ transports: ['ws'], token: () => { asked += 1; return jwt(4); } });
  const states = new Set<string>();
  const view = reader.view(fresh('departures'));
  await view.live(AbortSignal.timeout(30_000));
  reader.onStatus(({ state }) => states.add(state));
  // Past the end of the first two.
  await until('three tokens were asked for', () => asked >= 3);
  assert.deepEqual([...states].filter((state) => state !== 'open'), []);
  assert.equal(view.freshness.state, 'live');
  reader.close();
});

test('a token that ends unannounced: a fresh one by itself', async () => {
  await Promise.all(TRANSPORTS.filter((name) => name !== 'poll').map(async (transport) => {
    let asked = 0;
    const reader = client({ transports: [transport], token: () => { asked += 1; return jwt(2, { iat: undefined }); } });
    const errors: string[] = [];
    reader.onError(({ code }) => errors.push(code));
    const view = reader.view(fresh('departures'));
    await view.live(AbortSignal.timeout(30_000));
    await until('the token was replaced', () => asked >= 2);
    await view.live(AbortSignal.timeout(30_000));
    assert.deepEqual(errors, ['token_expired'], transport);
    reader.close();
  }));
});

test('events from the earliest, and the newest few', { skip: !globalThis.WebSocket && 'no WebSocket' }, async () => {
  const writer = client();
  const name = fresh('trades');
  for (let n = 0; n < 5; n += 1) await writer.publish(name, n);
  for (const [options, expected] of [[{ from: 'earliest' }, [0, 1, 2, 3, 4]], [{ history: 2 }, [3, 4]]] as const) {
    const reader = client({ transports: ['ws'] });
    const seen: unknown[] = [];
    for await (const item of reader.events<number>(name, options)) {
      if (item.type === 'event') seen.push(item.data);
      if (seen.length === expected.length) break;
    }
    assert.deepEqual(seen, expected);
    reader.close();
  }
});

test('events from the earliest over SSE: a typed refusal, since beginning now would lose them', async () => {
  const events = client({ transports: ['sse'] }).events(fresh('trades'), { from: 'earliest' });
  await until('it is refused', () => events.error?.code === 'unsupported');
  assert.equal(events.freshness.state, 'unavailable');
});

test('publishing twice under one id is one record', async () => {
  const writer = client();
  const name = fresh('departures');
  const first = await writer.publish(name, 1, { id: 'same' });
  const second = await writer.publish(name, 1, { id: 'same' });
  assert.deepEqual(second, { position: first.position, duplicate: true });
  await assert.rejects(writer.publish('nowhere/x', 1), { code: 'unknown_stream' });
});

test('a hundred views over one connection or request', async () => {
  const [reader, writer] = [client(), client()];
  const names = Array.from({ length: 100 }, () => fresh('departures'));
  await Promise.all(names.map((name, i) => writer.publish(name, i)));
  const views = names.map((name) => reader.view<number>(name));
  await Promise.all(views.map((view) => view.live(AbortSignal.timeout(30_000))));
  assert.deepEqual(views.map((view) => view.get('')), names.map((_, i) => i));
  reader.close();
});
