/**
 * The connection's machine: every state against every event. The table's type leaves no cell out.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { backoff } from '../src/backoff.js';
import { TidegateError } from '../src/errors.js';
import { type Env, type Event, type EventName, type State, type StateName, step, wakeAt } from '../src/machine.js';
import { chance } from './support/world.js';

const NOW = 100_000;
const env: Env = { now: NOW, random: 0.5, heartbeatMs: 25_000, pings: true, tokenMs: 10_000, helloMs: 5_000 };
const oops = new TidegateError('network');
const carried = { attempt: 2, suspect: false, held: false };
const later = NOW + 1_000;

const STATES: { readonly [S in StateName]: Extract<State, { name: S }> } = {
  idle: { ...carried, name: 'idle' },
  waiting: { ...carried, name: 'waiting', until: later, promised: false },
  held: { ...carried, held: true, name: 'held', until: later },
  asking: { ...carried, name: 'asking', until: later },
  opening: { ...carried, name: 'opening', until: later },
  greeting: { ...carried, name: 'greeting', until: later },
  open: { ...carried, name: 'open', since: NOW - 1_000, until: later, pinged: false },
  closed: { ...carried, name: 'closed', error: oops },
};
const EVENTS: { readonly [E in EventName]: Extract<Event, { name: E }> } = {
  want: { name: 'want' }, unwant: { name: 'unwant' }, timer: { name: 'timer', heardAt: NOW - 500 },
  token: { name: 'token' }, no_token: { name: 'no_token', error: oops }, hello: { name: 'hello', auth: true },
  authorized: { name: 'authorized' }, refused: { name: 'refused', error: new TidegateError('unauthorized') },
  settled: { name: 'settled' }, lost: { name: 'lost', end: { error: oops, blocked: true } },
  garbage: { name: 'garbage', error: new TidegateError('bad_answer') },
  hold: { name: 'hold', why: 'offline' }, release: { name: 'release' }, again: { name: 'again' },
  close: { name: 'close', error: new TidegateError('ended') },
};

/** The next state and the actions, in words; `-` is: nothing changes. */
const EXPECTED: { readonly [S in StateName]: { readonly [E in EventName]: string } } = {
  idle: {
    want: 'asking: ask', unwant: '-', timer: '-', token: '-', no_token: '-', hello: '-', authorized: '-', refused: '-',
    settled: '-', lost: '-', garbage: '-', hold: 'idle: ', release: 'idle: ', again: '-', close: 'closed: drop!',
  },
  waiting: {
    want: '-', unwant: 'idle: drop', timer: '-', token: '-', no_token: '-', hello: '-', authorized: '-', refused: '-',
    settled: '-', lost: '-', garbage: '-', hold: 'held: drop', release: 'waiting: ', again: 'asking: drop ask', close: 'closed: drop!',
  },
  held: {
    want: '-', unwant: 'idle: drop', timer: '-', token: '-', no_token: '-', hello: '-', authorized: '-', refused: '-',
    settled: '-', lost: '-', garbage: '-', hold: '-', release: 'waiting: ', again: '-', close: 'closed: drop!',
  },
  asking: {
    want: '-', unwant: 'idle: drop', timer: '-', token: 'opening: open', no_token: 'waiting: drop report', hello: '-',
    authorized: '-', refused: '-', settled: '-', lost: '-', garbage: '-', hold: 'held: drop', release: 'asking: ', again: '-', close: 'closed: drop!',
  },
  opening: {
    want: '-', unwant: 'idle: drop', timer: '-', token: '-', no_token: '-', hello: 'greeting: auth', authorized: '-',
    refused: 'closed: drop! report', settled: '-', lost: 'waiting: drop blocked report', garbage: 'waiting: drop blocked report',
    hold: 'held: drop', release: 'opening: ', again: 'asking: drop ask', close: 'closed: drop!',
  },
  greeting: {
    want: '-', unwant: 'idle: drop', timer: '-', token: '-', no_token: '-', hello: '-', authorized: 'open: worked subscribe',
    refused: 'closed: drop! report', settled: '-', lost: 'waiting: drop report', garbage: 'waiting: drop report',
    hold: 'held: drop', release: 'greeting: ', again: 'asking: drop ask', close: 'closed: drop!',
  },
  open: {
    want: '-', unwant: 'idle: drop', timer: 'open: ', token: '-', no_token: '-', hello: '-', authorized: '-', refused: 'open: report',
    settled: 'open: ', lost: 'waiting: drop report', garbage: 'waiting: drop report', hold: 'open: ping', release: 'open: ping',
    again: 'asking: drop ask', close: 'closed: drop!',
  },
  closed: {
    want: '-', unwant: '-', timer: '-', token: '-', no_token: '-', hello: '-', authorized: '-', refused: '-', settled: '-',
    lost: '-', garbage: '-', hold: '-', release: '-', again: '-', close: '-',
  },
};

