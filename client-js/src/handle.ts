/**
 * What a page holds: a view as a live map of rows, or a channel of events.
 *
 * Does: lends rows, changes, events and freshness to listeners and to `for await`. Owns: the listeners and bounded queues.
 * Never knows: connections. Keeps: a slow reader of a view gets the newest change of each row; one of events is told of a
 * gap; a listener that throws harms no other.
 */
import type { Channel, EventItem } from './channel.js';
import { TidegateError } from './errors.js';
import type { Freshness } from './lease.js';
import type { Change } from './rows.js';

/** Takes a listener away again. */
export type Stop = () => void;

/** Events that may wait for a slow `for await`; beyond it the oldest go and a gap is told. */
const EVENTS_MAX = 10_000;

/** Listeners of one kind. What one throws is thrown later, where the runtime reports it. */
export class Listeners<T> {
  #all = new Set<(value: T) => void>();

  add(listener: (value: T) => void): Stop {
    // Wrapped, so that the same function may listen twice.
    const own = (value: T) => listener(value);
    this.#all.add(own);
    return () => void this.#all.delete(own);
  }

  tell(value: T) {
    for (const listener of [...this.#all]) {
      try {
        listener(value);
      } catch (error) {
        queueMicrotask(() => { throw error; });
      }
    }
  }
}

/** Runs `end` once when the signal says so, at once if it has already. */
export function onAbort(signal: AbortSignal | undefined, end: () => void): Stop {
  if (!signal) return () => {};
  if (signal.aborted) end();
  else signal.addEventListener('abort', end, { once: true });
  return () => signal.removeEventListener('abort', end);
}

/** What a handle needs of its client. */
export interface Holder {
  now(): number;
  release(handle: Handle): void;
}

/** What views and events have in common. */
export abstract class Handle {
  #freshness = new Listeners<Freshness>();
  #said = '';
  #closed = new Set<Stop>();
  protected open = true;

  constructor(protected readonly channel: Channel, private readonly holder: Holder) {
    this.#said = this.#word();
  }

  /** `stream/name`. */
  get name() {
    return this.channel.name;
  }

  /** How fresh it is now; `live` ends by itself, whether or not a timer runs. */
  get freshness(): Freshness {
    if (!this.open) return { state: 'unavailable', reason: 'ended', ageMs: this.channel.lease.age(this.holder.now()) };
    return this.channel.freshness(this.holder.now());
  }

  /** For how long `live` still holds without a newer proof, in milliseconds. */
  get liveForMs() {
    return Math.max(0, this.channel.liveUntil - this.holder.now());
  }

  get isOpen() {
    return this.open;
  }

  /** Why the gateway refuses the channel; `null` while it does not. */
  get error(): TidegateError | null {
    return this.channel.refusal;
  }

  /** What to hand back to resume, as text that only the gateway reads. */
  get token() {
    return this.channel.token;
  }

  /** Calls when the state or its reason changes. */
  onFreshness(listener: (freshness: Freshness) => void): Stop {
    return this.#freshness.add(listener);
  }

  /** Closes it when the signal says so. */
  endBy(signal: AbortSignal | undefined) {
    this.onClose(onAbort(signal, () => this.close()));
  }

