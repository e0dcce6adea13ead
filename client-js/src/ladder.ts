/**
 * Which transport to use: the best that works here.
 *
 * Does: steps down when one does not get through, remembers what worked, says when to try a better one again. Owns:
 * nothing; a ladder is a value. Never knows: sockets. Keeps: a transport that worked is not left for one failure; a better
 * one is tried again, later each time it fails.
 */

/** The transports, best first: WebSocket, server-sent events read by `fetch`, long-polling. */
export type TransportName = 'ws' | 'sse' | 'poll';

export interface Ladder {
  readonly rungs: readonly TransportName[];
  /** The one in use, as an index of `rungs`. */
  readonly at: number;
  /** Failures in a row on it. */
  readonly failures: number;
  /** The best that ever worked here; -1 for none. */
  readonly worked: number;
  /** When to try a better one; infinite on the best. */
  readonly probeAt: number;
  readonly probeWait: number;
}

const FIRST_PROBE_MS = 30_000;
const LAST_PROBE_MS = 3_600_000;
/** Failures in a row after which a transport that has worked is left: the node may just be restarting. */
const PATIENCE = 3;

/** A ladder that begins with `remembered`, what worked the last time, if it is one of the rungs. */
export function ladder(rungs: readonly TransportName[], remembered: TransportName | null, now: number): Ladder {
  const worked = remembered === null ? -1 : rungs.indexOf(remembered);
  return { rungs, at: Math.max(0, worked), failures: 0, worked, probeWait: FIRST_PROBE_MS, probeAt: worked > 0 ? now + FIRST_PROBE_MS : Infinity };
}

/** The transport in use got through. */
export function worked(l: Ladder, now: number): Ladder {
  const probeAt = l.at === 0 ? Infinity : l.probeAt === Infinity ? now + l.probeWait : l.probeAt;
  return { ...l, failures: 0, worked: l.at, probeAt };
}

/** It did not: the next one down, and from the last one back to the best. */
export function failed(l: Ladder): Ladder {
  const failures = l.failures + 1;
  if (l.worked === l.at && failures < PATIENCE) return { ...l, failures };
  return { ...l, at: (l.at + 1) % l.rungs.length, failures: 0, probeAt: Infinity };
}

/** A better one was tried beside: if it got through it is used from now on, else it is tried later. */
export function probed(l: Ladder, through: boolean, now: number): Ladder {
  if (through) return { ...l, at: l.at - 1, failures: 0, worked: l.at - 1, probeWait: FIRST_PROBE_MS, probeAt: Infinity };
  const probeWait = Math.min(l.probeWait * 2, LAST_PROBE_MS);
  return { ...l, probeWait, probeAt: now + probeWait };
}
