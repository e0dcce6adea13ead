/**
 * A small client of the Tidegate protocol, over WebSocket or SSE.
 *
 * Does: opens the connection, subscribes, resumes with the token, hands messages to `state.js`, reconnects.
 * Owns: the socket or event source and the timers. Never knows: a page, or what is in a row.
 * Keeps: a close code of 4500–4999 is final, `reconnect_after_ms` is obeyed, any other end is retried with full jitter.
 */
import { Channel, Link, ProtocolError, backoff, mayReconnect } from './state.js';

const OPS = ['hello', 'snapshot', 'update', 'heartbeat', 'freshness', 'gap', 'bye', 'outcome'];
/** The wall clock running this far ahead of the page's clock means that the machine slept, in milliseconds. */
const SLEPT_MS = 2_000;
/** The longest wait of a browser's timer, in milliseconds. */
const TIMER_MAX_MS = 2 ** 31 - 1;
/** What is said when nothing is heard. */
const SILENT = 'the gateway does not answer';
/** How long a ping may stay unanswered, in milliseconds. */
const PONG_MS = 10_000;

/**
 * Follows `channels` at the gateway that served the page.
 * `transport` is `ws` or `sse`; `onChange` is called after every message and every change of the connection.
 */
export class Tide {
  link = new Link();
  channels = new Map();

  #stop = () => {};
  #attempt = 0;
  #timer = null;
  #heardAt = 0;
  #lead = Date.now() - performance.now();
  #lastEventId = '';

  constructor({ channels, transport, onChange }) {
    for (const name of channels) this.channels.set(name, new Channel(name));
    this.transport = transport;
    this.onChange = onChange;
    setInterval(() => this.#watch(), 1_000);
    this.#open();
  }

  /** Goes over to another transport at once. Over WebSocket it resumes; a new event stream begins with snapshots. */
  use(transport) {
    if (transport === this.transport) return;
    this.transport = transport;
    this.#lastEventId = '';
    this.#attempt = 0;
    this.#open();
  }

  #open() {
    this.#stop();
    clearTimeout(this.#timer);
    this.link.begin(performance.now());
    this.#heardAt = performance.now();
    this.channels.forEach((channel) => channel.reset());
    this.#stop = this.transport === 'sse' ? this.#openSse() : this.#openWs();
    this.onChange();
  }

  #openWs() {
    const url = new URL('/v1/ws', location.href);
    url.protocol = url.protocol.replace('http', 'ws');
    const socket = new WebSocket(url, 'tidegate.v1.json');
    const asked = [];
    let pings = 0;
    const subscribe = (channel) => {
      if (!channel || socket.readyState !== WebSocket.OPEN) return;
      const from = channel.token || undefined;
      socket.send(JSON.stringify({ id: asked.push(channel), op: 'subscribe', channel: channel.name, from }));
    };
    socket.onmessage = ({ data }) => this.#guard(() => {
      const message = JSON.parse(data);
      const channel = asked[message.id - 1];
      if (channel) this.#answered(channel, message, subscribe);
      this.#receive(message);
      if (message.op === 'outcome') this.#again(message.error, () => subscribe(this.channels.get(message.channel)));
      if (message.op === 'hello') this.channels.forEach(subscribe);
    });
    socket.onclose = ({ code, reason }) => this.#ended(mayReconnect(code) ? null : Infinity, reason);
    const ping = setInterval(() => {
      const silence = performance.now() - this.#heardAt;
      if (silence < this.link.heartbeatMs) pings = 0;
      else if (pings === 0 && socket.readyState === WebSocket.OPEN) pings = socket.send('{"op":"ping"}') ?? 1;
      else if (silence > this.link.heartbeatMs + PONG_MS) this.#ended(null, 'the gateway fell silent');
    }, 1_000);
    return () => {
      clearInterval(ping);
      socket.onmessage = null;
      socket.onclose = null;
      socket.close(1000);
    };
  }

  #answered(channel, { ok, error }, subscribe) {
    if (ok) channel.outcome(ok, performance.now());
    else if (error) channel.refuse(error);
    this.#again(error, () => subscribe(channel));
  }

  /** Tries a refused subscription again, if the refusal says when. */
  #again(error, retry) {
    const after = error?.retry_after_ms;
    if (Number.isFinite(after)) setTimeout(retry, Math.min(Math.max(after, 1_000), TIMER_MAX_MS));
  }

  #openSse() {
    const url = new URL('/v1/sse', location.href);
    for (const name of this.channels.keys()) url.searchParams.append('channel', name);
    if (this.#lastEventId) url.searchParams.set('last_event_id', this.#lastEventId);
    const source = new EventSource(url);
    for (const op of OPS) {
      source.addEventListener(op, (event) => {
        if (event.data === undefined) return;
        this.#lastEventId = event.lastEventId;
        this.#guard(() => {
          const message = JSON.parse(event.data);
          this.#receive({ op, ...message });
          if (op === 'outcome') this.#again(message.error, () => source.readyState === EventSource.OPEN && this.#open());
        });
      });
    }
    source.onerror = (event) => {
      if (event.data !== undefined) return;
      if (source.readyState === EventSource.CLOSED) this.#ended(null, 'the gateway refused the event stream');
      else this.#interrupted();
    };
    const watch = setInterval(() => {
      const silence = performance.now() - this.#heardAt;
      if (silence > 2 * this.link.heartbeatMs + PONG_MS) this.#ended(null, 'the gateway fell silent');
    }, 1_000);
    return () => {
      clearInterval(watch);
      source.onerror = null;
      source.close();
    };
  }

  /** The browser lost the event stream and reconnects by itself, with the last id. */
  #interrupted() {
    this.link.begin(performance.now());
    this.link.message = SILENT;
    this.channels.forEach((channel) => channel.reset());
    this.onChange();
  }

  #receive(message) {
    const now = performance.now();
    this.#heardAt = now;
    if (message.op === 'hello') this.link.hello(message);
    else if (message.op === 'bye') this.#bye(message);
    else this.channels.get(message.channel)?.receive(message, this.link, now);
    if (message.op === 'heartbeat') this.#attempt = 0;
    this.onChange();
  }

  #bye(message) {
    const after = Number(message.reconnect_after_ms);
    this.#ended(Number.isFinite(after) && after >= 0 ? after : null, message.code);
  }

  /** Runs what a message asks for; one that breaks the protocol starts the connection afresh. */
  #guard(handle) {
    try {
      handle();
    } catch (error) {
      if (!(error instanceof ProtocolError) && !(error instanceof SyntaxError)) throw error;
      this.channels.forEach((channel) => channel.forget());
      this.#lastEventId = '';
      this.#ended(null, error.message);
    }
  }

  /** The connection is over: tried again after `waitMs`, by back-off when none is given, never when it is infinite. */
  #ended(waitMs, message) {
    this.#stop();
    this.#stop = () => {};
    const now = performance.now();
    const wait = waitMs ?? backoff(this.#attempt, Math.random());
    this.#attempt += 1;
    this.link.end(now, wait === Infinity ? null : now + wait, message || SILENT);
    this.channels.forEach((channel) => channel.reset());
    if (wait !== Infinity) this.#later(wait);
    this.onChange();
  }

  #later(wait) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#open(), Math.min(wait, TIMER_MAX_MS));
  }

  /** After a sleep the page's clock may have stood still, and with it every age: nothing is live any more. */
  #watch() {
    const lead = Date.now() - performance.now();
    const slept = lead - this.#lead > SLEPT_MS;
    this.#lead = lead;
    if (slept && this.link.phase === 'open') this.#open();
  }
}
