/**
 * A world without time, network or chance: what tests inject as the platform.
 *
 * Does: a clock that moves when told, timers, sockets and requests that a script answers. Owns: all of it. Never knows:
 * the protocol. Keeps: the same steps give the same world.
 */
import type { PageEvent, Platform, Socket } from '../../src/platform.js';

/** Lets everything that waits for no time run. */
export const settle = async () => {
  for (let i = 0; i < 5; i += 1) await new Promise((done) => { setImmediate(done); });
};

/** A socket, seen from the server. */
export class FakeSocket implements Socket {
  onopen: Socket['onopen'] = null;
  onmessage: Socket['onmessage'] = null;
  onclose: Socket['onclose'] = null;
  onerror: Socket['onerror'] = null;
  readyState = 0;
  readonly sent: Record<string, unknown>[] = [];
  /** What the client says. */
  heard: (message: Record<string, unknown>) => void = () => {};
  /** The client left, or the script cut it. */
  gone = false;

  constructor(readonly url: string, readonly protocols: string[]) {}

  send(text: string) {
    const message = JSON.parse(text);
    this.sent.push(message);
    this.heard(message);
  }

  close() {
    this.gone = true;
    this.readyState = 3;
  }

  open() {
    this.readyState = 1;
  }

  say(message: unknown) {
    if (!this.gone) this.onmessage?.({ data: typeof message === 'string' ? message : JSON.stringify(message) });
  }

  cut(code = 1006, reason = '') {
    if (this.gone) return;
    this.gone = true;
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }
}

/** A request, seen from the server. */
export interface FakeRequest {
  url: URL;
  method: string;
  headers: Record<string, string>;
  body: string | undefined;
  signal: AbortSignal | undefined;
  answer(response: Response): void;
  fail(error?: Error): void;
}

/** An event stream that a script writes. */
export function eventStream(signal?: AbortSignal) {
  const utf8 = new TextEncoder();
  let control!: ReadableStreamDefaultController<Uint8Array>;
  let over = false;
  const body = new ReadableStream<Uint8Array>({ start: (c) => { control = c; }, cancel: () => { over = true; } });
  const fail = () => { if (!over) { over = true; control.error(new Error('cut')); } };
  signal?.addEventListener('abort', fail);
  return {
    response: new Response(body, { headers: { 'content-type': 'text/event-stream' } }),
    write: (text: string | Uint8Array) => { if (!over) control.enqueue(typeof text === 'string' ? utf8.encode(text) : text); },
    end: () => { if (!over) { over = true; control.close(); } },
    cut: fail,
    get over() { return over; },
  };
}

export class World {
  time = 1_000;
  /** How far the time of day is off, and how much of it the page's clock missed. */
  wallOffset = 1_700_000_000_000;
  sockets: FakeSocket[] = [];
  requests: FakeRequest[] = [];
  onSocket: (socket: FakeSocket) => void = () => {};
  onRequest: (request: FakeRequest) => void = () => {};
  random = () => 0.5;
  page: (event: PageEvent) => void = () => {};
  #timers = new Set<{ at: number; run: () => void }>();

  get timers() {
    return this.#timers.size;
  }

  readonly platform: Platform = {
    now: () => this.time,
    wall: () => this.time + this.wallOffset,
    random: () => this.random(),
    setTimer: (run, ms) => {
      const timer = { at: this.time + ms, run };
      this.#timers.add(timer);
      return () => void this.#timers.delete(timer);
    },
    fetch: ((input: string, init: RequestInit = {}) => new Promise<Response>((resolve, reject) => {
      const { signal } = init;
      const aborted = () => reject(new DOMException('aborted', 'AbortError'));
      if (signal?.aborted) return aborted();
      signal?.addEventListener('abort', aborted);
      const request: FakeRequest = {
        url: new URL(input), method: init.method ?? 'GET', headers: { ...(init.headers as Record<string, string>) },
        body: init.body as string | undefined, signal: signal ?? undefined,
        answer: resolve, fail: (error = new TypeError('failed to fetch')) => reject(error),
      };
      this.requests.push(request);
      this.onRequest(request);
      return undefined;
    })) as typeof fetch,
    WebSocket: this.#socketClass(),
    watchPage: (tell) => {
      this.page = tell;
      return () => { this.page = () => {}; };
    },
  };

  #socketClass(): NonNullable<Platform['WebSocket']> {
    const world = this;
    return class extends FakeSocket {
      constructor(url: string, protocols: string[]) {
        super(url, protocols);
        world.sockets.push(this);
        world.onSocket(this);
      }
    };
  }

  /** Moves time on, timer by timer. */
  async pass(ms: number) {
    const until = this.time + ms;
    await settle();
    for (;;) {
      const [next] = [...this.#timers].filter(({ at }) => at <= until).sort((a, b) => a.at - b.at);
      if (!next) break;
      this.#timers.delete(next);
      this.time = Math.max(this.time, next.at);
      next.run();
      await settle();
    }
    this.time = until;
  }
}

/** Chance that comes again: mulberry32. */
export function chance(seed: number) {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  return { next, below: (n: number) => Math.floor(next() * n), pick: <T>(from: readonly T[]) => from[Math.floor(next() * from.length)]! };
}
