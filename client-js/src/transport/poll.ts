/**
 * Over plain requests, where nothing else gets through: long-polling of one view, asking again and again for several.
 *
 * Does: fetches views and says what the gateway would have said over a connection. Owns: the requests. Never knows: rows.
 * Keeps: a proof is taken to be as old as the request at least; only what has a position counts as a view.
 */
import type { Channel } from '../channel.js';
import { TidegateError, badAnswer } from '../errors.js';
import { type Call, type Open, headersOf, problemOf, refusedEnd, thrownEnd } from './transport.js';

/** How long a request waits for something newer: short enough that the next proof comes before the last one lapses. */
const WAIT_S = 5;
/** How long a proof counts, in milliseconds: the gateway's own default. */
const LIVE_FOR_MS = 30_000;
/** Between two rounds of several views, in milliseconds. */
const ROUND_MS = 2_000;
/** Within which an answer must come, beyond what it was asked to wait. */
const ANSWER_MS = 10_000;
const VIEWS_MAX = 100;

interface View { channel: string; position: string; freshness: { state: string; reason?: string; age_ms?: number }; rows: unknown }

export const openPoll: Open = (call) => {
  const poll = new Poll(call);
  // Later in this turn: whoever opens it must have it before it speaks.
  Promise.resolve().then(() => poll.run()).catch((error) => (error instanceof Refused ? error.end : thrownEnd(error))).then((end) => poll.end(end));
  return { close: () => poll.close(), nudge: (channel) => poll.nudge(channel) };
};

class Poll {
  readonly #begun: number;
  #abort = new AbortController();
  #open = true;
  #greeted = false;
  #known = new Map<Channel, string>();
  /** Refused channels, until they are asked for again. */
  #refused = new Set<Channel>();
  #rest = () => {};

  constructor(readonly call: Call) {
    this.#begun = call.platform.now();
  }

  close() {
    this.#open = false;
    this.nudge();
  }

  /** Cuts a wait short: a channel is asked for. */
  nudge(channel?: Channel) {
    if (channel) this.#refused.delete(channel);
    this.#abort.abort();
    this.#abort = new AbortController();
    this.#rest();
  }

  end(end: Parameters<Call['ear']['ended']>[0]) {
    if (this.#open) this.call.ear.ended(end);
    this.#open = false;
  }

  async run() {
    while (this.#open) {
      const channels = this.call.channels().filter((channel) => this.#follows(channel));
      if (!channels.length) await this.#rested();
      else if (channels.length === 1) await this.#one(channels[0]!, true);
      else await this.#many(channels);
    }
    return { error: new TidegateError('network', 'polling ended') };
  }

  /** Before the first word: something of the gateway got through. */
  #say(message: object) {
    if (!this.#greeted) {
      this.#greeted = true;
      this.call.ear.message({ op: 'hello', now_ms: 0, heartbeat_ms: WAIT_S * 1000, live_for_ms: LIVE_FOR_MS });
    }
    if (this.#open) this.call.ear.message(message);
  }

  async #rested() {
    this.#say({ op: 'pong' });
    await this.#pause();
  }

  /** Views only, and those that are not refused. */
  #follows(channel: Channel): boolean {
    if (channel.mode === 'events' && !channel.refusal) {
      this.#refuse(channel, new TidegateError('unsupported', 'events need WebSocket or SSE, which do not get through here'));
    }
    return channel.mode === 'view' && !this.#refused.has(channel);
  }

