/**
 * A clock that notices sleep.
 *
 * Does: adds to the page's clock what it missed while the machine slept, and tells. Owns: that sum. Never knows: what time
 * it is for. Keeps: it never goes back; a time of day that is wrong, by however much, changes nothing; one that is set
 * forward counts as sleep, which costs a reconnect and never shows old rows as live.
 */
import type { Platform } from './platform.js';

/** The time of day running this far ahead of the page's clock means that the page's clock stood still. */
const SLEPT_MS = 2_000;

export function steadyClock({ now, wall }: Platform, slept: () => void): () => number {
  let lead = wall() - now();
  let missed = 0;
  return () => {
    const page = now();
    const ahead = wall() - page;
    if (ahead - lead > SLEPT_MS) {
      missed += ahead - lead;
      slept();
    }
    lead = ahead;
    return page + missed;
  };
}
