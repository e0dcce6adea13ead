/**
 * What a client knows, from what the gateway said: rows, token, lease, freshness.
 *
 * Does: folds the messages of one connection (`Link`) and of each of its channels (`Channel`) into state.
 * Owns: that state. Never knows: a socket, a timer, a page. Time comes in as `now`, in milliseconds of a clock that
 * never goes back (`performance.now()` in a browser).
 * Keeps: a snapshot is shown only whole; a position that was passed is ignored; only a heartbeat's proof renews `live`,
 * and an error in the reading of the node's clock only ever makes data look older than it is.
 */

/** Rows that a snapshot may hold before it is refused. */
const SNAPSHOT_ROWS_MAX = 200_000;
/** Deleted rows whose last position is remembered. */
const GRAVES_MAX = 10_000;
/** Longest lease that a node may grant, in milliseconds. */
const LIVE_FOR_MAX = 3_600_000;

/** The gateway said something that the protocol does not allow: the connection must start afresh. */
export class ProtocolError extends Error {}

/**
 * A position from its text, `partition.epoch:offset`.
 * @throws {ProtocolError} when the text is not a position.
 */
export function parsePosition(text) {
  const parts = /^(\d{1,10})\.([\w-]{1,64}):(\d{1,200}(?:-\d{1,200})?)$/.exec(text);
  if (!parts) throw new ProtocolError(`not a position: ${String(text).slice(0, 80)}`);
  return { partition: Number(parts[1]), epoch: parts[2], offset: parts[3] };
}

/** The positions that a token joins by commas. */
export const parseToken = (text) => String(text).split(',').map(parsePosition);

/** Below zero, zero or above: two offsets compared as numbers of any length, or as pairs of them. */
export function compareOffsets(a, b) {
  const [left, right] = [a, b].map((offset) => offset.split('-'));
  for (let i = 0; i < Math.max(left.length, right.length); i += 1) {
    const order = compareDigits(left[i] ?? '0', right[i] ?? '0');
    if (order) return order;
  }
  return 0;
}

function compareDigits(a, b) {
  const [left, right] = [a, b].map((digits) => digits.replace(/^0+(?=\d)/, ''));
  if (left.length !== right.length) return left.length - right.length;
  return left < right ? -1 : Number(left > right);
}

const passed = (mark, position) => mark !== undefined && mark.partition === position.partition
  && mark.epoch === position.epoch && compareOffsets(position.offset, mark.offset) <= 0;

/** One connection: whether it stands, and how the node's clock reads in ours. */
export class Link {
  /** `waiting` between two attempts, `connecting`, `open` from `hello` on, `refused` for good. */
  phase = 'connecting';
  /** How the node's clock reads in ours, at the latest: ours = `offset` + the node's, or a little later. */
  offset = 0;
  heartbeatMs = 25_000;
  liveForMs = 30_000;
  /** When the next attempt begins. */
  retryAt = null;
  /** What the gateway or the browser said when it ended. */
  message = null;

  /** An attempt begins: every later reading of the node's clock is later than this. */
  begin(now) {
    Object.assign(this, { phase: 'connecting', begunAt: now, retryAt: null });
  }

  /** `hello`. Its clock was read after `begin`, so a proof is never taken to be younger than it is. */
  hello(message) {
    const [nodeNow, heartbeat, liveFor] = [message.now_ms, message.heartbeat_ms, message.live_for_ms].map(Number);
    if (![nodeNow, heartbeat, liveFor].every(Number.isFinite)) {
      throw new ProtocolError('hello without now_ms, heartbeat_ms or live_for_ms');
    }
    this.phase = 'open';
    this.message = null;
    this.offset = this.begunAt - nodeNow;
    this.heartbeatMs = Math.min(Math.max(heartbeat, 100), LIVE_FOR_MAX);
    this.liveForMs = Math.min(Math.max(liveFor, 0), LIVE_FOR_MAX);
  }

  /** It ended; `retryAt` is null when it will not be tried again. */
  end(now, retryAt, message = null) {
    Object.assign(this, { phase: retryAt === null ? 'refused' : 'waiting', begunAt: now, retryAt, message });
  }
}

/** One channel: its rows, its token, and what is known of its freshness. */
export class Channel {
  /** Row id to `{ts, data, at}`, as the partition with the highest number has it that has said anything of it; `at` is its last position. */
  rows = new Map();
  /** Updates that were applied, since the page was opened. */
  updates = 0;
  /** The newest position received, as text. */
  position = null;

