/**
 * A gateway that follows the protocol's page, as small as it goes, whose every delivery a script decides.
 *
 * Does: logs in partitions, rows folded from them, subscriptions that resume, start or are held, conflation, epochs that
 * change. Owns: the truth that clients are held against. Never knows: the client's code.
 */
import { type FakeRequest, type FakeSocket, type World, eventStream } from './world.js';

interface Entry { offset: number; row: string; data: unknown; ts: number }
interface Lane { epoch: string; head: number; entries: Entry[]; rows: Map<string, Entry>; floor: number }

const FIELDS: Record<string, string[]> = {
  ping: [], auth: ['token'], subscribe: ['channel', 'from', 'max_rate', 'policy', 'history'], unsubscribe: ['channel'],
  publish: ['stream', 'record'],
};

/** One client's way: what waits to be delivered to it, in order. */
export class Session {
  waiting: Record<string, unknown>[] = [];
  subscribed = new Set<string>();
  over = false;

  constructor(readonly deliver: (message: Record<string, unknown>) => void, readonly cut: () => void, readonly kind: 'ws' | 'sse' | 'poll') {}

  pump(count = Infinity) {
    for (let n = 0; n < count && this.waiting.length && !this.over; n += 1) this.deliver(this.waiting.shift()!);
  }
}

export class FakeGateway {
  channels = new Map<string, Lane[]>();
  sessions = new Set<Session>();
  /** Chance for what a gateway may do either way. */
  pick: (of: number) => number = () => 0;
  token: string | null = null;
  broken: string[] = [];
  epochs = 0;
  /** Transports that a middlebox swallows. */
  blocked = new Set<string>();

  constructor(readonly world: World, names: Record<string, number>) {
    for (const [name, partitions] of Object.entries(names)) {
      this.channels.set(name, Array.from({ length: partitions }, () => this.#lane()));
    }
    world.onSocket = (socket) => this.#socket(socket);
    world.onRequest = (request) => this.#request(request);
  }

  #lane(): Lane {
    this.epochs += 1;
    return { epoch: `e${this.epochs}`, head: 0, entries: [], rows: new Map(), floor: 0 };
  }

  /** What a view is now. */
  rows(channel: string) {
    const all = this.channels.get(channel)!.flatMap(({ rows }) => [...rows.values()].map(({ row, data }) => [row, data] as const));
    return Object.fromEntries(all);
  }

  publish(channel: string, row: string, data: unknown) {
    const lanes = this.channels.get(channel)!;
    const partition = [...row].reduce((sum, letter) => sum + letter.charCodeAt(0), 0) % lanes.length;
    const lane = lanes[partition]!;
    lane.head += 1 + this.pick(3);
    const entry = { offset: lane.head, row, data, ts: this.world.time };
    lane.entries.push(entry);
    if (data === undefined) lane.rows.delete(row);
    else lane.rows.set(row, entry);
    for (const session of this.sessions) if (session.subscribed.has(channel)) this.#offer(session, this.#update(channel, partition, entry));
  }

  /** An update that still waits is superseded, sometimes. */
  #offer(session: Session, update: Record<string, unknown>) {
    const prefix = String(update['position']).split(':')[0]!;
    if (this.pick(2)) {
      session.waiting = session.waiting.filter((old) => !(old['op'] === 'update' && old['channel'] === update['channel']
        && old['row'] === update['row'] && String(old['position']).startsWith(`${prefix}:`)));
    }
    session.waiting.push(update);
  }