  /** Ends it: nothing is told any more, and the gateway is unsubscribed when nobody else follows. */
  close() {
    if (!this.open) return;
    this.open = false;
    this.holder.release(this);
    for (const stop of [...this.#closed]) stop();
    this.look();
  }

  /** The client looks whether something is to be told. */
  look() {
    const word = this.#word();
    if (word === this.#said) return;
    this.#said = word;
    this.#freshness.tell(this.freshness);
  }

  protected onClose(stop: Stop): Stop {
    this.#closed.add(stop);
    return () => void this.#closed.delete(stop);
  }

  #word() {
    const { state, reason } = this.freshness;
    return `${state} ${reason}`;
  }

  /** An iterator over what `take` gives, woken by `listen`. */
  protected iterate<T>(listen: (wake: () => void) => Stop, take: () => T | undefined): AsyncIterableIterator<T> {
    let wake = () => {};
    let done = !this.open;
    const end = () => { done = true; stop(); forget(); wake(); };
    const stop = listen(() => wake());
    const forget = this.onClose(end);
    const iterator: AsyncIterableIterator<T> = {
      next: async () => {
        for (;;) {
          const value = take();
          if (value !== undefined) return { value, done: false };
          if (done) return { value: undefined, done: true };
          await new Promise<void>((resolve) => { wake = resolve; });
        }
      },
      return: async () => { end(); return { value: undefined, done: true }; },
      [Symbol.asyncIterator]: () => iterator,
    };
    return iterator;
  }
}

/** One view: a live map of rows. */
export class View<T = unknown> extends Handle implements AsyncIterable<Change<T>> {
  #changes = new Listeners<readonly Change<T>[]>();
  #fresh = new Map<string, Change<T>>();

  /** The rows as they are now, by row id. The same map for the handle's whole life. */
  get rows(): ReadonlyMap<string, T> {
    return this.channel.rows.data as ReadonlyMap<string, T>;
  }

  get(row: string): T | undefined {
    return this.rows.get(row);
  }

  /** When the row's value came to be, in milliseconds since 1970, by the publisher. */
  ts(row: string): number | undefined {
    return this.rows.has(row) ? this.channel.rows.marks.get(row)?.ts : undefined;
  }

  /** Calls with what changed, several rows at once where they came at once. */
  onChange(listener: (changes: readonly Change<T>[]) => void): Stop {
    return this.#changes.add(listener);
  }

  /** The client tells of a row; the page is told at the next `look`. */
  note(change: Change<T>) {
    const before = this.#fresh.get(change.row);
    this.#fresh.set(change.row, before ? { ...change, previous: before.previous } : change);
  }

  override look() {
    if (this.#fresh.size && this.open) {
      const changes = [...this.#fresh.values()];
      this.#fresh.clear();
      this.#changes.tell(changes);
    }
    super.look();
  }

  /** The changes from now on; a reader that is slow gets the newest of each row. */
  [Symbol.asyncIterator](): AsyncIterableIterator<Change<T>> {
    const waiting = new Map<string, Change<T>>();
    const listen = (wake: () => void) => this.onChange((changes) => {
      for (const change of changes) waiting.set(change.row, change);
      wake();
    });
    return this.iterate(listen, () => {
      const [next] = waiting;
      if (next) waiting.delete(next[0]);
      return next?.[1];
    });
  }

  /** Resolves once the rows are whole and live; rejects when the signal says so, or the view is closed or refused. */
  async live(signal?: AbortSignal): Promise<this> {
    for (;;) {
      if (signal?.aborted) throw new TidegateError('aborted', 'the signal was aborted', undefined, { cause: signal.reason });
      if (!this.open) throw new TidegateError('ended', 'the view was closed');
      if (this.error && this.error.retryAfterMs === undefined) throw this.error;
      if (this.freshness.state === 'live') return this;
      await new Promise<void>((resolve) => {
        const stops = [this.onFreshness(() => done()), onAbort(signal, () => done()), this.onClose(() => done())];
        const done = () => { stops.forEach((stop) => stop()); resolve(); };
      });
    }
  }
}

/** One channel of events. */
export class Events<T = unknown> extends Handle implements AsyncIterable<EventItem<T>> {
  #items = new Listeners<EventItem<T>>();

  /** Calls with each event, and with each gap in its place. */
  onEvent(listener: (item: EventItem<T>) => void): Stop {
    return this.#items.add(listener);
  }

  /** The client tells of an event. */
  note(item: EventItem<T>) {
    if (this.open) this.#items.tell(item);
  }

  /** The events from now on; a reader that is too slow is told of a gap. */
  [Symbol.asyncIterator](): AsyncIterableIterator<EventItem<T>> {
    const waiting: EventItem<T>[] = [];
    const listen = (wake: () => void) => this.onEvent((item) => {
      waiting.push(item);
      if (waiting.length > EVENTS_MAX) waiting.splice(0, waiting.length / 2, ...lost(waiting));
      wake();
    });
    return this.iterate(listen, () => waiting.shift());
  }
}

/** One gap in the place of the older half of what waits. */
function lost<T>(waiting: readonly EventItem<T>[]): EventItem<T>[] {
  const gone = waiting.slice(0, waiting.length / 2);
  const count = gone.reduce((sum, item) => sum + (item.type === 'gap' ? item.dropped ?? 0 : 1), 0);
  const ends = (item: EventItem<T>) => (item.type === 'gap' ? item.to ?? '' : item.position);
  const first = gone[0]!;
  const from = first.type === 'gap' ? first.from : first.position;
  return [{ type: 'gap', from, to: ends(gone.at(-1)!), reason: 'slow_reader', dropped: count }];
}
