/**
 * One channel: what a client holds of it after the messages so far.
 *
 * Does: folds the messages about one view, or one channel of events, into rows or events, a token and a freshness.
 * Owns: that state. Never knows: sockets, timers, the time of day; time comes in as `now`, in milliseconds of a clock that
 * never goes back. Keeps: nothing counts before the subscription's outcome, nothing is applied twice, nothing is lost
 * silently: what can't be followed is thrown as `bad_answer`, and the token is forgotten.
 */
import { TidegateError, badAnswer } from './errors.js';
import { type Freshness, type Greeting, Lease } from './lease.js';
import { type Position, formatToken, parsePosition, parseToken, passed } from './position.js';
import { type Change, type Mark, type Parse, Rows } from './rows.js';
import { type ChannelMessage, type Gap, type Heartbeat, type Snapshot, type Update, LONGEST_MS, clampMs } from './wire.js';

/** What a subscription may ask for; see the protocol's page. */
export interface Options {
  maxRate?: number;
  policy?: 'conflate' | 'disconnect' | 'drop_oldest';
  /** Events only: where to begin; `earliest` replays what the log still has. */
  from?: 'earliest' | (string & {});
  /** Events only: so many of the node's newest first. */
  history?: number;
}

/** An event, or a gap in their place: events that will not come. */
export type EventItem<T = unknown> =
  | { readonly type: 'event'; readonly data: T; readonly row: string; readonly ts: number; readonly position: string }
  | { readonly type: 'gap'; readonly from: string; readonly to: string | null; readonly reason: string; readonly dropped?: number };

/** What a channel tells its holder. */
export interface Sink {
  change?(change: Change): void;
  event?(item: EventItem): void;
}

/** `asking`: no outcome yet; `loading`: a snapshot was announced. */
type Phase = 'asking' | 'catching_up' | 'loading' | 'following';
const PHASES: Record<string, Phase> = {
  resumed: 'following', started: 'following', snapshot: 'loading', catching_up: 'catching_up',
};
/** How long a subscription may stay unanswered, in milliseconds. */
const ANSWER_MS = 30_000;

export class Channel {
  readonly rows: Rows;
  readonly lease = new Lease();
  /** Why the subscription was refused; none while it stands. */
  refusal: TidegateError | null = null;
  /** When a refused subscription is tried again; infinite where that is of no use. */
  retryAt = Infinity;

  #token = new Map<number, Position>();
  #phase: Phase = 'asking';
  #phaseAt = 0;
  #askedAt: number | null = null;
  #link: Greeting | null = null;
  #end: { reason: string; final: boolean } = { reason: 'connecting', final: false };
  #forgot = '';
  #mixed = false;
  #seen = false;
  #begin: string | undefined;

  constructor(
    readonly name: string,
    readonly mode: 'view' | 'events',
    readonly options: Options = {},
    private readonly sink: Sink = {},
    private readonly parse: Parse = (data) => data,
  ) {
    this.rows = new Rows(parse, (change) => this.sink.change?.(change));
    if (options.from === 'earliest') this.#begin = options.from;
    else if (options.from) this.#keep(parseToken(options.from));
  }

  /** What to hand back to resume; empty before the first position. */
  get token() {
    return formatToken(this.#token.values());
  }

  /** What a subscription begins from. Rows of several partitions that can't be told apart begin afresh. */
  get from(): string | undefined {
    return (this.#mixed ? '' : this.token) || this.#begin;
  }

  /** Whether it has its outcome, and its snapshot if one was announced. */
  get settled() {
    return this.#phase === 'following';
  }

  /** Forgets where it was, so that the next subscription begins afresh; the rows stay to be looked at. */
  forget() {
    this.#forgot ||= this.token;
    this.#token.clear();
  }

  /** The connection stands. */
  greet(by: Greeting) {
    this.#link = by;
  }

  /** The subscription was asked for. */
  ask(now: number) {
    this.#enter('asking', now);
    this.#askedAt = now;
    this.retryAt = Infinity;
  }

  /** The connection ended. Nothing is live, no snapshot is finished. */
  cut(reason: string, final: boolean, now: number) {
    this.#enter('asking', now);
    this.#askedAt = null;
    this.#link = null;
    this.#end = { reason, final };
  }

  #enter(phase: Phase, now: number) {
    this.#phase = phase;
    this.#phaseAt = now;
    this.rows.cut();
    this.lease.drop();
  }

  /** Whether something of it is overdue, and the connection must start again. Throws `silent`. */
  watch(now: number) {
    const unanswered = this.#phase === 'asking' && this.#askedAt !== null && now - this.#askedAt > ANSWER_MS;
    if (unanswered && !this.refusal) throw new TidegateError('silent', `no answer to the subscription of ${this.name}`);
    if (this.rows.overdue(now)) throw new TidegateError('silent', `a snapshot of ${this.name} does not end`);
  }

  /** The answer to the subscription, or the outcome that follows `catching_up` or comes over SSE. */
  answer(outcome: string, now: number) {
    const phase = Object.hasOwn(PHASES, outcome) ? PHASES[outcome]! : null;
    if (!phase) throw badAnswer(`an unknown outcome: ${outcome}`);
    this.refusal = null;
    this.#enter(phase, now);
    if (outcome === 'started') this.#started();
  }

  /** Events since a token that had to be forgotten are lost, which must be said. */
  #started() {
    this.#begin = undefined;
    if (this.#forgot) this.sink.event?.({ type: 'gap', from: this.#forgot, to: null, reason: 'forgotten' });
    this.#forgot = '';
  }

  /** The subscription was refused, or ended. */
  refuse(error: TidegateError, now: number) {
    this.#enter('asking', now);
    this.refusal = error;
    if (error.code === 'bad_token') this.forget();
    const again = error.code === 'bad_token' ? 0 : error.retryAfterMs;
    // A gateway that says "at once" each time must not be asked without pause.
    this.retryAt = again === undefined ? Infinity : now + Math.max(again, 1_000);
  }

  /** Any message about this channel but its outcome. Throws `bad_answer`; the token is forgotten then. */
  receive(message: Exclude<ChannelMessage, { op: 'outcome' }>, now: number) {
    if (this.#phase === 'asking') return;
    try {
      switch (message.op) {
        case 'snapshot': return this.#snapshot(message, now);
        case 'update': return this.#update(message);
        case 'heartbeat': return this.#heartbeat(message, now);
        case 'gap': return this.#gap(message);
        case 'freshness':
          return this.lease.judge(message.state, message.reason ?? null, clampMs(message.age_ms), now);
      }
    } catch (error) {
      this.forget();
      throw error;
    }
  }

  #snapshot(message: Snapshot, now: number) {
    if (this.mode === 'events') throw badAnswer(`a snapshot of ${this.name}, which has events`);
    const positions = message.more ? null : parseToken(message.position);
    if (!this.rows.snapshot(message, positions, now)) return;
    this.#keep(positions!);
    this.#mixed = positions!.length > 1;
    this.#phase = 'following';
    this.#phaseAt = now;
    this.#forgot = '';
  }

  #keep(positions: Position[]) {
    for (const at of positions) this.#token.set(at.partition, at);
  }

