/**
 * The one tab that is connected: to the others it is a gateway.
 *
 * Does: follows with one client what all tabs want, and tells each of it in the protocol's words. Owns: what the tabs
 * follow. Never knows: how the client is connected. Keeps: its positions are of an epoch of its own; what it proves is
 * never younger, and never live for longer, than what its own client knows.
 */
import type { Client } from '../client.js';
import type { View } from '../handle.js';
import type { Word } from './bus.js';

/** How often proofs go on, and silence is looked for, in milliseconds. */
const BEAT_MS = 1_000;
/** A tab that is not heard for so many beats is gone. */
const GONE_BEATS = 90;
const ASK_BEATS = 30;
/** How long a proof counts: the gateway's default, and the longest that was seen. */
const LIVE_FOR_MS = 30_000;

interface Following { view: View; stops: (() => void)[]; told: boolean; until: number; verdict: string }
interface Tab { followed: Map<string, Following>; silent: number }
interface Asked { id?: number; op?: string; channel?: string; max_rate?: number; policy?: 'conflate' | 'disconnect'; stream?: string; record?: Record<string, unknown> }

export class Hub {
  readonly #tabs = new Map<string, Tab>();
  readonly #epoch = `t${Math.random().toString(36).slice(2)}`;
  readonly #hear = ({ data }: MessageEvent<Word>) => this.#heard(data);
  readonly #timer: ReturnType<typeof setInterval>;
  #offset = 0;
  #beats = 0;
  #liveForMs = LIVE_FOR_MS;

  constructor(private readonly bus: BroadcastChannel, private readonly client: Client) {
    bus.addEventListener('message', this.#hear);
    this.#timer = setInterval(() => this.#beat(), BEAT_MS);
    bus.postMessage({ kind: 'hub' } satisfies Word);
  }

  /** It is no longer the one: its client ends, and the tabs look for another. */
  close() {
    clearInterval(this.#timer);
    this.bus.removeEventListener('message', this.#hear);
    for (const socket of this.#tabs.keys()) this.bus.postMessage({ kind: 'cut', socket } satisfies Word);
    this.#tabs.clear();
    this.client.close();
  }

  #say(socket: string, message: object) {
    this.bus.postMessage({ kind: 'down', socket, text: JSON.stringify(message) } satisfies Word);
  }

  #heard(word: Word) {
    if (!('socket' in word)) return;
    const { socket } = word;
    const tab = this.#tabs.get(socket);
    if (tab) tab.silent = 0;
    if (word.kind === 'open' && !tab) {
      this.#tabs.set(socket, { followed: new Map(), silent: 0 });
      this.#say(socket, { op: 'hello', now_ms: performance.now(), heartbeat_ms: 2 * BEAT_MS, live_for_ms: this.#liveForMs });
    } else if (word.kind === 'leave') {
      this.#forget(socket);
    } else if (word.kind === 'up' && tab) {
      this.#asked(socket, tab, JSON.parse(word.text));
    } else if (word.kind === 'up') {
      this.bus.postMessage({ kind: 'cut', socket } satisfies Word);
    }
  }

  #forget(socket: string) {
    for (const followed of this.#tabs.get(socket)?.followed.values() ?? []) this.#end(followed);
    this.#tabs.delete(socket);
  }

  #end({ view, stops }: Following) {
    stops.forEach((stop) => stop());
    view.close();
  }

  #asked(socket: string, tab: Tab, asked: Asked) {
    const { id, op, channel = '' } = asked;
    const answer = (body: object) => this.#say(socket, { id, ...body });
    if (op === 'ping') return this.#say(socket, { op: 'pong' });
    if (op === 'subscribe') return this.#follow(socket, tab, asked);
    if (op === 'publish') return this.#publish(asked, answer);
    if (op === 'unsubscribe' && tab.followed.has(channel)) {
      this.#end(tab.followed.get(channel)!);
      tab.followed.delete(channel);
    }
    // The token is the hub's business: a tab's own is taken as it is.
    return answer({ ok: {} });
  }

