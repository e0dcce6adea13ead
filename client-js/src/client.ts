/**
 * The client: what `connect` gives.
 *
 * Does: lends views and events, places their channels on connections, climbs between transports, keeps the one timer.
 * Owns: the connections, the ladder, the token's provider. Never knows: messages. Keeps: a channel is on one connection;
 * handles of one channel share it; after `close` nothing runs.
 */
import { type EventItem, Channel, type Options } from './channel.js';
import { steadyClock } from './clock.js';
import { Connection, type Host, openTransport } from './connection.js';
import { TidegateError } from './errors.js';
import { type Handle, type Stop, Events, Listeners, View, onAbort } from './handle.js';
import { type Ladder, type TransportName, failed, ladder, probed, worked } from './ladder.js';
import type { Event, StateName } from './machine.js';
import { type PageEvent, type Platform, platform } from './platform.js';
import { type PublishOptions, type Published, Publisher } from './publish.js';
import { type Schema, parseBy } from './schema.js';
import { lifeOf } from './token.js';

/** A token, or what gives one: called for each connection, and before the last one's time is over. */
export type TokenSource = string | ((signal: AbortSignal) => string | Promise<string>);

export interface ConnectOptions {
  token?: TokenSource;
  /** The transports that may be used, best first; by default WebSocket, SSE, long-polling. */
  transports?: readonly TransportName[];
  /** Closes the client. */
  signal?: AbortSignal;
  /** For cookies of another origin; by default as `fetch` has it. */
  credentials?: RequestCredentials;
  /** How long the token's provider may take, in milliseconds; by default 10 s. */
  tokenTimeoutMs?: number;
  /** How long the first byte of a connection may take, in milliseconds; by default 5 s. A proxy that buffers takes longer. */
  firstByteMs?: number;
  /** Keeps views across pages: `offline()` of `tidegate/offline`. */
  keeper?: Keeper;
  /** Clock, timers, `fetch`, `WebSocket` in place of the runtime's. */
  platform?: Partial<Platform>;
}

export interface ViewOptions<T> {
  /** Flushes a second at most, 0.01 to 100. */
  maxRate?: number;
  policy?: 'conflate' | 'disconnect';
  /** Closes the view. */
  signal?: AbortSignal;
  /** Checks each row. The options of a channel are those of its first handle. */
  schema?: Schema<T>;
}

export interface EventsOptions<T> {
  /** A token to go on from, or `earliest`. */
  from?: string;
  history?: number;
  policy?: 'drop_oldest' | 'disconnect';
  signal?: AbortSignal;
  schema?: Schema<T>;
}

/** Keeps channels across pages. */
export interface Keeper {
  opened(channel: Channel, clock: { now(): number; wall(): number }, report: (error: TidegateError) => void, changed: () => void): void;
  changed(channel: Channel): void;
  released(channel: Channel): void;
}

/** What the client as a whole does. */
export interface Status {
  readonly state: StateName;
  readonly transport: TransportName;
  /** When the next attempt begins, in milliseconds from now; `null` while none is due. */
  readonly retryInMs: number | null;
  readonly error: TidegateError | null;
}

interface Entry { channel: Channel; handles: Set<Handle>; connection: Connection }

/** Between two looks at the clock while connected: sleep, silence and what is overdue are found by these. */
const TICK_MS = 1_000;
const RANK: readonly StateName[] = ['open', 'greeting', 'opening', 'asking', 'waiting', 'held', 'closed', 'idle'];

export class Client {
  readonly #host: Host;
  readonly #platform: Platform;
  readonly #publisher: Publisher;
  readonly #options: ConnectOptions;
  readonly #errors = new Listeners<TidegateError>();
  readonly #status = new Listeners<Status>();
  readonly #connections = new Map<string, Connection>();
  readonly #entries = new Map<string, Entry>();
  readonly #apart = new Set<string>();
  readonly #stops: Stop[] = [];
  #ladder: Ladder;
  #token: TokenSource | undefined;
  #refreshAt = Infinity;
  #held = false;
  #error: TidegateError | null = null;
  #closed: TidegateError | null = null;
  #dirty = new Set<Entry>();
  #flushing = false;
  #regrouping = false;
  #probing = false;
  #timer: Stop = () => {};
  #dueAt = Infinity;

