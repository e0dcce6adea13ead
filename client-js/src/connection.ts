/**
 * One connection and the channels that are on it.
 *
 * Does: carries out the machine's actions, hands messages to their channels. Owns: the transport, the requests that wait
 * for an answer. Never knows: which transport it is beyond its abilities, who looks at a channel. Keeps: what comes from a
 * transport that was left changes nothing.
 */
import type { Channel } from './channel.js';
import { TidegateError, badAnswer } from './errors.js';
import type { TransportName } from './ladder.js';
import type { Greeting } from './lease.js';
import { type Action, type End, type Env, type Event, type State, INITIAL, step, wakeAt } from './machine.js';
import type { Platform } from './platform.js';
import { openPoll } from './transport/poll.js';
import { openSse } from './transport/sse.js';
import { type Open, type Wire, byeEnd } from './transport/transport.js';
import { openWs } from './transport/ws.js';
import { type Hello, type Message, type Reply, decode, refusalOf } from './wire.js';

/** What a connection needs of its client. */
export interface Host {
  readonly base: URL;
  readonly platform: Platform;
  readonly credentials: RequestCredentials | undefined;
  readonly tokenMs: number;
  readonly helloMs: number;
  token(signal: AbortSignal): Promise<string | undefined>;
  report(error: TidegateError): void;
  /** The transport got through, or did not. */
  worked(): void;
  blocked(): void;
  /** Of these channels one is refused: each needs a request of its own. */
  apart(channels: Iterable<Channel>): void;
  /** Something changed: a state, a channel. */
  changed(channel?: Channel): void;
}

const OPEN: Record<TransportName, Open> = { ws: openWs, sse: openSse, poll: openPoll };
/** Messages of requests that wait for an answer; beyond it publishing is refused. */
const PENDING_MAX = 1_000;

export class Connection {
  state: State = INITIAL;
  readonly channels = new Map<string, Channel>();
  /** Longest message that the gateway takes, in bytes. */
  messageBytes = 1_048_576;

  #wire: Wire | null = null;
  #pending = new Map<number, { answered: (reply: Reply) => void; cut: (() => void) | undefined }>();
  #nextId = 1;
  #lastId = '';
  #token: string | undefined;
  #asking: AbortController | null = null;
  #begunAt = 0;
  #heardAt = 0;
  #heartbeatMs = 25_000;
  #greeting: Greeting | null = null;

  constructor(readonly transport: TransportName, private readonly host: Host) {}

  get wakeAt() {
    return wakeAt(this.state);
  }

