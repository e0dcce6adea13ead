/**
 * One connection's life, as a total state machine.
 *
 * Does: `step(state, event, env)` gives the next state and the actions to be done. Owns: nothing; states are values.
 * Never knows: sockets, fetches, timers, channels. Time and chance come in. Keeps: every state answers every event (the
 * table below does not compile otherwise); the server's waiting time is obeyed; back-off starts over only once a snapshot
 * or a resume was whole; a final end is never tried again. SPEC.md tells the states and events in words.
 */
import { backoff } from './backoff.js';
import { TidegateError } from './errors.js';

/** How a connection ended. */
export interface End {
  readonly error: TidegateError;
  /** It must not be tried again. */
  readonly final?: boolean;
  /** The gateway refused what was asked for, not the connection: of several channels one may be the cause. */
  readonly refused?: boolean;
  /** The transport itself may be what does not get through here. */
  readonly blocked?: boolean;
}

interface Carried {
  /** Attempts since the last one that came as far as a whole snapshot or resume. */
  readonly attempt: number;
  /** What came was not of this protocol: back-off goes on until a minute went by in order. */
  readonly suspect: boolean;
  /** The browser says that it is offline, or froze the page. */
  readonly held: boolean;
}

export type State =
  | (Carried & { readonly name: 'idle' })
  /** Until an attempt; `promised`: the server said when. */
  | (Carried & { readonly name: 'waiting'; readonly until: number; readonly promised: boolean })
  /** Offline or frozen; tried now and then all the same, since browsers are wrong about being offline. */
  | (Carried & { readonly name: 'held'; readonly until: number })
  /** The token's provider was asked. */
  | (Carried & { readonly name: 'asking'; readonly until: number })
  /** The transport opens; `hello` is due. */
  | (Carried & { readonly name: 'opening'; readonly until: number })
  /** `auth` was sent. */
  | (Carried & { readonly name: 'greeting'; readonly until: number })
  | (Carried & { readonly name: 'open'; readonly since: number; readonly until: number; readonly pinged: boolean })
  | (Carried & { readonly name: 'closed'; readonly error: TidegateError });

export type StateName = State['name'];

export type Event =
  /** A channel is wanted, or none any more. */
  | { readonly name: 'want' } | { readonly name: 'unwant' }
  /** `state.until` has come; `heardAt`: when something was last heard. */
  | { readonly name: 'timer'; readonly heardAt: number }
  | { readonly name: 'token' } | { readonly name: 'no_token'; readonly error: TidegateError }
  /** `hello` came; `auth`: a token must be sent now. */
  | { readonly name: 'hello'; readonly auth: boolean }
  | { readonly name: 'authorized' } | { readonly name: 'refused'; readonly error: TidegateError }
  /** A channel has its resume or its whole snapshot. */
  | { readonly name: 'settled' }
  /** The transport ended, `bye` included. */
  | { readonly name: 'lost'; readonly end: End }
  /** What came breaks the protocol. */
  | { readonly name: 'garbage'; readonly error: TidegateError }
  | { readonly name: 'hold'; readonly why: 'offline' | 'frozen' } | { readonly name: 'release' }
  /** Begin again at once: another transport, another set of channels, or the machine slept. */
  | { readonly name: 'again' }
  | { readonly name: 'close'; readonly error: TidegateError };

export type EventName = Event['name'];

export type Action =
  | { readonly do: 'ask' | 'open' | 'auth' | 'subscribe' | 'ping' | 'forget' | 'worked' }
  /** Ends the transport, if there is one. */
  | { readonly do: 'drop'; readonly error: TidegateError; readonly final: boolean }
  | { readonly do: 'report'; readonly error: TidegateError }
  /** The transport did not get through. */
  | { readonly do: 'blocked' };

/** What a step needs from outside. */
export interface Env {
  readonly now: number;
  /** In [0, 1). */
  readonly random: number;
  /** Silence after which the other side is asked, or given up: from `hello`. */
  readonly heartbeatMs: number;
  /** Whether the transport has pings. */
  readonly pings: boolean;
  readonly tokenMs: number;
  readonly helloMs: number;
}

export type Step = readonly [State, readonly Action[]];

const PONG_MS = 10_000;
const HELD_MS = 30_000;
const ORDERLY_MS = 60_000;
const NOTHING: readonly Action[] = [];
const BLOCKED: readonly Action[] = [{ do: 'blocked' }];