  #publish({ stream, record = {} }: Asked, answer: (body: object) => void) {
    const { channel, data, ...rest } = record;
    this.client.publish(`${stream}/${channel}`, data, rest).then(
      ({ position, duplicate }) => answer({ ok: { position, duplicate } }),
      ({ code, message }) => answer({ error: { code, message } }),
    );
  }

  #follow(socket: string, tab: Tab, { id, channel = '', max_rate: maxRate, policy }: Asked) {
    const options = { ...(maxRate === undefined ? {} : { maxRate }), ...(policy ? { policy } : {}) };
    let view: View;
    try {
      view = this.client.view(channel, options);
    } catch (error) {
      const { code, message } = error as { code: string; message: string };
      return this.#say(socket, { id, error: { code, message } });
    }
    const followed: Following = { view, stops: [], told: false, until: 0, verdict: '' };
    const before = tab.followed.get(channel);
    tab.followed.set(channel, followed);
    if (before) this.#end(before);
    this.#say(socket, { id, ok: { outcome: 'catching_up' } });
    followed.stops = [
      view.onChange((changes) => {
        if (!followed.told) return this.#look(socket, followed);
        for (const { row, data, deleted } of changes) {
          const what = deleted ? { deleted } : { data };
          this.#say(socket, { op: 'update', channel, position: this.#position(1), ts: view.ts(row) ?? 0, row, ...what });
        }
      }),
      view.onFreshness(() => this.#look(socket, followed)),
    ];
    return this.#look(socket, followed);
  }

  #position(step = 0) {
    this.#offset += step;
    return `0.${this.#epoch}:${this.#offset}`;
  }

  /** Tells what a tab does not know yet: the rows, a refusal, a proof, or bad news. */
  #look(socket: string, followed: Following) {
    const { view } = followed;
    const channel = view.name;
    if (view.error && view.error.retryAfterMs === undefined) {
      const { code, message } = view.error;
      this.#tabs.get(socket)?.followed.delete(channel);
      this.#end(followed);
      return this.#say(socket, { op: 'outcome', channel, error: { code, message } });
    }
    if (!followed.told && view.token) {
      followed.told = true;
      const rows = Object.fromEntries([...view.rows].map(([row, data]) => [row, { ts: view.ts(row) ?? 0, data }]));
      this.#say(socket, { op: 'outcome', channel, outcome: 'snapshot', reason: 'new' });
      this.#say(socket, { op: 'snapshot', channel, part: 0, rows, position: this.#position(1) });
    }
    return this.#prove(socket, followed);
  }

  #prove(socket: string, followed: Following) {
    const { view } = followed;
    const channel = view.name;
    const { state, reason, ageMs } = view.freshness;
    const now = performance.now();
    if (state !== 'live') {
      const verdict = `${state} ${reason}`;
      // Before the rows it is catching up, which the tab knows.
      if (verdict === followed.verdict || (!followed.told && state !== 'unavailable')) return;
      Object.assign(followed, { verdict, until: 0 });
      const word = state === 'connecting' ? 'stale' : state;
      return this.#say(socket, { op: 'freshness', channel, state: word, reason: reason ?? undefined, age_ms: ageMs ?? undefined });
    }
    const left = view.liveForMs;
    if (left + (ageMs ?? 0) > this.#liveForMs) return this.#longer(left + (ageMs ?? 0));
    const until = Math.round(now + left);
    if (!followed.told || Math.abs(until - followed.until) < 2) return;
    Object.assign(followed, { verdict: '', until });
    // As old as it must be to end when the hub's own does: never younger than it is.
    this.#say(socket, { op: 'heartbeat', channel, position: this.#position(), proved_at_ms: now + left - this.#liveForMs });
  }

  /** The gateway's proofs count for longer than was said: all tabs begin again with that. */
  #longer(ms: number) {
    this.#liveForMs = Math.ceil(ms);
    for (const socket of [...this.#tabs.keys()]) {
      this.#forget(socket);
      this.bus.postMessage({ kind: 'cut', socket } satisfies Word);
    }
  }

  #beat() {
    this.#beats += 1;
    if (this.#beats % ASK_BEATS === 0) this.bus.postMessage({ kind: 'who' } satisfies Word);
    for (const [socket, tab] of [...this.#tabs]) {
      tab.silent += 1;
      if (tab.silent > GONE_BEATS) this.#forget(socket);
      else for (const followed of [...tab.followed.values()]) this.#prove(socket, followed);
    }
  }
}