  constructor(url: string | URL, options: ConnectOptions = {}) {
    const given = { ...platform(), ...options.platform };
    this.#platform = { ...given, now: steadyClock(given, () => queueMicrotask(() => this.#all({ name: 'again' }))) };
    this.#options = options;
    this.#token = options.token;
    const base = baseOf(url);
    const rungs = (options.transports ?? ['ws', 'sse', 'poll']).filter((name) => name !== 'ws' || given.WebSocket);
    if (!rungs.length) throw new TidegateError('unsupported', 'none of these transports is to be had here');
    this.#ladder = ladder(rungs, remembered(base), this.#platform.now());
    this.#host = {
      base, platform: this.#platform, credentials: options.credentials,
      tokenMs: options.tokenTimeoutMs ?? 10_000, helloMs: options.firstByteMs ?? 5_000,
      token: (signal) => this.#ask(signal),
      report: (error) => this.#report(error),
      worked: () => { 
        this.#ladder = worked(this.#ladder, this.#platform.now());
        // What one client was told to use says nothing of the others.
        if (!options.transports) remember(base, this.transport);
      },
      blocked: () => this.#climb(failed(this.#ladder)),
      apart: (channels) => { for (const { name } of channels) this.#apart.add(name); this.#regroup(); },
      changed: (channel) => this.#changed(channel),
    };
    this.#publisher = new Publisher({ ...this.#host, connection: () => this.#connections.get('') });
    this.#stops.push(this.#platform.watchPage((event) => this.#page(event)), onAbort(options.signal, () => this.close()));
  }

  /** The transport in use, or to be tried next. */
  get transport(): TransportName {
    return this.#ladder.rungs[this.#ladder.at]!;
  }