  #update(channel: string, partition: number, { offset, row, data, ts }: Entry): Record<string, unknown> {
    const position = `${partition}.${this.channels.get(channel)![partition]!.epoch}:${offset}`;
    return { op: 'update', channel, position, ts, row, ...(data === undefined ? { deleted: true } : { data }) };
  }

  /** The log forgets what came before its head. */
  truncate(channel: string) {
    for (const lane of this.channels.get(channel)!) {
      lane.floor = lane.head;
      lane.entries = [];
    }
  }

  /** The log is another one, with the same rows at other offsets; all connections end. */
  newEpoch(channel: string) {
    const lanes = this.channels.get(channel)!;
    lanes.forEach((lane, i) => {
      const fresh = this.#lane();
      for (const { row, data } of lane.rows.values()) {
        fresh.head += 1;
        const entry = { offset: fresh.head, row, data, ts: this.world.time };
        fresh.entries.push(entry);
        fresh.rows.set(row, entry);
      }
      lanes[i] = fresh;
    });
    this.cutAll();
  }

  cutAll() {
    for (const session of [...this.sessions]) this.end(session);
  }

  end(session: Session) {
    session.over = true;
    this.sessions.delete(session);
    session.cut();
  }

  /** A heartbeat for each channel of a session, behind what waits. */
  heartbeat(session: Session, proved = true) {
    for (const channel of session.subscribed) {
      const position = this.position(channel);
      session.waiting.push({ op: 'heartbeat', channel, position, ...(proved ? { proved_at_ms: this.world.time } : {}) });
    }
  }

  position = (channel: string) =>
    this.channels.get(channel)!.map((lane, partition) => `${partition}.${lane.epoch}:${lane.head}`).join(',');

  hello = () => ({ op: 'hello', session: 's', node: 'n', now_ms: this.world.time, heartbeat_ms: 25_000, live_for_ms: 30_000, limits: { message_bytes: 1_048_576, channels: 100 } });

  /** What a subscription begins with: its outcome, and what follows it. */
  begin(session: Session, channel: string, from: string, told: (outcome: Record<string, unknown>) => void) {
    const lanes = this.channels.get(channel);
    if (!lanes) return told({ error: { code: 'unknown_stream', message: `there is no ${channel}` } });
    const tokens = new Map((from ? from.split(',') : []).map((text) => {
      const [, partition, epoch, offset] = /^(\d+)\.(\w+):(\d+)$/.exec(text)!;
      return [Number(partition), { epoch: epoch!, offset: Number(offset) }];
    }));
    const parts: Record<string, unknown>[] = [];
    let outcome = 'resumed';
    let reason = 'new';
    lanes.forEach((lane, partition) => {
      const at = tokens.get(partition);
      const known = at && at.epoch === lane.epoch && at.offset >= lane.floor && at.offset <= lane.head;
      if (known && this.pick(8)) return parts.push(...this.#since(channel, partition, at.offset, session.kind));
      outcome = 'snapshot';
      if (at) reason = at.epoch === lane.epoch ? 'too_old' : 'epoch_changed';
      return parts.push(...this.#snapshot(channel, partition));
    });
    const say = { outcome, ...(outcome === 'snapshot' ? { reason } : {}) };
    if (this.pick(6)) {
      told(say);
    } else {
      told({ outcome: 'catching_up' });
      session.waiting.push({ op: 'outcome', channel, ...say });
    }
    session.waiting.push(...parts);
    session.subscribed.add(channel);
    return this.heartbeat(session, this.pick(4) > 0);
  }

  /** A partition's net change since an offset. Over SSE what is behind the id may come twice, older values of a row too. */
  #since(channel: string, partition: number, token: number, kind: string) {
    const newest = new Map<string, Entry>();
    const { entries } = this.channels.get(channel)![partition]!;
    const offset = kind === 'sse' ? token - this.pick(10) : token;
    if (offset < token && this.pick(2)) return entries.filter((entry) => entry.offset > offset).map((entry) => this.#update(channel, partition, entry));
    for (const entry of entries) {
      if (entry.offset <= offset) continue;
      newest.delete(entry.row);
      newest.set(entry.row, entry);
    }
    return [...newest.values()].map((entry) => this.#update(channel, partition, entry));
  }

  #snapshot(channel: string, partition: number) {
    const lane = this.channels.get(channel)![partition]!;
    const rows = [...lane.rows.values()];
    const size = 1 + this.pick(3);
    const parts = [];
    for (let part = 0; part === 0 || part * size < rows.length; part += 1) {
      const some = rows.slice(part * size, (part + 1) * size).map(({ row, data, ts }) => [row, { ts, data }]);
      const last = (part + 1) * size >= rows.length;
      const end = last ? { position: `${partition}.${lane.epoch}:${lane.head}` } : { more: true };
      parts.push({ op: 'snapshot', channel, part, rows: Object.fromEntries(some), ...end });
    }
    return parts;
  }

  #socket(socket: FakeSocket) {
    if (this.blocked.has('ws')) return void this.world.platform.setTimer(() => socket.cut(1006), 1);
    const session = new Session((message) => socket.say(message), () => socket.cut(1006), 'ws');
    socket.open();
    this.sessions.add(session);
    session.waiting.push(this.hello());
    let authorized = this.token === null;
    socket.heard = (message) => {
      if (session.over) return;
      this.#checks(message);
      const { id, op } = message;
      const answer = (body: object) => session.waiting.push({ id, ...body });
      if (op === 'ping') session.waiting.push({ op: 'pong' });
      else if (op === 'auth') {
        authorized = message['token'] === this.token;
        answer(authorized ? { ok: {} } : { error: { code: 'unauthorized', message: 'no' } });
      } else if (!authorized) answer({ error: { code: 'unauthorized', message: 'no token yet' } });
      else if (op === 'unsubscribe') {
        session.subscribed.delete(String(message['channel']));
        session.waiting = session.waiting.filter((waits) => waits['channel'] !== message['channel']);
        answer({ ok: {} });
      } else if (op === 'subscribe') {
        this.begin(session, String(message['channel']), String(message['from'] ?? ''), (outcome) =>
          answer(outcome['error'] ? outcome : { ok: outcome }));
      } else if (op === 'publish') {
        const record = message['record'] as { channel: string; row?: string; data: unknown };
        this.publish(`${message['stream']}/${record.channel}`, record.row ?? '', record.data ?? undefined);
        answer({ ok: { position: this.position(`${message['stream']}/${record.channel}`).split(',')[0] } });
      }
      return;
    };
  }

  /** What clients say must be in the page's tables. */
  #checks(message: Record<string, unknown>) {
    const fields = FIELDS[String(message['op'])];
    const strange = Object.keys(message).filter((field) => !['id', 'op', ...(fields ?? [])].includes(field));
    if (!fields || strange.length || (message['op'] !== 'ping' && !Number.isSafeInteger(message['id']))) {
      this.broken.push(JSON.stringify(message));
    }
  }

  #request(request: FakeRequest) {
    const { pathname, searchParams } = request.url;
    if (this.token !== null && request.headers['authorization'] !== `Bearer ${this.token}`) {
      return request.answer(problem(401, 'unauthorized'));
    }
    if (pathname === '/v1/sse') return this.#sse(request, searchParams.getAll('channel'));
    if (pathname.startsWith('/v1/view/')) return this.#view(request, decodeURIComponent(pathname.slice('/v1/view/'.length)));
    if (pathname === '/v1/views') {
      const { channels } = JSON.parse(request.body!) as { channels: string[] };
      const bad = channels.find((name) => !this.channels.has(name));
      if (bad) return request.answer(problem(404, 'unknown_stream'));
      return request.answer(json({ views: channels.map((name) => this.#whole(name)) }));
    }
    return request.answer(problem(404, 'not_found'));
  }

  #whole(channel: string) {
    const rows = this.channels.get(channel)!.flatMap((lane) => [...lane.rows.values()].map(({ row, ts, data }) => [row, { ts, data }]));
    return { channel, position: this.position(channel), freshness: { state: 'live', age_ms: 5 }, rows: Object.fromEntries(rows) };
  }

  #view(request: FakeRequest, channel: string) {
    if (this.blocked.has('poll')) return request.fail();
    if (!this.channels.has(channel)) return request.answer(problem(404, 'unknown_stream'));
    const known = request.headers['if-none-match'];
    const answer = () => {
      const whole = this.#whole(channel);
      request.answer(known === `"${whole.position}"` ? new Response(null, { status: 304 }) : json(whole));
    };
    if (!known || known !== `"${this.position(channel)}"`) return answer();
    return void this.world.platform.setTimer(answer, Number(request.url.searchParams.get('wait')) * 1000);
  }

  #sse(request: FakeRequest, names: string[]) {
    if (this.blocked.has('sse')) return;
    if (names.some((name) => !this.channels.has(name))) return request.answer(problem(404, 'unknown_stream'));
    const stream = eventStream(request.signal);
    const one = names.length === 1 && this.channels.get(names[0]!)!.length === 1;
    const write = (message: Record<string, unknown>) => {
      const id = one && (message['position'] ? `id: ${message['position']}\n` : '');
      stream.write(`${id || ''}event: ${message['op']}\ndata: ${JSON.stringify(message)}\n\n`);
      // What has left for all channels: the page's vector, when nothing of them waits.
      if (!one && !session.waiting.length) stream.write(`id: ${this.#vector(names)}\n\n`);
    };
    const session = new Session(write, stream.cut, 'sse');
    request.signal?.addEventListener('abort', () => { session.over = true; this.sessions.delete(session); });
    this.sessions.add(session);
    request.answer(stream.response);
    session.waiting.push(this.hello());
    const id = request.headers['last-event-id'] ?? '';
    for (const name of names) {
      this.begin(session, name, id, (outcome) => session.waiting.push({ op: 'outcome', channel: name, ...outcome }));
    }
    return;
  }

  /** Only channels that share their logs have a vector here: with several logs there is none. */
  #vector(names: string[]) {
    return names.length === 1 ? this.position(names[0]!) : '';
  }
}

export const json = (body: unknown) => new Response(JSON.stringify(body), { headers: { 'content-type': 'application/json' } });
export const problem = (status: number, code: string, headers: Record<string, string> = {}) =>
  new Response(JSON.stringify({ type: 'about:blank', status, code, title: code, detail: code }), { status, headers: { 'content-type': 'application/problem+json', ...headers } });
