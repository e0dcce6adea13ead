/**
 * What the gateway says, checked.
 *
 * Does: turns the text of a message into one of a closed set of types. Owns: nothing. Never knows: what follows from it.
 * Keeps: text from outside becomes a typed message, `null` (an operation of a newer gateway), or a thrown `bad_answer`.
 */
import { TidegateError, badAnswer } from './errors.js';

export interface Hello { op: 'hello'; now_ms: number; heartbeat_ms: number; live_for_ms: number; limits?: { message_bytes?: number } }
export interface WireError { code: string; message?: string; retry_after_ms?: number }
export interface Outcome { op: 'outcome'; channel: string; outcome?: string; reason?: string; error?: WireError }
export interface Snapshot {
  op: 'snapshot'; channel: string; part: number; rows: Record<string, { ts: number; data?: unknown; deleted?: boolean }>; more?: boolean; position?: string;
}
export interface Update { op: 'update'; channel: string; position: string; ts: number; row: string; data?: unknown; deleted?: boolean }
export interface Heartbeat { op: 'heartbeat'; channel: string; position?: string; proved_at_ms?: number }
export interface Judgement { op: 'freshness'; channel: string; state: string; reason?: string; age_ms?: number }
export interface Gap { op: 'gap'; channel: string; from: string; to: string; reason: string; dropped?: number }
export interface Bye { op: 'bye'; code: string; reconnect_after_ms?: number }
export interface Reply { op?: undefined; id: number | null; ok?: Record<string, unknown>; error?: WireError }

/** A message about one channel. */
export type ChannelMessage = Outcome | Snapshot | Update | Heartbeat | Judgement | Gap;
/** Every message that this version knows. */
export type Message = Hello | ChannelMessage | Bye | Reply | { op: 'pong' };

/** Longest time that is believed, in milliseconds: what a message says beyond it counts as this. */
export const LONGEST_MS = 3_600_000;

type Kind = 'number' | 'string' | 'object' | 'number?' | 'string?' | 'object?' | 'boolean?';

/** What each operation must have; whatever else it has is left alone. */
const FIELDS: Record<string, Record<string, Kind>> = {
  hello: { now_ms: 'number', heartbeat_ms: 'number', live_for_ms: 'number', limits: 'object?' },
  outcome: { channel: 'string', outcome: 'string?', error: 'object?' },
  snapshot: { channel: 'string', part: 'number', rows: 'object', more: 'boolean?', position: 'string?' },
  update: { channel: 'string', position: 'string', ts: 'number', row: 'string', deleted: 'boolean?' },
  heartbeat: { channel: 'string', position: 'string?', proved_at_ms: 'number?' },
  freshness: { channel: 'string', state: 'string', reason: 'string?', age_ms: 'number?' },
  gap: { channel: 'string', from: 'string', to: 'string', reason: 'string', dropped: 'number?' },
  bye: { code: 'string', reconnect_after_ms: 'number?' },
  pong: {},
};

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

function fits(value: unknown, kind: Kind): boolean {
  if (value === undefined) return kind.endsWith('?');
  if (kind.startsWith('object')) return isObject(value);
  return typeof value === kind.replace('?', '') && (typeof value !== 'number' || Number.isFinite(value));
}

/** Reads one message. Throws `bad_answer`; gives `null` for an operation that it does not know. */
export function decode(text: unknown): Message | null {
  let value: unknown;
  try {
    value = JSON.parse(text as string);
  } catch {
    throw badAnswer(`not JSON: ${String(text).slice(0, 80)}`);
  }
  if (!isObject(value)) throw badAnswer('not an object');
  const op = value['op'];
  if (op === undefined) return reply(value);
  const fields = Object.hasOwn(FIELDS, op as string) ? FIELDS[op as string] : undefined;
  if (!fields) return null;
  for (const [field, kind] of Object.entries(fields)) {
    if (!fits(value[field], kind)) throw badAnswer(`${String(op)} with a bad ${field}`);
  }
  if (op === 'update' && !value['deleted'] && !('data' in value)) throw badAnswer('update without data');
  if (op === 'snapshot') checkRows(value['rows'] as object);
  return value as unknown as Message;
}

function reply(value: Record<string, unknown>): Reply {
  if (!isObject(value['ok']) && !isObject(value['error'])) throw badAnswer('neither an operation nor an answer');
  return value as unknown as Reply;
}

function checkRows(rows: object) {
  for (const row of Object.values(rows)) {
    if (!isObject(row) || !('data' in row || row['deleted']) || !fits(row['ts'], 'number')) throw badAnswer('snapshot with a bad row');
  }
}

/** Whole milliseconds that can be waited for, or nothing where none were said. */
export const clampMs = (ms: unknown): number | undefined =>
  typeof ms === 'number' && ms >= 0 ? Math.min(ms, LONGEST_MS) : undefined;

/** A refusal as an error. */
export const refusalOf = (error: WireError | undefined) =>
  new TidegateError(String(error?.code ?? 'internal'), error?.message ?? error?.code, clampMs(error?.retry_after_ms));
