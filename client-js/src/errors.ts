/**
 * What can go wrong, as one class with a code.
 *
 * Does: names every failure. Owns: nothing. Never knows: who failed. Keeps: codes of the gateway pass through unchanged,
 * also those that this version does not know; the SDK's own are listed here and in SPEC.md.
 */

/** Codes of the gateway: the error codes of the protocol's page, and the words of its close codes. */
export type GatewayCode =
  | 'bad_message' | 'unknown_op' | 'bad_channel' | 'bad_token' | 'bad_request' | 'bad_record' | 'unknown_stream'
  | 'not_found' | 'unauthorized' | 'token_expired' | 'forbidden' | 'too_many_channels' | 'too_many_partitions'
  | 'already_subscribed' | 'not_subscribed' | 'bad_option' | 'message_too_big' | 'record_too_large' | 'view_full'
  | 'timed_out' | 'too_many_connections' | 'rate_limited' | 'overloaded' | 'retry_later' | 'after_failed' | 'not_stored'
  | 'unavailable' | 'draining' | 'internal'
  | 'normal' | 'protocol' | 'unsupported' | 'invalid_text' | 'too_big' | 'slow_consumer' | 'idle_timeout' | 'too_slow'
  | 'moved' | 'auth_timeout' | 'closed';

/**
 * Codes of the SDK itself:
 * `bad_answer` what came is not of this protocol; `network` no connection, or it was cut; `silent` nothing came in time;
 * `http` an answer that is not the gateway's, such as a proxy's page; `token_failed` the token's provider threw;
 * `token_timeout` it did not answer; `bad_row` the schema refuses a row; `aborted` the caller's signal; `ended` the client
 * or the handle was closed; `store_failed` the offline store; `timeout` a publish found no answer in time.
 */
export type OwnCode =
  | 'bad_answer' | 'network' | 'silent' | 'http' | 'token_failed' | 'token_timeout' | 'bad_row' | 'aborted' | 'ended'
  | 'store_failed' | 'timeout';

/** A code of this version, or one of a newer gateway. */
export type Code = GatewayCode | OwnCode | (string & {});

/** Every error of the SDK. `code` says what happened, `message` is text for people. */
export class TidegateError extends Error {
  override readonly name = 'TidegateError';

  constructor(
    readonly code: Code,
    message: string = code,
    /** When trying again may help, in milliseconds from now. */
    readonly retryAfterMs?: number,
    options?: { cause?: unknown },
  ) {
    super(message, options);
  }
}

/** The protocol was broken by the other side. */
export const badAnswer = (what: string) => new TidegateError('bad_answer', what);
