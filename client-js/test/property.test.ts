/**
 * After any sequence of cuts a view equals the server's: over each transport, with partitions, conflation, truncated logs
 * and logs that begin anew. Each seed is a script; a failure names its seed.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { connect } from '../src/client.js';
import type { TransportName } from '../src/ladder.js';
import { FakeGateway } from './support/gateway.js';
import { World, chance, settle } from './support/world.js';

const SEEDS = Number(process.env['SDK_SEEDS'] ?? 60);
const STEPS = 50;
const NAMES = { 'departures/JFK': 2, 'departures/LGA': 1, 'gates/T4': 1 };
const ROWS = ['a', 'b', 'c', 'd', 'e', '__proto__', ''];

async function run(seed: number, transports: TransportName[]) {
  const { next, below, pick } = chance(seed);
  const world = new World();
  world.random = next;
  const gateway = new FakeGateway(world, NAMES);
  gateway.pick = below;
  const client = connect('https://gateway.example', { platform: world.platform, transports });
  const errors: string[] = [];
  client.onError((error) => errors.push(error.code));
  const names = Object.keys(NAMES);
  // What a page would draw from changes alone must be the rows too; and no row ever goes back to an older value.
  const follow = (name: string) => {
    const view = client.view<number>(name);
    const drawn = new Map<string, unknown>(view.rows);
    const newest = new Map<string, number>(view.rows);
    view.onChange((changes) => changes.forEach(({ row, data }) => {
      if (data === undefined) return void drawn.delete(row);
      assert.ok(data >= (newest.get(row) ?? 0), `${name} row ${row} went back from ${newest.get(row)} to ${data}`);
      newest.set(row, data);
      return void drawn.set(row, data);
    }));
    return { view, drawn };
  };
  const views = names.map(follow);
  let n = 0;
  for (let i = 0; i < STEPS; i += 1) {
    const act = below(14);
    if (act < 5) gateway.publish(pick(names), pick(ROWS), below(4) ? (n += 1) : undefined);
    else if (act < 8) for (const session of gateway.sessions) session.pump(below(6));
    else if (act === 8) gateway.cutAll();
    else if (act === 9 && below(3) === 0) gateway.newEpoch(pick(names));
    else if (act === 9) gateway.truncate(pick(names));
    else if (act === 10) for (const session of gateway.sessions) gateway.heartbeat(session);
    else if (act === 11) {
      // Another component comes, or one goes and comes again: the set of channels changes.
      const which = below(names.length);
      views[which]!.view.close();
      await settle();
      views[which] = follow(names[which]!);
    } else if (act === 12 && transports.length > 1) {
      const name = pick(transports);
      if (!gateway.blocked.delete(name)) gateway.blocked.add(name);
      gateway.cutAll();
    } else await world.pass(below(3_000));
    await settle();
  }
  gateway.blocked.clear();
  // The network is well again, and everything is delivered.
  for (let i = 0; i < 60; i += 1) {
    for (const session of gateway.sessions) session.pump();
    await world.pass(1_500);
    if (i % 10 === 9) for (const session of gateway.sessions) gateway.heartbeat(session);
    for (const session of gateway.sessions) session.pump();
    await settle();
  }
  names.forEach((name, i) => {
    assert.deepEqual(Object.fromEntries(views[i]!.view.rows), gateway.rows(name), `rows of ${name}`);
    assert.deepEqual(Object.fromEntries(views[i]!.drawn), gateway.rows(name), `changes of ${name}`);
    assert.equal(views[i]!.view.freshness.state, 'live', `${name}: ${JSON.stringify(views[i]!.view.freshness)}`);
  });
  assert.deepEqual(gateway.broken, [], 'what the client says');
  assert.ok(!errors.includes('bad_answer'), `a good gateway was taken for a bad one: ${errors}`);
  client.close();
  await settle();
  // A gateway that is polled keeps timers of its own.
  if (!transports.includes('poll')) assert.equal(world.timers, 0, 'no timer is left');
}

for (const transports of [['ws'], ['sse'], ['poll'], ['ws', 'sse', 'poll']] as TransportName[][]) {
  test(`over ${transports.join(', ')}: after any cuts the view is the server's`, async () => {
    for (let seed = 1; seed <= SEEDS; seed += 1) {
      await run(seed, transports).catch((error) => { throw new Error(`seed ${seed}: ${error.message}`, { cause: error }); });
    }
  });
}
