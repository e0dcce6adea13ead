/**
 * How fresh a channel is: `live` as a lease that lapses by itself.
 *
 * Does: takes proofs and bad news, says the state. Owns: the newest proof. Never knows: rows, sockets, the time of day.
 * Keeps: only a proof of this connection renews `live`; an error in the node's clock makes data look older, never younger;
 * bad news counts until a proof that it did not know of.
 */

/** What may be said of a channel's rows. */
export type FreshnessState = 'live' | 'connecting' | 'catching_up' | 'stale' | 'unavailable';

/** What is known of a channel's freshness, as of the moment of asking. */
export interface Freshness {
  readonly state: FreshnessState;
  /** Why it is not live: a reason of the gateway, a code of an error, or one of SPEC.md's own. */
  readonly reason: string | null;
  /** Milliseconds since the newest proof; `null` where there never was one. */
  readonly ageMs: number | null;
}

/** What a connection tells its channels. */
export interface Greeting {
  /** The time of ours at which the node's clock said zero, or a little earlier. */
  readonly offset: number;
  readonly liveForMs: number;
}

const NEVER = -Infinity;

export class Lease {
  #provenAt = NEVER;
  #until = NEVER;
  #verdict: { state: string; reason: string | null; knownAt: number } | null = null;

  /** The connection ended, or a subscription began: what was proven counts for the age only. */
  drop() {
    this.#until = NEVER;
    this.#verdict = null;
  }

  /** A proof, in the node's clock. */
  prove(provedAtMs: number, by: Greeting, now: number) {
    const provenAt = Math.min(now, by.offset + provedAtMs);
    this.#provenAt = Math.max(this.#provenAt, provenAt);
    this.#until = Math.max(this.#until, provenAt + by.liveForMs);
    if (this.#verdict && provenAt > this.#verdict.knownAt) this.#verdict = null;
  }

  /** Bad news. A `live` in it renews nothing. */
  judge(state: string, reason: string | null, ageMs: number | undefined, now: number) {
    if (state !== 'live') this.#verdict = { state, reason, knownAt: ageMs === undefined ? NEVER : now - ageMs };
  }

  /** What was proven before this client began, for example by the offline store. */
  remember(provenAt: number) {
    this.#provenAt = Math.max(this.#provenAt, provenAt);
  }

  /** The bad news that holds. */
  get verdict() {
    return this.#verdict;
  }

  /** Whether a proof came on this connection. */
  get proven() {
    return this.#until > NEVER;
  }

  /** When `live` ends. */
  get until() {
    return this.#until;
  }

  age(now: number): number | null {
    const known = Math.max(this.#provenAt, this.#verdict?.knownAt ?? NEVER);
    return known === NEVER ? null : Math.max(0, now - known);
  }
}
