/**
 * Views that outlive their page: shown at once, never live, as old as they are; and stores that fail.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IDBFactory } from 'fake-indexeddb';
import { connect } from '../src/client.js';
import { offline } from '../src/offline.js';
import { FakeGateway } from './support/gateway.js';
import { World, settle } from './support/world.js';

const JFK = 'departures/JFK';
const wait = () => new Promise((done) => { setTimeout(done, 20); });

function page(world: World, options = {}, address = 'https://offline.example') {
  const keeper = offline(options);
  const errors: string[] = [];
  const client = connect(address, { platform: world.platform, keeper });
  client.onError(({ code }) => errors.push(code));
  return { client, keeper, errors };
}

async function deliver(gateway: FakeGateway) {
  for (let i = 0; i < 4; i += 1) {
    await settle();
    for (const session of gateway.sessions) session.pump();
  }
  await settle();
}

/** A world in which a page has closed a view of two rows. */
async function closed(options = {}) {
  globalThis.indexedDB = new IDBFactory();
  const world = new World();
  const gateway = new FakeGateway(world, { [JFK]: 2 });
  gateway.pick = (of) => of - 1;
  gateway.publish(JFK, 'a', 1);
  gateway.publish(JFK, 'b', 2);
  const { client } = page(world, options);
  const view = client.view<number>(JFK);
  await deliver(gateway);
  assert.equal(view.freshness.state, 'live');
  client.close();
  await wait();
  return { world, gateway };
}

test('what a page has kept is shown by the next: stale, with its true age, until the first live answer', async () => {
  const { world, gateway } = await closed();
  gateway.blocked.add('ws').add('sse').add('poll');
  // The next page has a clock of its own.
  world.time += 60_000;
  const { client } = page(world);
  const view = client.view<number>(JFK);
  let changes = 0;
  view.onChange((some) => { changes += some.length; });
  await wait();
  assert.deepEqual(Object.fromEntries(view.rows), { a: 1, b: 2 });
  assert.equal(changes, 2);
  assert.equal(view.freshness.state, 'stale');
  assert.equal(view.freshness.ageMs, 60_000);
  gateway.blocked.clear();
  gateway.publish(JFK, 'a', 3);
  gateway.publish(JFK, 'b', undefined);
  for (let i = 0; i < 20; i += 1) {
    await world.pass(1_000);
    for (const session of gateway.sessions) gateway.heartbeat(session);
    await deliver(gateway);
  }
  assert.deepEqual([Object.fromEntries(view.rows), view.freshness.state], [{ a: 3 }, 'live']);
  client.close();
});

test('what is newer than the store wins', async () => {
  const { world, gateway } = await closed();
  gateway.publish(JFK, 'a', 9);
  const { client } = page(world);
  const view = client.view<number>(JFK);
  await deliver(gateway);
  await wait();
  assert.deepEqual(Object.fromEntries(view.rows), { a: 9, b: 2 });
  client.close();
});

test('too old, of another version, too many rows, wiped: nothing is shown', async () => {
  const nothing = async (kept: object, shown: object, change: (world: World) => Promise<void> | void = () => {}) => {
    const { world, gateway } = await closed(kept);
    gateway.blocked.add('ws').add('sse').add('poll');
    await change(world);
    const { client } = page(world, shown);
    const view = client.view(JFK);
    await wait();
    assert.equal(view.rows.size, 0);
    client.close();
  };
  await nothing({}, { maxAgeMs: 1_000 }, (world) => { world.wallOffset += 2_000; });
  await nothing({ version: '1' }, { version: '2' });
  await nothing({ maxRows: 1 }, {});
  await nothing({ name: 'alice' }, { name: 'bob' });
  await nothing({}, {}, () => offline().wipe());
  await nothing({}, {}, () => offline().wipe(JFK));
});

test('a clock that was set back: no age rather than a wrong one', async () => {
  const { world, gateway } = await closed();
  gateway.blocked.add('ws').add('sse').add('poll');
  world.wallOffset -= 3_600_000;
  const { client } = page(world);
  const view = client.view(JFK);
  await wait();
  assert.deepEqual([view.rows.size, view.freshness.state, view.freshness.ageMs], [2, 'stale', null]);
  client.close();
});

const broken: Record<string, () => IDBFactory | undefined> = {
  'there is none': () => undefined,
  'it may not be opened': () => ({ open: () => { throw new DOMException('no', 'SecurityError'); } }) as never,
  'it is full': () => {
    const factory = new IDBFactory();
    const { open } = factory;
    factory.open = (...given) => {
      const request = open.apply(factory, given);
      request.addEventListener('success', () => {
        const { transaction } = request.result;
        request.result.transaction = (stores, mode) => {
          if (mode === 'readwrite') throw new DOMException('full', 'QuotaExceededError');
          return transaction.call(request.result, stores, mode);
        };
      });
      return request;
    };
    return factory;
  },
};
for (const [what, factory] of Object.entries(broken)) {
  test(`a store that fails, ${what}: told once, and all goes on without it`, async () => {
    globalThis.indexedDB = factory() as IDBFactory;
    const world = new World();
    const gateway = new FakeGateway(world, { [JFK]: 1, 'departures/LGA': 1 });
    gateway.pick = (of) => of - 1;
    gateway.publish(JFK, 'a', 1);
    const { client, errors } = page(world);
    const [view, other] = [client.view(JFK), client.view('departures/LGA')];
    await deliver(gateway);
    assert.deepEqual([view.freshness.state, view.get('a')], ['live', 1]);
    view.close();
    other.close();
    await wait();
    assert.deepEqual(errors, ['store_failed']);
    client.close();
  });
}
