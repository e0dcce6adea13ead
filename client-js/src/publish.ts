/**
 * Publishing: one record at a time for each channel, until the log has it.
 *
 * Does: sends a record over the open WebSocket, else by a request; tries again what passes. Owns: what waits. Never knows:
 * views. Keeps: records of one channel reach the log in the order of the calls; a record is stored once within the
 * gateway's window, however often it is sent, since it has an id.
 */
import type { Connection } from './connection.js';
import { backoff } from './backoff.js';
import { TidegateError } from './errors.js';
import { onAbort } from './handle.js';
import { headersOf, problemOf } from './transport/transport.js';
import type { Platform } from './platform.js';
import { refusalOf } from './wire.js';

export interface PublishOptions {
  /** The row; without it the channel is one row, or events have no rows. */
  row?: string;
  /** When it happened, in milliseconds since 1970; without it the time when the log takes it. */
  ts?: number;
  /** The publisher's name for the record, 1 to 128 bytes; without it a random one. */
  id?: string;
  signal?: AbortSignal;
  /** How long to try, in milliseconds; by default 30 s. */
  timeoutMs?: number;
}

export interface Published {
  readonly position: string;
  /** The log had it already. */
  readonly duplicate: boolean;
}

/** What passes when tried again. */
const PASSES = new Set([
  'rate_limited', 'overloaded', 'retry_later', 'after_failed', 'not_stored', 'unavailable', 'draining', 'timed_out',
  'too_many_connections', 'internal', 'network', 'http', 'token_expired', 'silent',
]);
const TIMEOUT_MS = 30_000;
/** Records that may wait, all channels together. */
const WAITING_MAX = 1_000;

/** What publishing needs of its client. */
export interface Sender {
  readonly base: URL;
  readonly platform: Platform;
  readonly credentials: RequestCredentials | undefined;
  token(signal: AbortSignal): Promise<string | undefined>;
  /** The connection that could take a record. */
  connection(): Connection | undefined;
}

export class Publisher {
  #lines = new Map<string, Promise<unknown>>();
  #waiting = 0;

  constructor(private readonly sender: Sender) {}

  async publish(channel: string, data: unknown, options: PublishOptions): Promise<Published> {
    const slash = channel.indexOf('/');
    if (slash < 1) throw new TidegateError('bad_channel', `not stream/name: ${channel}`);
    if (this.#waiting >= WAITING_MAX) throw new TidegateError('overloaded', `${WAITING_MAX} records wait already`);
    const { row, ts, id = randomId(this.sender.platform) } = options;
    const record = { channel: channel.slice(slash + 1), row, ts, data: data === undefined ? null : data, id };
    const text = JSON.stringify(record);
    this.#waiting += 1;
    const before = this.#lines.get(channel);
    const mine = (async () => {
      await before?.catch(() => {});
      return this.#until(channel.slice(0, slash), JSON.parse(text), options);
    })();
    this.#lines.set(channel, mine);
    try {
      return await mine;
    } finally {
      this.#waiting -= 1;
      if (this.#lines.get(channel) === mine) this.#lines.delete(channel);
    }
  }

  /** Tries until it is stored, refused for good, or the time is over. */
  async #until(stream: string, record: object, { signal, timeoutMs = TIMEOUT_MS }: PublishOptions): Promise<Published> {
    const { platform } = this.sender;
    const ended = new AbortController();
    const stops = [
      onAbort(signal, () => ended.abort(new TidegateError('aborted', 'the signal was aborted', undefined, { cause: signal?.reason }))),
      platform.setTimer(() => ended.abort(), timeoutMs),
    ];
    let last: TidegateError | undefined;
    try {
      for (let attempt = 0; !ended.signal.aborted; attempt += 1) {
        try {
          return await this.#once(stream, record, ended.signal);
        } catch (error) {
          last = error instanceof TidegateError ? error : new TidegateError('network', String(error), undefined, { cause: error });
          if (!PASSES.has(last.code)) throw last;
        }
        await rest(platform, last.retryAfterMs ?? backoff(attempt, platform.random()), ended.signal);
      }
    } finally {
      stops.forEach((stop) => stop());
    }
    const { reason } = ended.signal;
    throw reason instanceof TidegateError ? reason
      : new TidegateError('timeout', `not stored within ${timeoutMs} ms: ${last?.message ?? 'no answer'}`, undefined, { cause: last });
  }

  #once(stream: string, record: object, signal: AbortSignal): Promise<Published> {
    const connection = this.sender.connection();
    return new Promise((resolve, reject) => {
      onAbort(signal, () => reject(new TidegateError('silent', 'no answer in time')));
      if (connection && JSON.stringify(record).length * 3 + 200 < connection.messageBytes) {
        const cut = () => reject(new TidegateError('network', 'the connection ended before the answer'));
        const sent = connection.publish(stream, record, ({ ok, error }) => {
          if (ok) resolve(published(ok));
          else reject(refusalOf(error));
        }, cut);
        if (sent) return;
      }
      this.#post(stream, record, signal).then(resolve, reject);
    });
  }

  async #post(stream: string, record: object, signal: AbortSignal): Promise<Published> {
    const { base, platform, credentials } = this.sender;
    const token = await this.sender.token(signal);
    const headers = headersOf(token, { 'content-type': 'application/json' });
    const init: RequestInit = { method: 'POST', headers, body: JSON.stringify(record), signal };
    const url = new URL(`v1/publish/${encodeURIComponent(stream)}`, base);
    const answer = await platform.fetch(url.href, credentials ? { ...init, credentials } : init);
    if (!answer.ok) throw await problemOf(answer);
    return published(await answer.json().catch(() => ({})));
  }
}

function published(answer: Record<string, unknown>): Published {
  const { position, duplicate } = answer;
  if (typeof position !== 'string') throw new TidegateError('http', 'an answer without a position');
  return { position, duplicate: duplicate === true };
}

const rest = (platform: Platform, ms: number, signal: AbortSignal) => new Promise<void>((done) => {
  const stop = platform.setTimer(done, ms);
  onAbort(signal, () => { stop(); done(); });
});

/** 128 bits, as the platform's chance has them; `crypto` is not everywhere (pages without TLS). */
const randomId = (platform: Platform) =>
  Array.from({ length: 4 }, () => Math.floor(platform.random() * 2 ** 32).toString(36)).join('-');