const wordsOf = (actions: readonly { do: string; final?: boolean }[]) =>
  actions.map((action) => action.do + (action.final ? '!' : '')).join(' ');

for (const state of Object.values(STATES)) {
  test(`${state.name}: every event`, () => {
    for (const event of Object.values(EVENTS)) {
      const [next, actions] = step(state, event, env);
      const said = next === state && !actions.length ? '-' : `${next.name}: ${wordsOf(actions)}`;
      const expected = EXPECTED[state.name][event.name];
      // A rebuilt state that is the same is as good as the same one.
      assert.equal(said === '-' ? `${state.name}: ` : said, expected === '-' ? `${state.name}: ` : expected, `${state.name} × ${event.name}`);
    }
  });
}

const at = (now: number, more: Partial<Env> = {}): Env => ({ ...env, now, ...more });

test('what is due happens when it is due, and not before', () => {
  for (const name of ['waiting', 'held'] as const) {
    assert.equal(step(STATES[name], EVENTS.timer, at(later))[0].name, 'asking', name);
  }
  for (const [name, code, words] of [
    ['asking', 'token_timeout', 'drop report'], ['opening', 'silent', 'drop blocked report'], ['greeting', 'silent', 'drop report'],
  ] as const) {
    const [next, actions] = step(STATES[name], EVENTS.timer, at(later));
    assert.equal(`${next.name}: ${wordsOf(actions)}`, `waiting: ${words}`, name);
    assert.ok(actions.some((action) => action.do === 'report' && action.error.code === code), name);
  }
});

test('back-off grows with each attempt, is full jitter, and starts over only once something was whole', () => {
  let state: State = STATES.idle;
  state = { ...state, attempt: 0 };
  const waits: number[] = [];
  for (let attempt = 0; attempt < 9; attempt += 1) {
    state = step(state, EVENTS.want, env)[0];
    state = state.name === 'asking' ? state : step(state, EVENTS.timer, at(wakeAt(state)))[0];
    state = step(state, EVENTS.token, env)[0];
    state = step(state, { name: 'hello', auth: false }, env)[0];
    assert.equal(state.name, 'open');
    state = step(state, EVENTS.lost, at(NOW, { random: 1 - Number.EPSILON }))[0];
    assert.equal(state.name, 'waiting');
    waits.push(wakeAt(state) - NOW);
  }
  assert.deepEqual(waits, [499, 999, 1_999, 3_999, 7_999, 15_999, 29_999, 29_999, 29_999]);
  assert.equal(backoff(5, 0), 0);
  const settled = step({ ...STATES.open, attempt: 9 }, EVENTS.settled, env)[0];
  assert.equal(settled.attempt, 0);
});

test('the gateway\'s waiting time is obeyed, by the page\'s events too', () => {
  const end = { error: new TidegateError('draining', 'x', 3_120) };
  let [state] = step(STATES.open, { name: 'lost', end }, env);
  assert.equal(wakeAt(state), NOW + 3_120);
  for (const event of [EVENTS.again, EVENTS.hold, EVENTS.release, EVENTS.want]) [state] = step(state, event, env);
  assert.equal(wakeAt(state), NOW + 3_120);
  assert.equal(step(state, EVENTS.timer, at(NOW + 3_119))[0].name, 'waiting');
  assert.equal(step(state, EVENTS.timer, at(NOW + 3_120))[0].name, 'asking');
});

