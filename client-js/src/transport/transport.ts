/**
 * What all transports have in common.
 *
 * Does: says what a transport is given and what it tells. Owns: how an HTTP refusal and a close code become an end. Never
 * knows: what messages mean. Keeps: whatever comes back, also a proxy's page, becomes an end with a code.
 */
import type { Channel } from '../channel.js';
import { TidegateError } from '../errors.js';
import type { End } from '../machine.js';
import type { Platform } from '../platform.js';
import { clampMs } from '../wire.js';

/** What a transport tells. After `ended` it tells nothing more. */
export interface Ear {
  /** One message of the gateway, as text or as what it would have said; `begun`: when the request began. */
  message(message: unknown): void;
  /** The id to come back with, over SSE. */
  id(id: string): void;
  ended(end: End): void;
}

/** What a transport is given. */
export interface Call {
  readonly base: URL;
  readonly platform: Platform;
  readonly token: string | undefined;
  readonly credentials: RequestCredentials | undefined;
  /** The channels as of now. */
  channels(): readonly Channel[];
  /** The id to resume from, over SSE. */
  readonly lastId: string;
  readonly ear: Ear;
}

/** An open transport. */
export interface Wire {
  /** Sends a message, where it can. */
  send?(message: object): void;
  /** A channel is asked for, where that needs no new request. */
  nudge?(channel: Channel): void;
  close(): void;
}

export type Open = (call: Call) => Wire;

const WORDS: Record<number, string> = {
  1000: 'normal', 1002: 'protocol', 1003: 'unsupported', 1007: 'invalid_text', 1009: 'too_big', 1011: 'internal',
  1012: 'draining', 1013: 'overloaded', 4000: 'slow_consumer', 4001: 'token_expired', 4002: 'idle_timeout',
  4003: 'rate_limited', 4004: 'too_slow', 4005: 'moved', 4500: 'auth_timeout', 4501: 'unauthorized', 4502: 'closed',
};
const FINAL_WORDS = ['auth_timeout', 'unauthorized', 'closed'];

/** A WebSocket's close. Without a code of the gateway the way to it may be what fails. */
export const closeEnd = (code: number, reason: string): End => ({
  error: new TidegateError(WORDS[code] ?? 'network', reason || WORDS[code] || `the connection was cut (${code})`),
  final: code >= 4500 && code <= 4999,
  blocked: !WORDS[code],
});

/** A `bye`. */
export const byeEnd = (word: string, afterMs: unknown): End =>
  ({ error: new TidegateError(word, `the gateway said goodbye: ${word}`, clampMs(afterMs)), final: FINAL_WORDS.includes(word) });

/** What a request throws. */
export const thrownEnd = (error: unknown): End => (error instanceof TidegateError
  ? { error, blocked: error.code === 'http' || error.code === 'silent' }
  : { error: new TidegateError('network', `no answer: ${String(error)}`, undefined, { cause: error }), blocked: true });

/** The error of an answer that is none of 2xx; of whatever body. */
export async function problemOf(response: Response): Promise<TidegateError> {
  const text = await response.text().catch(() => '');
  const after = clampMs(Number(response.headers.get('retry-after') ?? NaN) * 1000);
  try {
    const { code, detail } = JSON.parse(text);
    if (typeof code === 'string') return new TidegateError(code, detail ?? code, after);
  } catch {
    // Not the gateway's words: a proxy's, told below.
  }
  return new TidegateError('http', `${response.status} that is not the gateway's: ${text.slice(0, 80)}`, after);
}

/** An answer that is none of 2xx, as an end. */
export async function refusedEnd(response: Response): Promise<End> {
  const error = await problemOf(response);
  const own = error.code !== 'http';
  const { status } = response;
  return {
    error,
    final: own && status === 401 && error.code !== 'token_expired',
    refused: own && [400, 403, 404, 422].includes(status),
    blocked: !own && status < 500,
  };
}

/** Headers with the token, where there is one. */
export const headersOf = (token: string | undefined, more: Record<string, string> = {}) =>
  (token === undefined ? more : { ...more, authorization: `Bearer ${token}` });
