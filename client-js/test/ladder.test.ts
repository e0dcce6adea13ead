/**
 * The ladder of transports: one that worked is not left for one failure, below the last is the first, better ones are tried.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Ladder, failed, ladder, probed, worked } from '../src/ladder.js';

const ALL = ['ws', 'sse', 'poll'] as const;
const name = (l: Ladder) => l.rungs[l.at];
const times = (n: number, l: Ladder) => Array.from({ length: n }).reduce<Ladder>((before) => failed(before), l);

test('what never worked here is left at once; below the last is the first', () => {
  const first = ladder(ALL, null, 0);
  assert.deepEqual([0, 1, 2, 3].map((n) => name(times(n, first))), ['ws', 'sse', 'poll', 'ws']);
});

test('what has worked is left after three failures in a row', () => {
  const good = worked(ladder(ALL, null, 0), 0);
  assert.deepEqual([1, 2, 3].map((n) => name(times(n, good))), ['ws', 'ws', 'sse']);
  assert.equal(name(times(2, worked(times(2, good), 0))), 'ws', 'in a row');
});

test('on a lower one the better is tried after 30 s, twice as long each time it fails, an hour at most; never on the best', () => {
  assert.equal(worked(ladder(ALL, null, 0), 0).probeAt, Infinity);
  let l = worked(failed(ladder(ALL, null, 0)), 1_000);
  const waits = [l.probeAt - 1_000];
  for (let n = 0; n < 9; n += 1) {
    l = probed(l, false, 0);
    waits.push(l.probeAt);
  }
  assert.deepEqual(waits, [30, 60, 120, 240, 480, 960, 1_920, 3_600, 3_600, 3_600].map((s) => s * 1_000));
  const better = probed(l, true, 0);
  assert.deepEqual([name(better), better.probeAt], ['ws', Infinity]);
});

test('what worked the last time is the first to be tried, and the better one after it', () => {
  const again = ladder(ALL, 'poll', 500);
  assert.deepEqual([name(again), again.probeAt], ['poll', 30_500]);
  assert.equal(name(probed(again, true, 0)), 'sse');
  assert.ok(worked(probed(again, true, 0), 7).probeAt < Infinity, 'and so on, up to the best');
  assert.equal(name(ladder(['ws'], 'poll', 0)), 'ws');
});