  #token = new Map();
  #floor = new Map();
  /** What each partition said of its rows, by partition: as above, or `{deleted, at}`. */
  #lanes = new Map();
  #graves = new Map();
  #staged = null;
  #phase = 'asking';
  #answeredAt = 0;
  #verdict = null;
  #refusal = null;
  #provenAt = null;
  #leaseUntil = null;

  constructor(name) {
    this.name = name;
  }

  /** What to hand back to resume; empty before the first position. */
  get token() {
    return [...this.#token.values()].sort((a, b) => a.partition - b.partition)
      .map((p) => `${p.partition}.${p.epoch}:${p.offset}`).join(',');
  }

  /** The connection ended or a new one began: nothing is live until a proof of the new one, no snapshot is finished. */
  reset() {
    this.#staged = null;
    this.#phase = 'asking';
    this.#verdict = null;
    this.#refusal = null;
    this.dropLease();
  }

  /** Nothing proves any more that the rows are live. */
  dropLease() {
    this.#leaseUntil = null;
  }

  /** Forgets where it was, so that the next subscription begins with a snapshot. The rows stay to be looked at. */
  forget() {
    this.#token.clear();
  }

  /** The answer to the subscription, or the `outcome` that follows `catching_up` or comes over SSE. */
  outcome(answer, now) {
    const phase = { resumed: 'following', started: 'following', snapshot: 'loading', catching_up: 'catching_up' };
    this.#refusal = null;
    this.#answeredAt = now;
    this.#phase = phase[answer.outcome] ?? 'asking';
    this.#staged = null;
    this.dropLease();
    if (!phase[answer.outcome]) this.refuse(answer.error ?? { code: String(answer.outcome) });
  }

  /** The subscription was refused. */
  refuse(error) {
    this.#refusal = { code: error.code ?? 'refused', message: error.message ?? null };
  }

  /**
   * Any message that names this channel.
   * @throws {ProtocolError} when it breaks the protocol, or when something of the view is lost; `forget` was called then.
   */
  receive(message, link, now) {
    try {
      this.#handlers[message.op]?.(message, link, now);
    } catch (error) {
      this.forget();
      throw error;
    }
  }

  #handlers = {
    snapshot: (message, link, now) => this.#snapshot(message, now),
    update: (message) => this.#update(message),
    heartbeat: (message, link, now) => this.#heartbeat(message, link, now),
    freshness: (message, link, now) => this.#judged(message, now),
    outcome: (message, link, now) => this.outcome(message, now),
    gap: (message) => {
      throw new ProtocolError(`updates of ${this.name} are missing: ${message.reason}`);
    },
  };