  /** What the connections do; of several the one that is furthest. */
  get status(): Status {
    const states = [...this.#connections.values()].map(({ state }) => state);
    const best = states.sort((a, b) => RANK.indexOf(a.name) - RANK.indexOf(b.name))[0];
    const state = this.#closed ? 'closed' : best?.name ?? 'idle';
    const until = best?.name === 'waiting' || best?.name === 'held' ? best.until : null;
    return {
      state, transport: this.transport, error: state === 'open' ? null : this.#closed ?? this.#error,
      retryInMs: until === null ? null : Math.max(0, until - this.#platform.now()),
    };
  }

  /** Calls when the state changes. */
  onStatus(listener: (status: Status) => void): Stop {
    return this.#status.add(listener);
  }

  /** Calls for each error, whether or not it is tried again by itself. */
  onError(listener: (error: TidegateError) => void): Stop {
    return this.#errors.add(listener);
  }

  /** Follows a view. Handles of one channel share its rows; the first one's options hold. */
  view<T = unknown>(channel: string, options: ViewOptions<T> = {}): View<T> {
    const { signal, schema, ...asked } = options;
    const entry = this.#entry(channel, 'view', asked, schema);
    const view = new View<T>(entry.channel, this.#holder(entry));
    return this.#lend(entry, view, signal);
  }

  /** Follows a channel of events. */
  events<T = unknown>(channel: string, options: EventsOptions<T> = {}): Events<T> {
    const { signal, schema, ...asked } = options;
    const entry = this.#entry(channel, 'events', asked, schema);
    const events = new Events<T>(entry.channel, this.#holder(entry));
    return this.#lend(entry, events, signal);
  }

  /** Publishes one record to `stream/name`; resolves once the log has it. `null` deletes the row. */
  async publish(channel: string, data: unknown, options: PublishOptions = {}): Promise<Published> {
    if (this.#closed) throw this.#closed;
    return this.#publisher.publish(channel, data, options);
  }

  /** Puts a fresh token in place, without a new connection where the transport can. `source` replaces what gives tokens. */
  async refreshToken(source: TokenSource | undefined = this.#token): Promise<void> {
    this.#token = source;
    const asking = new AbortController();
    const stop = this.#platform.setTimer(() => asking.abort(), this.#host.tokenMs);
    try {
      const token = await this.#ask(asking.signal);
      for (const connection of this.#connections.values()) {
        connection.refresh(token);
        // Another token may be what a refused connection needs.
        if (connection.state.name === 'closed') this.#regroup();
      }
    } finally {
      stop();
    }
  }

  /** Ends everything. */
  close() {
    if (this.#closed) return;
    this.#closed = new TidegateError('ended', 'the client was closed');
    this.#all({ name: 'close', error: this.#closed });
    for (const { handles } of [...this.#entries.values()]) for (const handle of [...handles]) handle.close();
    for (const stop of this.#stops) stop();
    this.#timer();
    this.#dueAt = -Infinity;
    this.#status.tell(this.status);
  }

  #entry(name: string, mode: Channel['mode'], options: Options, schema: Schema | undefined): Entry {
    if (this.#closed) throw this.#closed;
    const known = this.#entries.get(name);
    if (known && known.channel.mode !== mode) throw new TidegateError('bad_option', `${name} is followed as ${known.channel.mode} already`);
    if (known) return known;
    const handles = new Set<Handle>();
    const sink = {
      change: (change: unknown) => handles.forEach((handle) => (handle as View).note(change as never)),
      event: (item: EventItem) => handles.forEach((handle) => (handle as Events).note(item)),
    };
    const channel = new Channel(name, mode, options, sink, parseBy(schema, name, (error) => this.#report(error)));
    const entry: Entry = { channel, handles, connection: this.#connection(channel) };
    this.#entries.set(name, entry);
    this.#options.keeper?.opened(channel, this.#platform, (error) => this.#report(error), () => this.#changed(channel));
    return entry;
  }

  #lend<H extends Handle>(entry: Entry, handle: H, signal: AbortSignal | undefined): H {
    entry.handles.add(handle);
    handle.endBy(signal);
    if (entry.handles.size === 1 && handle.isOpen) entry.connection.add(entry.channel);
    this.#plan();
    return handle;
  }

  #holder(entry: Entry) {
    return {
      now: () => this.#platform.now(),
      release: (handle: Handle) => {
        if (entry.handles.delete(handle) && !entry.handles.size) this.#release(entry);
      },
    };
  }

  #release(entry: Entry) {
    const { name } = entry.channel;
    if (this.#entries.get(name) === entry) this.#entries.delete(name);
    entry.connection.remove(entry.channel);
    this.#options.keeper?.released(entry.channel);
  }

  /** The connection that a channel is on: over SSE one for each stream's views, since one id serves a request. */
  #connection(channel: Channel): Connection {
    const { name, mode, options } = channel;
    const alone = mode === 'events' || this.#apart.has(name);
    const views = `${name.split('/')[0]} ${options.maxRate} ${options.policy}`;
    const key = this.transport !== 'sse' ? '' : alone ? name : views;
    const known = this.#connections.get(key);
    if (known) return known;
    const connection = new Connection(this.transport, this.#host);
    if (this.#held) connection.dispatch({ name: 'hold', why: 'offline' });
    this.#connections.set(key, connection);
    return connection;
  }

  /** Another transport from now on, unless it is the same. */
  #climb(next: Ladder) {
    const same = next.at === this.#ladder.at;
    if (!this.#regrouping || same) this.#ladder = next;
    if (!same) this.#regroup();
  }

  /** Places all channels anew, later in this turn: now a connection may be in the middle of an action. */
  #regroup() {
    if (this.#regrouping) return;
    this.#regrouping = true;
    queueMicrotask(() => {
      this.#regrouping = false;
      if (this.#closed) return;
      const before = [...this.#connections.values()];
      this.#connections.clear();
      // Whoever waited goes on waiting: another transport is no reason to hurry.
      const [waiting] = before.map(({ state }) => state).filter(({ name }) => name === 'waiting');
      for (const connection of before) for (const channel of [...connection.channels.values()]) connection.remove(channel);
      for (const entry of this.#entries.values()) {
        entry.connection = this.#connection(entry.channel);
        if (waiting && entry.connection.state.name === 'idle') entry.connection.state = waiting;
        entry.connection.add(entry.channel);
      }
      this.#changed();
    });
  }

  /** Tries the next better transport beside the one in use. */
  #probe() {
    const { rungs, at } = this.#ladder;
    const [entry] = this.#entries.values();
    if (this.#probing || at === 0 || !entry) return;
    this.#probing = true;
    openTransport(rungs[at - 1]!, this.#host, entry.channel).then((through) => {
      this.#probing = false;
      if (!this.#closed && this.#ladder.at === at) this.#climb(probed(this.#ladder, through, this.#platform.now()));
    });
  }

  async #ask(signal: AbortSignal): Promise<string | undefined> {
    const source = this.#token;
    if (typeof source !== 'function') return source;
    const over = new Promise<never>((_, reject) => {
      onAbort(signal, () => reject(new TidegateError('token_timeout', 'the token\'s provider does not answer')));
    });
    over.catch(() => {});
    try {
      const token: unknown = await Promise.race([source(signal), over]);
      if (typeof token !== 'string' || !token) throw new TypeError('the token\'s provider gave no text');
      const life = lifeOf(token);
      this.#refreshAt = life === null ? Infinity : this.#platform.now() + life * 0.8;
      return token;
    } catch (error) {
      throw error instanceof TidegateError ? error : new TidegateError('token_failed', String(error), undefined, { cause: error });
    }
  }

  #page(event: PageEvent) {
    if (event === 'look') return this.#tick();
    const held = event === 'offline' || event === 'freeze';
    this.#held = held;
    this.#all(held ? { name: 'hold', why: event === 'freeze' ? 'frozen' : 'offline' } : { name: 'release' });
    this.#tick();
  }

  #all(event: Event) {
    for (const connection of [...this.#connections.values()]) connection.dispatch(event);
  }

  #report(error: TidegateError) {
    this.#error = error;
    this.#errors.tell(error);
  }

  /** Handles look at once a turn, whatever came in it. */
  #changed(channel?: Channel) {
    const entry = channel && this.#entries.get(channel.name);
    if (entry) {
      this.#dirty.add(entry);
      this.#options.keeper?.changed(channel);
    } else if (!channel) {
      for (const any of this.#entries.values()) this.#dirty.add(any);
    }
    if (this.#flushing) return;
    this.#flushing = true;
    const all = !channel;
    queueMicrotask(() => this.#flush(all));
  }

  #flush(status: boolean) {
    this.#flushing = false;
    const dirty = [...this.#dirty];
    this.#dirty.clear();
    for (const { handles } of dirty) for (const handle of [...handles]) handle.look();
    if (status && !this.#closed) this.#status.tell(this.status);
    this.#plan();
  }

  #tick() {
    if (this.#closed) return;
    this.#dueAt = Infinity;
    const now = this.#platform.now();
    for (const connection of [...this.#connections.values()]) connection.tick();
    if (now >= this.#ladder.probeAt) this.#probe();
    if (now >= this.#refreshAt) {
      this.#refreshAt = Infinity;
      this.refreshToken().catch((error: TidegateError) => this.#report(error));
    }
    for (const { handles } of [...this.#entries.values()]) for (const handle of [...handles]) handle.look();
    this.#plan();
  }

  /** The one timer: the next thing that is due, and a look each second while something goes on. */
  #plan() {
    const now = this.#platform.now();
    let due = Infinity;
    for (const { state, wakeAt } of this.#connections.values()) {
      due = Math.min(due, wakeAt, state.name === 'idle' || state.name === 'closed' ? Infinity : now + TICK_MS);
    }
    for (const { channel } of this.#entries.values()) {
      if (channel.liveUntil > now) due = Math.min(due, channel.liveUntil);
    }
    if (this.#closed || due >= this.#dueAt) return;
    this.#timer();
    this.#dueAt = due;
    this.#timer = this.#platform.setTimer(() => this.#tick(), Math.max(0, Math.ceil(due - now)));
  }
}

/** The gateway's address, whatever of `http` and `ws` it begins with, with or without a path. */
function baseOf(url: string | URL): URL {
  const base = new URL(url, globalThis.location?.href);
  if (!/^(http|ws)s?:$/.test(base.protocol)) throw new TidegateError('bad_request', `not an address of a gateway: ${base.href}`);
  base.protocol = base.protocol.replace('ws', 'http');
  if (!base.pathname.endsWith('/')) base.pathname += '/';
  base.search = base.hash = '';
  return base;
}

/** What worked the last time, in this page's life and, where there is one, in its storage. */
const memory = new Map<string, string>();
const keyOf = (base: URL) => `tidegate.transport ${base.href}`;
const storage = () => (globalThis.document ? globalThis.localStorage : undefined);

function remembered(base: URL): TransportName | null {
  try {
    return (memory.get(keyOf(base)) ?? storage()?.getItem(keyOf(base)) ?? null) as TransportName | null;
  } catch {
    return null;
  }
}

function remember(base: URL, transport: TransportName) {
  if (memory.get(keyOf(base)) === transport) return;
  memory.set(keyOf(base), transport);
  try {
    storage()?.setItem(keyOf(base), transport);
  } catch {
    // Storage is full or forbidden: it is known until the page ends.
  }
}

/** Connects to a gateway; nothing is opened before something is followed. */
export const connect = (url: string | URL, options?: ConnectOptions) => new Client(url, options);