test('a final end is never tried again; a token whose time is over is replaced', () => {
  const [state] = step(STATES.open, { name: 'lost', end: { error: oops, final: true } }, env);
  for (const event of Object.values(EVENTS)) assert.equal(step(state, event, at(NOW + 1e9))[0].name, 'closed');
  assert.equal(step(STATES.greeting, { name: 'refused', error: new TidegateError('token_expired') }, env)[0].name, 'waiting');
});

test('garbage: tokens are tried once more and then forgotten; back-off goes on until a minute in order', () => {
  const first = step(STATES.open, EVENTS.garbage, env);
  assert.ok(!wordsOf(first[1]).includes('forget'));
  const second = step({ ...STATES.open, suspect: first[0].suspect }, EVENTS.garbage, env);
  assert.ok(wordsOf(second[1]).includes('forget'));
  const open: State = { ...STATES.open, suspect: true, attempt: 4, since: NOW };
  assert.equal(step(open, EVENTS.settled, env)[0].attempt, 4);
  const calm = step(open, { name: 'timer', heardAt: NOW + 60_000 }, at(NOW + 60_000))[0];
  assert.deepEqual([calm.suspect, calm.attempt], [false, 0]);
});

test('silence: asked after a heartbeat, given up 10 s later; without pings after two and 10 s', () => {
  const silent = (state: State, now: number, more: Partial<Env> = {}) => step(state, { name: 'timer', heardAt: NOW }, at(now, more));
  assert.equal(wordsOf(silent(STATES.open, NOW + 24_999)[1]), '');
  const [asked, actions] = silent(STATES.open, NOW + 25_000);
  assert.equal(wordsOf(actions), 'ping');
  assert.equal(silent(asked, NOW + 34_999)[0].name, 'open');
  assert.equal(silent(asked, NOW + 35_000)[0].name, 'waiting');
  const heard = step(asked, { name: 'timer', heardAt: NOW + 26_000 }, at(NOW + 35_000))[0];
  assert.deepEqual([heard.name, wakeAt(heard)], ['open', NOW + 51_000]);
  assert.equal(silent(STATES.open, NOW + 59_999, { pings: false })[0].name, 'open');
  assert.equal(wordsOf(silent(STATES.open, NOW + 60_000, { pings: false })[1]), 'drop blocked report');
});

test('a frozen page lets go of its connection; one that is offline tries now and then', () => {
  const [held, actions] = step(STATES.open, { name: 'hold', why: 'frozen' }, env);
  assert.deepEqual([held.name, wordsOf(actions), held.held], ['held', 'drop', true]);
  assert.equal(step(held, EVENTS.timer, at(NOW + 30_000))[0].name, 'asking');
  const back = step(held, EVENTS.release, env)[0];
  assert.deepEqual([back.name, back.held, wakeAt(back)], ['waiting', false, NOW + 250]);
  const kept = step({ ...STATES.idle, held: true }, EVENTS.want, env)[0];
  assert.equal(kept.name, 'held');
});

test('any sequence of events leaves a state that wants a timer, or is at rest', () => {
  for (let seed = 1; seed <= 200; seed += 1) {
    const { pick, below, next } = chance(seed);
    let state: State = STATES.idle;
    let now = NOW;
    for (let i = 0; i < 200; i += 1) {
      now += below(5_000);
      const event = pick(Object.values(EVENTS).filter(({ name }) => name !== 'close'));
      const was = state;
      const [after, actions] = step(state, event, at(now, { random: next() }));
      state = after;
      assert.ok(['idle', 'closed'].includes(state.name) || Number.isFinite(wakeAt(state)), state.name);
      // Whatever leaves an open transport ends it first.
      const leaves = ['opening', 'greeting', 'open'].includes(was.name) && !['opening', 'greeting', 'open'].includes(state.name);
      assert.ok(!leaves || actions[0]?.do === 'drop', `${was.name} × ${event.name} left its transport open`);
      if (state.name === 'closed') state = STATES.idle;
    }
  }
});
