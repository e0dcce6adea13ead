/**
 * How long to wait before another attempt.
 *
 * Does: full jitter. Owns: nothing. Never knows: what is attempted. Keeps: between nothing and 30 s, so that clients who
 * lost a node together do not come back together.
 */

/** Milliseconds before attempt number `attempt`, from 0; `random` is in [0, 1). */
export const backoff = (attempt: number, random: number) =>
  Math.floor(random * Math.min(30_000, 500 * 2 ** Math.min(attempt, 10)));