  #refuse(channel: Channel, { code, message, retryAfterMs }: TidegateError) {
    this.#refused.add(channel);
    this.#known.delete(channel);
    this.#say({ op: 'outcome', channel: channel.name, error: { code, message, retry_after_ms: retryAfterMs } });
  }

  #pause() {
    return new Promise<void>((done) => {
      const stop = this.call.platform.setTimer(done, ROUND_MS);
      this.#rest = () => { stop(); done(); };
    });
  }

  async #fetch(path: string, init: RequestInit, waitMs: number): Promise<Response | null> {
    const { base, platform, token, credentials } = this.call;
    const abort = this.#abort;
    let late = false;
    const stop = platform.setTimer(() => { late = true; abort.abort(); }, waitMs + ANSWER_MS);
    try {
      const headers = headersOf(token, init.headers as Record<string, string>);
      const request = { ...init, headers, signal: abort.signal, cache: 'no-store' as const, ...(credentials ? { credentials } : {}) };
      const response = await platform.fetch(new URL(path, base).href, request);
      // The body is read within the same time.
      return new Response(response.status === 304 ? null : await response.arrayBuffer(), response);
    } catch (error) {
      if (late) throw new TidegateError('silent', 'no answer in time');
      if (abort.signal.aborted) return null;
      throw error;
    } finally {
      stop();
    }
  }

  /** One view: waits for something newer than what is known, then takes the whole, which proves it. */
  async #one(channel: Channel, wait: boolean) {
    const path = `v1/view/${channel.name.split('/').map(encodeURIComponent).join('/')}`;
    const known = this.#known.get(channel);
    if (wait && known) {
      const sent = this.call.platform.now();
      const waited = await this.#fetch(`${path}?wait=${WAIT_S}`, { headers: { 'if-none-match': `"${known}"` } }, WAIT_S * 1000);
      if (!waited) return;
      if (waited.status !== 304) return this.#take(waited, [channel], sent);
    }
    const sent = this.call.platform.now();
    const whole = await this.#fetch(path, {}, 0);
    if (whole) await this.#take(whole, [channel], sent);
  }

  /** Several views in one request, a hundred at a time. */
  async #many(channels: Channel[]) {
    for (let i = 0; i < channels.length && this.#open; i += VIEWS_MAX) {
      const some = channels.slice(i, i + VIEWS_MAX);
      const sent = this.call.platform.now();
      const body = JSON.stringify({ channels: some.map(({ name }) => name) });
      const answer = await this.#fetch('v1/views', { method: 'POST', body, headers: { 'content-type': 'application/json' } }, 0);
      if (!answer) return;
      if (some.length > 1 && [400, 403, 404].includes(answer.status)) {
        // One of them is refused, and with it all: each for itself says which.
        for (const channel of some) await this.#one(channel, false);
      } else {
        await this.#take(answer, some, sent);
      }
    }
    await this.#pause();
  }

  async #take(answer: Response, channels: Channel[], sent: number) {
    if (!answer.ok) return this.#refusedBy(answer, channels);
    let views: View[];
    try {
      const body = await answer.json();
      views = Array.isArray(body.views) ? body.views : [body];
    } catch {
      throw new TidegateError('http', 'an answer that is not JSON');
    }
    channels.forEach((channel, i) => this.#tell(channel, views[i], sent));
  }

  async #refusedBy(answer: Response, channels: Channel[]): Promise<void> {
    const [only] = channels;
    const end = await refusedEnd(answer.clone());
    if (end.refused && channels.length === 1) return this.#refuse(only!, await problemOf(answer));
    throw new Refused(end);
  }

  #tell(channel: Channel, view: View | undefined, sent: number) {
    if (view?.channel !== channel.name || typeof view.position !== 'string' || typeof view.freshness?.state !== 'string') {
      throw badAnswer('a view without channel, position or freshness');
    }
    const { name } = channel;
    const { state, reason, age_ms: age } = view.freshness;
    this.#refused.delete(channel);
    if (this.#known.get(channel) !== view.position) {
      if (!channel.settled) this.#say({ op: 'outcome', channel: name, outcome: 'snapshot', reason: 'new' });
      this.#say({ op: 'snapshot', channel: name, part: 0, rows: view.rows, position: view.position });
      this.#known.set(channel, view.position);
    }
    const proved = state === 'live' && typeof age === 'number' ? { proved_at_ms: sent - age - this.#begun } : {};
    this.#say({ op: 'heartbeat', channel: name, position: view.position, ...proved });
    if (state !== 'live') this.#say({ op: 'freshness', channel: name, state, reason, age_ms: age });
  }
}

/** A refusal of the whole, on its way to being an end. */
class Refused {
  constructor(readonly end: Parameters<Call['ear']['ended']>[0]) {}
}