  #snapshot(message, now) {
    const part = message.part ?? 0;
    if (part === 0) this.#staged = { parts: 0, rows: new Map() };
    const staged = this.#staged;
    if (staged?.parts !== part) throw new ProtocolError(`part ${part} of a snapshot came out of turn`);
    staged.parts += 1;
    for (const [row, value] of Object.entries(message.rows ?? {})) staged.rows.set(row, value);
    if (staged.rows.size > SNAPSHOT_ROWS_MAX) throw new ProtocolError('a snapshot is too large');
    if (message.more) return;
    this.#staged = null;
    this.#replace(staged.rows, parsePosition(message.position));
    this.#phase = 'following';
    this.#answeredAt = now;
  }

  /** Puts a whole snapshot in the place of what its partition said before. */
  #replace(fresh, at) {
    const lane = this.#lane(at.partition);
    const gone = [...lane.keys()];
    for (const row of gone) this.#graves.delete(`${at.partition} ${row}`);
    lane.clear();
    for (const [row, { ts, data, deleted }] of fresh) {
      if (deleted) this.#bury(at.partition, row, undefined);
      else lane.set(row, { ts, data });
    }
    for (const row of [...gone, ...fresh.keys()]) this.#show(row);
    this.#token.set(at.partition, at);
    this.#floor.set(at.partition, at);
    this.position = this.token;
  }

  #lane(partition) {
    if (!this.#lanes.has(partition)) this.#lanes.set(partition, new Map());
    return this.#lanes.get(partition);
  }

  /** Of a row the newest partition is right that has said anything of it. */
  #show(row) {
    const said = [...this.#lanes].filter(([, lane]) => lane.has(row));
    const newest = said.reduce((best, one) => (best && best[0] > one[0] ? best : one), null);
    const entry = newest?.[1].get(row);
    if (entry && !entry.deleted) this.rows.set(row, entry);
    else this.rows.delete(row);
  }

  #update(message) {
    const at = parsePosition(message.position);
    const row = message.row ?? '';
    const lane = this.#lane(at.partition);
    if (passed(this.#floor.get(at.partition), at) || passed(lane.get(row)?.at, at)) return;
    this.#advance(at);
    this.updates += 1;
    this.#graves.delete(`${at.partition} ${row}`);
    if (message.deleted) this.#bury(at.partition, row, at);
    else lane.set(row, { ts: message.ts, data: message.data, at });
    this.#show(row);
  }

  /** Remembers that a partition deleted a row: for a while, or as long as an older one has it. */
  #bury(partition, row, at) {
    this.#lane(partition).set(row, { deleted: true, at });
    this.#graves.set(`${partition} ${row}`, { partition, row });
    if (this.#graves.size <= GRAVES_MAX) return;
    const [key, oldest] = this.#graves.entries().next().value;
    this.#graves.delete(key);
    const others = [...this.#lanes].filter(([other]) => other < oldest.partition);
    if (others.some(([, lane]) => lane.has(oldest.row))) this.#graves.set(key, oldest);
    else this.#lanes.get(oldest.partition)?.delete(oldest.row);
  }

  #advance(position) {
    if (passed(this.#token.get(position.partition), position)) return;
    this.#token.set(position.partition, position);
    this.position = `${position.partition}.${position.epoch}:${position.offset}`;
  }

  #heartbeat(message, link, now) {
    if (message.position) parseToken(message.position).forEach((position) => this.#advance(position));
    if (!Number.isFinite(message.proved_at_ms)) return;
    const provenAt = Math.min(now, link.offset + message.proved_at_ms);
    this.#provenAt = Math.max(this.#provenAt ?? -Infinity, provenAt);
    this.#leaseUntil = Math.max(this.#leaseUntil ?? -Infinity, provenAt + link.liveForMs);
    if (this.#verdict && provenAt > this.#verdict.provenAt) this.#verdict = null;
  }

  /** Bad news counts until a proof that is newer than the newest one that it knew of; good news renews nothing. */
  #judged(message, now) {
    if (message.state === 'live') return;
    const aged = Number.isFinite(message.age_ms);
    this.#verdict = {
      state: message.state,
      reason: message.reason ?? null,
      provenAt: aged ? now - message.age_ms : -Infinity,
    };
  }

  /**
   * What may be said of the rows now: `state` is `live`, `stale`, `catching_up`, `connecting` or `unavailable`;
   * `reason` is none when live; `ageMs` counts from the newest proof and is none when there never was one.
   */
  freshness(link, now) {
    const ageMs = this.#age(now);
    const say = (state, reason = null, message = null) => ({ state, reason, message, ageMs });
    if (link.phase === 'refused') return say('unavailable', 'closed', link.message);
    if (this.#refusal) return say('unavailable', this.#refusal.code, this.#refusal.message);
    if (link.phase === 'open' && this.#verdict) return say(this.#verdict.state, this.#verdict.reason);
    if (link.phase !== 'open') {
      return this.rows.size || ageMs !== null ? say('stale', 'disconnected') : say('connecting', null, link.message);
    }
    if (this.#phase === 'asking') return say('connecting');
    if (this.#phase !== 'following') return say('catching_up', this.#phase);
    if (this.#leaseUntil !== null && now < this.#leaseUntil) return say('live');
    const waiting = this.#leaseUntil === null && now < this.#answeredAt + link.liveForMs;
    return waiting ? say('catching_up', 'awaiting_proof') : say('stale', 'lapsed');
  }

  #age(now) {
    const known = Math.max(this.#provenAt ?? -Infinity, this.#verdict?.provenAt ?? -Infinity);
    return known === -Infinity ? null : Math.max(0, now - known);
  }
}

/** Whether a WebSocket that was closed with this code may be opened again. */
export const mayReconnect = (code) => !(code >= 4500 && code <= 4999);

/**
 * Milliseconds to wait before attempt number `attempt` (from 0): anywhere between nothing and twice as much as before,
 * at most 30 s, so that clients who lost a node together do not come back together. `random` is in [0, 1).
 */
export const backoff = (attempt, random) => Math.floor(random * Math.min(30_000, 500 * 2 ** Math.min(attempt, 10)));