export const INITIAL: State = { name: 'idle', attempt: 0, suspect: false, held: false };

const carry = ({ attempt, suspect, held }: State): Carried => ({ attempt, suspect, held });
const stay = (s: State): Step => [s, NOTHING];
const error = (code: string, text: string) => new TidegateError(code, text);
const drop = (e: TidegateError, final = false): Action => ({ do: 'drop', error: e, final });
const report = (e: TidegateError): Action => ({ do: 'report', error: e });

/** An attempt begins, unless the page is held. */
function begin(s: State, env: Env, before: readonly Action[] = NOTHING): Step {
  if (s.held && s.name !== 'held') return [{ ...carry(s), name: 'held', until: env.now + HELD_MS }, before];
  return [{ ...carry(s), name: 'asking', until: env.now + env.tokenMs }, [...before, { do: 'ask' }]];
}

/** An attempt, or a connection, is over. */
function back(s: State, env: Env, end: End, more: readonly Action[] = NOTHING): Step {
  const said = end.error.retryAfterMs;
  const actions = [drop(end.error, end.final === true), ...more, report(end.error)];
  if (end.final) return [{ ...carry(s), name: 'closed', error: end.error }, actions];
  const wait = said ?? backoff(s.attempt, env.random);
  return [
    { ...carry(s), name: 'waiting', attempt: s.attempt + 1, until: env.now + wait, promised: said !== undefined },
    actions,
  ];
}

/** Before `hello` an end that says nothing may be the transport's fault. */
const lostEarly = (s: State, e: { end: End }, env: Env) => back(s, env, e.end, e.end.blocked ? BLOCKED : NOTHING);
const late = (s: State & { until: number }, env: Env, more?: readonly Action[]): Step =>
  (env.now < s.until ? stay(s) : back(s, env, { error: error('silent', 'the gateway did not answer in time') }, more));

/** Once the tokens are tried again, which loses nothing; twice in a row they are forgotten. */
const garbage = (s: State, e: { error: TidegateError }, env: Env) =>
  back({ ...s, suspect: true }, env, e, s.name === 'opening' ? BLOCKED : s.suspect ? [{ do: 'forget' }] : NOTHING);

const again = (s: State, _: unknown, env: Env) => begin(s, env, [drop(error('network', 'begun again'))]);
const idle = (s: State): Step => [{ ...carry(s), name: 'idle' }, [drop(error('ended', 'nothing is followed'))]];
const hold = (s: State, e: { why: string }, env: Env): Step =>
  [{ ...carry(s), name: 'held', held: true, until: env.now + HELD_MS }, [drop(error('network', e.why))]];
const free = (s: State): Step => [{ ...s, held: false }, NOTHING];
const close = (s: State, e: { error: TidegateError }): Step =>
  [{ ...carry(s), name: 'closed', error: e.error }, [drop(e.error, true)]];
const opened = (s: State, env: Env): Step =>
  [{ ...carry(s), name: 'open', since: env.now, until: env.now + env.heartbeatMs, pinged: false }, [{ do: 'worked' }, { do: 'subscribe' }]];
/** A first token that does not hold ends it; one whose time is over is replaced. */
const refused = (s: State, e: { error: TidegateError }, env: Env) =>
  back(s, env, { error: e.error, final: e.error.code !== 'token_expired' && e.error.retryAfterMs === undefined });
const ping = (s: State & { name: 'open' }, _: unknown, env: Env): Step =>
  env.pings ? [{ ...s, pinged: true, until: env.now + PONG_MS }, [{ do: 'ping' }]] : [s, NOTHING];
/** An attempt is due now; one that the server put off is not. */
const sooner = (s: State & { until: number }, _: unknown, env: Env): Step => {
  const until = Math.min(s.until, env.now + backoff(0, env.random));
  return [{ ...carry(s), name: 'waiting', held: false, until, promised: false }, NOTHING];
};

/** Asks a silent gateway whether it is there; gives it up when it stays silent. */
function watch(s: State & { name: 'open' }, e: { heardAt: number }, env: Env): Step {
  const orderly = s.suspect && env.now - s.since >= ORDERLY_MS ? { ...s, suspect: false, attempt: 0 } : s;
  const patience = env.pings ? env.heartbeatMs : 2 * env.heartbeatMs + PONG_MS;
  const due = e.heardAt + patience;
  const unanswered = s.pinged && e.heardAt < s.until - PONG_MS;
  if (unanswered && env.now < s.until) return [orderly, NOTHING];
  if (!unanswered && env.now < due) return [{ ...orderly, pinged: false, until: due }, NOTHING];
  if (!unanswered && env.pings) return ping(orderly, e, env);
  const end = { error: error('silent', 'the gateway fell silent') };
  return back(s, env, end, env.pings ? NOTHING : BLOCKED);
}

