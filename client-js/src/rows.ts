/**
 * The rows of a view: snapshots and updates folded in the order of positions.
 *
 * Does: applies what comes, ignores what was passed, shows a snapshot only when whole. Owns: the rows and where each was
 * last changed. Never knows: connections, freshness. Keeps: nothing is applied twice; a cut leaves the old rows.
 */
import { badAnswer } from './errors.js';
import { type Position, passed } from './position.js';
import type { Snapshot, Update } from './wire.js';

/** Rows that an unfinished snapshot may hold: more than the gateway's views may have. */
const ROWS_MAX = 1_000_000;
/** Deleted rows whose last position is remembered; the oldest goes. */
const GRAVES_MAX = 10_000;
/** How long the next part of a snapshot may take, in milliseconds. */
const PART_MS = 60_000;

/** Where a row comes from. */
export interface Mark {
  readonly ts: number;
  /** Partitions that the row may be in: one, but for rows that came by polling a view of several. */
  readonly home: readonly number[];
  /** Its last update; none since the last snapshot. */
  readonly at?: Position;
}

/** A row that came, changed or went. */
export interface Change<T = unknown> {
  readonly row: string;
  /** What it is now; `undefined` where it went. */
  readonly data: T | undefined;
  readonly previous: T | undefined;
  readonly deleted: boolean;
}

/** A row of a snapshot; one that its partition has deleted hides what an older one has of it. */
type Fresh = Snapshot['rows'][string];

/** Reads a row's value; throws where it is not one. */
export type Parse = (data: unknown, row: string) => unknown;

export class Rows {
  readonly data = new Map<string, unknown>();
  readonly marks = new Map<string, Mark>();
  #floor = new Map<number, Position>();
  #graves = new Map<string, Mark>();
  #staged: { parts: number; rows: Map<string, Fresh>; at: number } | null = null;

  constructor(private readonly parse: Parse, private readonly changed: (change: Change) => void) {}

  /** The connection ended: what was not whole is nothing. */
  cut() {
    this.#staged = null;
  }

  /** Whether the next part of a snapshot is overdue. */
  overdue(now: number) {
    return this.#staged !== null && now - this.#staged.at > PART_MS;
  }

  /** A part; says whether the snapshot is whole. `positions` are those of its last part. Throws `bad_answer`. */
  snapshot(message: Snapshot, positions: Position[] | null, now: number): boolean {
    if (message.part === 0) this.#staged = { parts: 0, rows: new Map(), at: now };
    const staged = this.#staged;
    if (staged?.parts !== message.part) throw badAnswer(`part ${message.part} of a snapshot came out of turn`);
    staged.parts += 1;
    staged.at = now;
    for (const [row, value] of Object.entries(message.rows)) staged.rows.set(row, value);
    if (staged.rows.size > ROWS_MAX) throw badAnswer('a snapshot does not end');
    if (!positions) return false;
    this.#staged = null;
    this.#replace(staged.rows, positions);
    return true;
  }

  /** Puts a whole snapshot in the place of the rows of the partitions that it names. */
  #replace(fresh: Map<string, Fresh>, positions: Position[]) {
    const home = positions.map((at) => at.partition);
    for (const [row, mark] of this.marks) {
      if (fresh.has(row)) continue;
      const left = mark.home.filter((partition) => !home.includes(partition));
      if (!left.length) this.#remove(row);
      else if (left.length < mark.home.length) this.marks.set(row, { ...mark, home: left });
    }
    for (const [row, grave] of this.#graves) if (home.includes(grave.home[0]!)) this.#graves.delete(row);
    for (const at of positions) this.#floor.set(at.partition, at);
    for (const [row, { ts, data, deleted }] of fresh) this.#apply(row, data, deleted, { ts, home });
  }

  /** Applies an update, unless its position was passed; says whether it counted. */
  update(message: Update, at: Position): boolean {
    const { row } = message;
    if (passed(this.#floor.get(at.partition), at) || passed(this.#known(row)?.at, at)) return false;
    const { ts, data, deleted } = message;
    this.#apply(row, data, deleted, { ts, home: [at.partition], at });
    return true;
  }

  /** What was said last of a row, that it went included. */
  #known(row: string) {
    return this.marks.get(row) ?? this.#graves.get(row);
  }

  /** What a partition says of a row: of a channel that has moved a newer one is right, whatever an older one says. */
  #apply(row: string, data: unknown, deleted: boolean | undefined, mark: Mark) {
    if ((this.#known(row)?.home[0] ?? -1) > mark.home.at(-1)!) return;
    this.#graves.delete(row);
    if (!deleted) return this.#set(row, data, mark);
    this.#remove(row);
    this.#graves.set(row, mark);
    if (this.#graves.size > GRAVES_MAX) this.#graves.delete(this.#graves.keys().next().value!);
  }

  /** Puts rows back that an earlier page kept, as it had read them. */
  restore(rows: Iterable<readonly [string, unknown, Mark]>) {
    for (const [row, data, mark] of rows) {
      this.marks.set(row, mark);
      this.data.set(row, data);
      this.changed({ row, data, previous: undefined, deleted: false });
    }
  }

  #set(row: string, raw: unknown, mark: Mark) {
    const previous = this.data.get(row);
    const data = this.parse(raw, row);
    const known = this.data.has(row);
    if (data === undefined) this.#remove(row);
    this.marks.set(row, mark);
    if (data === undefined) return;
    // The same value again in a snapshot keeps its identity, so that nobody draws it twice.
    if (known && !mark.at && JSON.stringify(previous) === JSON.stringify(data)) return;
    this.data.set(row, data);
    this.changed({ row, data, previous, deleted: false });
  }

  #remove(row: string) {
    const previous = this.data.get(row);
    this.marks.delete(row);
    if (this.data.delete(row)) this.changed({ row, data: undefined, previous, deleted: true });
  }
}
