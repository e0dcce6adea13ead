/**
 * Positions and tokens: reading, writing, comparing.
 *
 * Does: turns `0.e7:1042,1.e7:998` into positions and back. Owns: nothing. Never knows: channels.
 * Keeps: offsets are numbers of any length, or pairs of them; never compared as text or as floating point.
 */
import { badAnswer } from './errors.js';

/** Where a partition's log is. Offsets of different epochs mean nothing to each other. */
export interface Position {
  readonly partition: number;
  readonly epoch: string;
  /** Decimal digits, or two numbers joined by `-`, without leading zeros. */
  readonly offset: string;
}

const PARTITION_MAX = 2 ** 32 - 1;
const TOKEN_MAX = 4096;
const SHAPE = /^(\d{1,10})\.([\w-]{1,64}):(\d+(?:-\d+)?)$/;

/** Throws `bad_answer` when the text is not a position. */
export function parsePosition(text: unknown): Position {
  const parts = typeof text === 'string' && text.length <= TOKEN_MAX ? SHAPE.exec(text) : null;
  if (!parts || Number(parts[1]) > PARTITION_MAX) throw badAnswer(`not a position: ${String(text).slice(0, 80)}`);
  return { partition: Number(parts[1]), epoch: parts[2]!, offset: parts[3]!.replace(/(^|-)0+(?=\d)/g, '$1') };
}

/** The positions that a token joins, each partition once. Throws `bad_answer`. */
export function parseToken(text: unknown): Position[] {
  const positions = typeof text === 'string' && text.length <= TOKEN_MAX ? text.split(',').map(parsePosition) : [];
  if (!positions.length || new Set(positions.map((at) => at.partition)).size < positions.length) {
    throw badAnswer(`not a token: ${String(text).slice(0, 80)}`);
  }
  return positions;
}

/** One position as text. */
export const formatPosition = (at: Position) => `${at.partition}.${at.epoch}:${at.offset}`;

/** Positions as a token, in order of their partitions; empty where there are none. */
export const formatToken = (positions: Iterable<Position>) =>
  [...positions].sort((a, b) => a.partition - b.partition).map(formatPosition).join(',');

/** Below zero, zero or above, as numbers of any length; a pair by its left number first. */
export function compareOffsets(a: string, b: string): number {
  const left = a.split('-');
  const right = b.split('-');
  return compareDigits(left[0]!, right[0]!) || compareDigits(left[1] ?? '0', right[1] ?? '0');
}

// Without leading zeros the longer number is the larger, and text of one length compares as numbers do.
const compareDigits = (a: string, b: string) => a.length - b.length || (a < b ? -1 : Number(a > b));

/** Whether `at` is not after `mark`, which only means something in the same partition and epoch. */
export const passed = (mark: Position | undefined, at: Position) =>
  mark !== undefined && mark.partition === at.partition && mark.epoch === at.epoch
  && compareOffsets(at.offset, mark.offset) <= 0;