  #update(message: Update) {
    const at = parsePosition(message.position);
    if (this.mode === 'view') {
      if (this.rows.update(message, at)) this.#advance(at);
      return;
    }
    if (passed(this.#token.get(at.partition), at)) return;
    this.#advance(at);
    const { row, ts, position } = message;
    const data = this.parse(message.data, row);
    if (data !== undefined) this.sink.event?.({ type: 'event', data, row, ts, position });
  }

  #advance(at: Position) {
    if (!passed(this.#token.get(at.partition), at)) this.#token.set(at.partition, at);
  }

  #heartbeat(message: Heartbeat, now: number) {
    if (message.position) parseToken(message.position).forEach((at) => this.#advance(at));
    if (message.proved_at_ms === undefined || !this.#link) return;
    this.lease.prove(message.proved_at_ms, this.#link, now);
    this.#seen ||= this.#phase === 'following';
  }

  #gap(message: Gap) {
    if (this.mode === 'view') throw badAnswer(`updates of ${this.name} are missing: ${message.reason}`);
    const to = parsePosition(message.to);
    if (passed(this.#token.get(to.partition), to)) return;
    this.#token.set(to.partition, to);
    const { from, reason, dropped } = message;
    this.sink.event?.({ type: 'gap', from, to: message.to, reason, ...(dropped === undefined ? {} : { dropped }) });
  }

  /** Puts back what an earlier page kept; it stays stale until the first live answer. */
  restore(rows: Iterable<readonly [string, unknown, Mark]>, token: string, provenAt: number) {
    const positions = token ? parseToken(token) : [];
    this.rows.restore(rows);
    this.#keep(positions);
    this.#mixed = [...this.rows.marks.values()].some(({ home }) => home.length > 1);
    this.lease.remember(provenAt);
  }

  /** When `live` ends by itself. */
  get liveUntil() {
    return this.lease.until;
  }

  /** What may be said of the rows now. */
  freshness(now: number): Freshness {
    const ageMs = this.lease.age(now);
    const say = (state: Freshness['state'], reason: string | null = null): Freshness => ({ state, reason, ageMs });
    const held = this.rows.data.size > 0 || ageMs !== null;
    if (this.#end.final && !this.#link) return say('unavailable', this.#end.reason);
    if (this.refusal) return say('unavailable', this.refusal.code);
    if (!this.#link) return held ? say('stale', this.#end.reason) : say('connecting', this.#end.reason);
    const verdict = this.lease.verdict;
    if (verdict) return say(STATES.has(verdict.state) ? verdict.state as Freshness['state'] : 'stale', verdict.reason);
    // Rows of an earlier page are not vouched for before the first live answer.
    if (!this.#seen && held && this.#phase !== 'following') return say('stale', 'restored');
    if (this.#phase === 'asking') return held ? say('stale', 'connecting') : say('connecting', 'connecting');
    if (this.#phase !== 'following') return say('catching_up', this.#phase);
    if (now < this.lease.until) return say('live');
    const waiting = !this.lease.proven && now < this.#phaseAt + Math.min(this.#link.liveForMs, LONGEST_MS);
    if (!waiting) return say('stale', 'lapsed');
    return this.#seen || !held ? say('catching_up', 'awaiting_proof') : say('stale', 'awaiting_proof');
  }
}

const STATES = new Set(['catching_up', 'stale', 'unavailable']);
