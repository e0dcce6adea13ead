/**
 * `tidegate/offline`: views that outlive their page.
 *
 * Does: keeps rows, token and age of views in IndexedDB, and puts them back when a page opens. Owns: the database. Never
 * knows: connections, freshness beyond the age. Keeps: what is put back is never live; a store that is missing, full or
 * broken is told once and harms nothing else; the newest of a view wins over what was kept.
 */
import type { Channel } from './channel.js';
import type { Keeper } from './client.js';
import { TidegateError } from './errors.js';
import type { Mark } from './rows.js';

export interface OfflineOptions {
  /** The database's name; of one user, since whoever opens it sees its rows. By default `tidegate`. */
  name?: string;
  /** What an older page kept under another version is forgotten. By default empty. */
  version?: string;
  /** A view of more rows is not kept; by default 10,000. */
  maxRows?: number;
  /** What is older is not shown, in milliseconds; by default a day. */
  maxAgeMs?: number;
}

/** Keeps views across pages: give it to `connect` as `keeper`. */
export interface Offline extends Keeper {
  /** Forgets one view, or all; resolves once they are gone from the disk. */
  wipe(channel?: string): Promise<void>;
}

interface Kept {
  version: string;
  rows: (readonly [string, unknown, Mark])[];
  token: string;
  /** The time of day of the newest proof. */
  provenWall: number;
}

interface Open {
  clock: { now(): number; wall(): number };
  report: (error: TidegateError) => void;
  timer: ReturnType<typeof setTimeout> | null;
}

const SAVE_MS = 2_000;
const STORE = 'views';

/** A request of IndexedDB as a promise. */
const done = <T>(request: IDBRequest<T>) => new Promise<T>((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

class Store implements Offline {
  #database: Promise<IDBDatabase> | null = null;
  #open = new Map<Channel, Open>();
  #failed = false;
  readonly #name: string;
  readonly #version: string;
  readonly #maxRows: number;
  readonly #maxAgeMs: number;

  constructor({ name = 'tidegate', version = '', maxRows = 10_000, maxAgeMs = 86_400_000 }: OfflineOptions) {
    this.#name = name;
    this.#version = version;
    this.#maxRows = maxRows;
    this.#maxAgeMs = maxAgeMs;
  }

  opened(channel: Channel, clock: Open['clock'], report: Open['report'], changed: () => void) {
    if (channel.mode !== 'view') return;
    this.#open.set(channel, { clock, report, timer: null });
    this.#load(channel).then((kept) => {
      // Whatever came meanwhile is newer.
      if (!kept || !this.#open.has(channel) || channel.token || channel.rows.data.size) return;
      const age = clock.wall() - kept.provenWall;
      // A clock that was set back says nothing of the age; then there is none.
      if (kept.version !== this.#version || age > this.#maxAgeMs) return;
      channel.restore(kept.rows, kept.token, age < 0 ? -Infinity : clock.now() - age);
      changed();
    }).catch((error) => this.#fail(report, error));
  }

  changed(channel: Channel) {
    const open = this.#open.get(channel);
    if (!open || open.timer !== null || this.#failed) return;
    open.timer = setTimeout(() => {
      open.timer = null;
      this.#save(channel, open);
    }, SAVE_MS);
  }

  released(channel: Channel) {
    const open = this.#open.get(channel);
    if (!open) return;
    this.#open.delete(channel);
    if (open.timer !== null) clearTimeout(open.timer);
    this.#save(channel, open);
  }

  async wipe(channel?: string) {
    for (const [{ name }, open] of this.#open) {
      if (channel !== undefined && channel !== name) continue;
      if (open.timer !== null) clearTimeout(open.timer);
      open.timer = null;
    }
    const store = await this.#store('readwrite');
    await done(channel === undefined ? store.clear() : store.delete(channel));
  }

  async #load(channel: Channel): Promise<Kept | undefined> {
    return done((await this.#store('readonly')).get(channel.name) as IDBRequest<Kept | undefined>);
  }

  #save(channel: Channel, { clock, report }: Open) {
    const { rows, token, lease } = channel;
    const age = lease.age(clock.now());
    // Without a proof there is nothing worth keeping; what is too large is not kept, rather than in part.
    if (this.#failed || !token || age === null || rows.data.size > this.#maxRows) return;
    const kept: Kept = {
      version: this.#version, token, provenWall: clock.wall() - age,
      rows: [...rows.data].map(([row, data]) => [row, data, rows.marks.get(row)!] as const),
    };
    this.#store('readwrite').then((store) => done(store.put(kept, channel.name))).catch((error) => this.#fail(report, error));
  }

  async #store(mode: IDBTransactionMode) {
    this.#database ??= this.#connect();
    return (await this.#database).transaction(STORE, mode).objectStore(STORE);
  }

  async #connect() {
    const request = indexedDB.open(this.#name, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    const database = await done(request);
    // Another page wants to delete it: this one must not stand in the way.
    database.onversionchange = () => database.close();
    return database;
  }

  #fail(report: Open['report'], error: unknown) {
    if (this.#failed) return;
    this.#failed = true;
    report(new TidegateError('store_failed', `the offline store: ${String(error)}`, undefined, { cause: error }));
  }
}

/** A keeper of views in IndexedDB. */
export const offline = (options: OfflineOptions = {}): Offline => new Store(options);