  #env(): Env {
    const { platform, tokenMs, helloMs } = this.host;
    return {
      now: platform.now(), random: platform.random(), tokenMs, helloMs,
      heartbeatMs: this.#heartbeatMs, pings: this.transport === 'ws',
    };
  }

  dispatch(event: Event) {
    const before = this.state.name;
    const [state, actions] = step(this.state, event, this.#env());
    this.state = state;
    if (state.name !== 'asking') this.#stopAsking();
    for (const action of actions) this.#act(action);
    if (before !== state.name) this.host.changed();
  }

  tick() {
    const now = this.host.platform.now();
    if (now >= this.wakeAt) this.dispatch({ name: 'timer', heardAt: this.#heardAt });
    if (this.state.name !== 'open') return;
    try {
      for (const channel of this.channels.values()) {
        channel.watch(now);
        if (now >= channel.retryAt) this.#changedSet(channel);
      }
    } catch (error) {
      this.dispatch({ name: 'lost', end: { error: error as TidegateError } });
    }
  }

  add(channel: Channel) {
    this.channels.set(channel.name, channel);
    const { state } = this;
    if (state.name === 'closed') channel.cut(state.error.code, true, this.host.platform.now());
    this.dispatch({ name: 'want' });
    if (this.#wire) this.#changedSet(channel);
  }

  remove(channel: Channel) {
    if (this.channels.get(channel.name) !== channel) return;
    this.channels.delete(channel.name);
    this.#lastId = '';
    if (this.#wire) channel.cut('network', false, this.host.platform.now());
    if (!this.channels.size) this.dispatch({ name: 'unwant' });
    else if (this.state.name === 'open') this.#request({ op: 'unsubscribe', channel: channel.name }, () => {});
  }

  /** A channel is asked for while a transport is open; over SSE that takes a new request. */
  #changedSet(channel: Channel) {
    this.#lastId = '';
    if (this.transport === 'sse') this.dispatch({ name: 'again' });
    else if (this.state.name === 'open') this.#subscribe(channel);
  }

  /** Sends a record, where this connection can; the answer comes later. */
  publish(stream: string, record: object, answered: (reply: Reply) => void, cut: () => void): boolean {
    if (this.state.name !== 'open' || !this.#wire?.send || this.#pending.size >= PENDING_MAX) return false;
    return this.#request({ op: 'publish', stream, record }, answered, cut);
  }

  /** Puts a fresh token in the place of the one in use; says whether it could be sent. */
  refresh(token: string | undefined) {
    this.#token = token;
    if (this.state.name !== 'open') return;
    this.#request({ op: 'auth', token }, ({ error }) => {
      if (error) this.dispatch({ name: 'refused', error: refusalOf(error) });
      else for (const channel of this.channels.values()) if (channel.refusal) this.#subscribe(channel);
    });
  }

  #request(message: { op: string; [field: string]: unknown }, answered: (reply: Reply) => void, cut?: () => void): boolean {
    if (!this.#wire?.send) return false;
    const id = this.#nextId++;
    this.#pending.set(id, { answered, cut });
    try {
      this.#wire.send({ id, ...message });
    } catch {
      // The socket is closing; its end follows, and with it the answer.
    }
    return true;
  }

  #subscribe(channel: Channel) {
    const now = this.host.platform.now();
    if (this.#greeting) channel.greet(this.#greeting);
    channel.ask(now);
    if (this.#wire?.nudge) return this.#wire.nudge(channel);
    const { maxRate, policy, history } = channel.options;
    const { from } = channel;
    const message = { op: 'subscribe', channel: channel.name, from, max_rate: maxRate, policy, history: from ? undefined : history };
    this.#request(message, ({ ok, error }) => {
      if (this.channels.get(channel.name) === channel) this.#answered(channel, ok?.['outcome'], error);
    });
  }

  #answered(channel: Channel, outcome: unknown, error: Reply['error']) {
    const now = this.host.platform.now();
    if (error) {
      const refusal = refusalOf(error);
      channel.refuse(refusal, now);
      this.host.report(refusal);
    } else {
      channel.answer(String(outcome), now);
    }
  }

  #act(action: Action) {
    switch (action.do) {
      case 'ask': return this.#ask();
      case 'open': return this.#open();
      case 'auth': return void this.#request({ op: 'auth', token: this.#token }, ({ error }) =>
        this.dispatch(error ? { name: 'refused', error: refusalOf(error) } : { name: 'authorized' }));
      case 'subscribe': return this.channels.forEach((channel) => this.#subscribe(channel));
      case 'ping': try { return this.#wire?.send?.({ op: 'ping' }); } catch { return undefined; }
      case 'forget': this.#lastId = ''; return this.channels.forEach((channel) => channel.forget());
      case 'worked': return this.host.worked();
      case 'blocked': return this.host.blocked();
      case 'report': return this.host.report(action.error);
      case 'drop': return this.#drop(action.error, action.final);
    }
  }

  #ask() {
    const asking = new AbortController();
    this.#asking = asking;
    this.host.token(asking.signal).then((token) => {
      if (this.#asking !== asking) return;
      this.#token = token;
      this.dispatch({ name: 'token' });
    }, (error: TidegateError) => {
      if (this.#asking === asking) this.dispatch({ name: 'no_token', error });
    });
  }

  #stopAsking() {
    this.#asking?.abort();
    this.#asking = null;
  }

  #open() {
    const { base, platform, credentials } = this.host;
    this.#heardAt = this.#begunAt = platform.now();
    const mine = () => this.#wire === wire;
    const ear = {
      message: (message: unknown) => { if (mine()) this.#hear(message); },
      id: (id: string) => { if (mine()) this.#lastId = id; },
      ended: (end: End) => {
        if (!mine()) return;
        const { error } = end;
        this.dispatch(error.code === 'bad_answer' ? { name: 'garbage', error } : this.#blames(end));
      },
    };
    const call = {
      base, platform, credentials, token: this.#token, lastId: this.#lastId, ear, channels: () => [...this.channels.values()],
    };
    const wire = OPEN[this.transport](call);
    this.#wire = wire;
  }

  /** Which channel a refusal of the whole is about. */
  #blames(end: End): Event {
    if (end.refused && this.channels.size === 1) {
      for (const channel of this.channels.values()) channel.refuse(end.error, this.host.platform.now());
    } else if (end.refused) {
      this.host.apart(this.channels.values());
    }
    // What was refused for good is asked for again only now and then: rights and streams may change.
    const later = end.refused && this.channels.size === 1 && end.error.retryAfterMs === undefined;
    const error = later ? new TidegateError(end.error.code, end.error.message, 60_000) : end.error;
    return { name: 'lost', end: { ...end, error } };
  }

  #drop(error: TidegateError, final: boolean) {
    const wire = this.#wire;
    this.#wire = null;
    this.#greeting = null;
    wire?.close();
    const now = this.host.platform.now();
    for (const channel of this.channels.values()) channel.cut(error.code, final, now);
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const { cut } of pending) cut?.();
  }

  /** What the transport hears. */
  #hear(text: unknown) {
    this.#heardAt = this.host.platform.now();
    try {
      const message = typeof text === 'string' ? decode(text) : decode(JSON.stringify(text));
      if (message) this.#receive(message);
    } catch (error) {
      if (!(error instanceof TidegateError)) throw error;
      this.dispatch({ name: 'garbage', error });
    }
  }

  #receive(message: Message) {
    switch (message.op) {
      case 'hello': return this.#greeted(message);
      case 'bye': return this.dispatch({ name: 'lost', end: byeEnd(message.code, message.reconnect_after_ms) });
      case 'pong': return;
      case undefined: return this.#replied(message);
      default: break;
    }
    if (!this.#greeting) throw badAnswer('a message before hello');
    const channel = this.channels.get(message.channel);
    if (!channel) return;
    if (message.op === 'outcome') this.#answered(channel, message.outcome, message.error);
    else channel.receive(message, this.host.platform.now());
    if (channel.settled && this.state.attempt) this.dispatch({ name: 'settled' });
    this.host.changed(channel);
  }

  #replied(message: Reply) {
    const asked = this.#pending.get(message.id ?? NaN);
    if (asked) {
      this.#pending.delete(message.id!);
      asked.answered(message);
      this.host.changed();
      if ([...this.channels.values()].some(({ settled }) => settled)) this.dispatch({ name: 'settled' });
    } else if (message.error) {
      this.host.report(refusalOf(message.error));
    }
  }

  #greeted(hello: Hello) {
    if (this.#greeting) throw badAnswer('a second hello');
    const within = (ms: number, least: number) => Math.min(Math.max(ms, least), 3_600_000);
    this.#greeting = { offset: this.#begunAt - hello.now_ms, liveForMs: within(hello.live_for_ms, 0) };
    this.#heartbeatMs = within(hello.heartbeat_ms, 100);
    if (typeof hello.limits?.message_bytes === 'number') this.messageBytes = hello.limits.message_bytes;
    this.dispatch({ name: 'hello', auth: this.transport === 'ws' && this.#token !== undefined });
  }
}

/** Whether a transport gets through: opens it beside, waits for the first `hello`, closes it. */
export async function openTransport(transport: TransportName, host: Host, channel: Channel): Promise<boolean> {
  const { base, platform, credentials, helloMs } = host;
  const abort = new AbortController();
  let wire: Wire | null = null;
  let stop = () => {};
  try {
    const token = await host.token(abort.signal);
    return await new Promise<boolean>((resolve) => {
      stop = platform.setTimer(() => resolve(false), helloMs);
      const message = (text: unknown) => {
        try {
          resolve(decode(text)?.op === 'hello');
        } catch {
          resolve(false);
        }
      };
      const ear = { message, id: () => {}, ended: () => resolve(false) };
      wire = OPEN[transport]({ base, platform, credentials, token, lastId: '', ear, channels: () => [channel] });
    });
  } catch {
    return false;
  } finally {
    stop();
    (wire as Wire | null)?.close();
  }
}