type Table = {
  readonly [S in StateName]: {
    readonly [E in EventName]: (state: Extract<State, { name: S }>, event: Extract<Event, { name: E }>, env: Env) => Step;
  };
};

/** What waits for a time, and then makes an attempt. */
const due = (s: State & { until: number }, _: unknown, env: Env): Step => (env.now < s.until ? stay(s) : begin(s, env));

const TABLE: Table = {
  idle: {
    want: (s, _, env) => begin(s, env), unwant: stay, timer: stay, token: stay, no_token: stay, hello: stay,
    authorized: stay, refused: stay, settled: stay, lost: stay, garbage: stay,
    hold: (s) => [{ ...s, held: true }, NOTHING], release: free, again: stay, close,
  },
  waiting: {
    want: stay, unwant: idle, timer: due, token: stay, no_token: stay, hello: stay,
    authorized: stay, refused: stay, settled: stay, lost: stay, garbage: stay,
    hold: (s, e, env) => (s.promised ? [{ ...s, held: true }, NOTHING] : hold(s, e, env)),
    release: (s, e, env) => (s.promised ? free(s) : sooner(s, e, env)),
    again: (s, e, env) => (s.promised ? stay(s) : again(s, e, env)), close,
  },
  held: {
    want: stay, unwant: idle, timer: due, token: stay, no_token: stay, hello: stay,
    authorized: stay, refused: stay, settled: stay, lost: stay, garbage: stay,
    hold: stay, release: sooner, again: stay, close,
  },
  asking: {
    want: stay, unwant: idle,
    timer: (s, _, env) => (env.now < s.until ? stay(s) : back(s, env, { error: error('token_timeout', 'the token\'s provider does not answer') })),
    token: (s, _, env) => [{ ...carry(s), name: 'opening', until: env.now + env.helloMs }, [{ do: 'open' }]],
    no_token: (s, e, env) => back(s, env, e),
    hello: stay, authorized: stay, refused: stay, settled: stay, lost: stay, garbage: stay,
    hold, release: free, again: stay, close,
  },
  opening: {
    want: stay, unwant: idle, timer: (s, _, env) => late(s, env, BLOCKED), token: stay, no_token: stay,
    hello: (s, e, env) => (e.auth ? [{ ...carry(s), name: 'greeting', until: env.now + env.helloMs }, [{ do: 'auth' }]] : opened(s, env)),
    authorized: stay, refused, settled: stay, lost: lostEarly, garbage,
    hold, release: free, again, close,
  },
  greeting: {
    want: stay, unwant: idle, timer: (s, _, env) => late(s, env), token: stay, no_token: stay, hello: stay,
    authorized: (s, _, env) => opened(s, env), refused, settled: stay, lost: (s, e, env) => back(s, env, e.end), garbage,
    hold, release: free, again, close,
  },
  open: {
    want: stay, unwant: idle, timer: watch, token: stay, no_token: stay, hello: stay, authorized: stay,
    refused: (s, e) => [s, [report(e.error)]],
    settled: (s) => (s.suspect || s.attempt === 0 ? stay(s) : [{ ...s, attempt: 0 }, NOTHING]),
    lost: (s, e, env) => back(s, env, e.end), garbage,
    // The browser may be wrong about being offline: the gateway is asked.
    hold: (s, e, env) => (e.why === 'frozen' ? hold(s, e, env) : ping({ ...s, held: true }, e, env)),
    release: (s, e, env) => ping({ ...s, held: false }, e, env), again, close,
  },
  closed: {
    want: stay, unwant: stay, timer: stay, token: stay, no_token: stay, hello: stay, authorized: stay, refused: stay,
    settled: stay, lost: stay, garbage: stay, hold: stay, release: stay, again: stay, close: stay,
  },
};

/** The next state, and what is to be done, in order. */
export function step(state: State, event: Event, env: Env): Step {
  const handle = TABLE[state.name][event.name] as (state: State, event: Event, env: Env) => Step;
  return handle(state, event, env);
}

/** When the machine wants a `timer`. */
export const wakeAt = (state: State) => ('until' in state ? state.until : Infinity);
