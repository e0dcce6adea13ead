#!/usr/bin/env node
import { createServer } from 'node:http'; import { createHash } from 'node:crypto'; import { readFileSync, existsSync } from 'node:fs';
const flag = (n, d) => { const i = process.argv.indexOf(n); return i < 0 ? d : process.argv[i + 1]; };
const root = new URL('../../client-js/board/', import.meta.url);
const records = readFileSync(new URL('../../deploy/demo/departures.ndjson', import.meta.url), 'utf8').trim().split('\n').map(JSON.parse);
const HB = Number(process.env.HB ?? 2000), SLO = 5000, SPEED = Number(process.env.SPEED ?? 60), START = process.env.START ?? '17:30';
const mono = () => Math.round(performance.now()) + 9e6;
const views = new Map(); let offset = 0, paused = false, proved = mono(), stale = false; const subs = new Set();
const clients = new Set();
const view = (c) => views.get(c) ?? views.set(c, {}).get(c);
function apply(channel, row, ts, data) {
  offset++; const v = view(channel); if (data === null) delete v[row]; else v[row] = { ts, data };
  const m = { op: 'update', channel, position: `0.e1:${offset}`, ts, row, ...(data === null ? { deleted: true } : { data }) };
  for (const c of clients) if (c.channels.has(channel)) c.send(m);
}
const hhmm = (ts) => new Date(ts - 4 * 3600e3).toISOString();
let i = 0, sim = records[0].ts; const [h, mi] = START.split(':').map(Number);
const startTs = Date.parse('2013-07-10T04:00:00Z') + (h * 60 + mi) * 60e3;
function upto(t) { while (i < records.length && records[i].ts <= t) { const r = records[i++]; apply('departures/' + r.channel, r.row, r.ts, r.data); } apply('departures/clock', 'clock', t, { clock: hhmm(t).slice(11, 16), day: hhmm(t).slice(0, 10) }); }
sim = startTs; upto(sim);
let last = mono(), lastMin = 0;
setInterval(() => { const n = mono(); if (!paused) { sim += (n - last) * SPEED; if (Math.floor(sim / 60e3) !== lastMin) { lastMin = Math.floor(sim / 60e3); upto(sim); } proved = n; if (stale) { stale = false; for (const c of clients) c.heartbeat(); } }
  else if (!stale && n - proved > SLO) { stale = true; for (const c of clients) c.judged(); } last = n; }, 200);
setInterval(() => { for (const c of clients) if (!stale) c.heartbeat(); }, HB);
function client(send) { const c = { send, channels: new Set(),
  heartbeat() { for (const ch of c.channels) send({ op: 'heartbeat', channel: ch, position: `0.e1:${offset}`, proved_at_ms: proved }); },
  judged() { for (const ch of c.channels) send({ op: 'freshness', channel: ch, state: 'stale', reason: 'paused', age_ms: mono() - proved }); },
  snapshot(ch) { const e = Object.entries(view(ch)), half = e.length >> 1; send({ op: 'snapshot', channel: ch, part: 0, more: true, rows: Object.fromEntries(e.slice(0, half)) }); send({ op: 'snapshot', channel: ch, part: 1, position: `0.e1:${offset}`, rows: Object.fromEntries(e.slice(half)) }); c.channels.add(ch); } };
  clients.add(c); send({ op: 'hello', session: 's', node: 'n', now_ms: mono(), heartbeat_ms: HB, live_for_ms: HB + SLO, limits: {} }); return c; }
const types = { html: 'text/html', css: 'text/css', js: 'text/javascript', svg: 'image/svg+xml' };
const server = createServer((q, s) => { const u = new URL(q.url, 'http://x');
  if (u.pathname === '/v1/sse') { s.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
    const c = client((m) => s.write(`id: 0.e1:${offset}\nevent: ${m.op}\ndata: ${JSON.stringify(m)}\n\n`));
    for (const ch of u.searchParams.getAll('channel')) { c.send({ op: 'outcome', channel: ch, outcome: 'snapshot', reason: 'new' }); c.snapshot(ch); } stale ? c.judged() : c.heartbeat(); q.on('close', () => clients.delete(c)); return; }
  const f = new URL('.' + (u.pathname === '/' ? '/index.html' : u.pathname), root);
  if (!existsSync(f)) return s.writeHead(404).end();
  s.writeHead(200, { 'content-type': types[f.pathname.split('.').pop()], 'content-security-policy': "default-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'", 'x-content-type-options': 'nosniff' }).end(readFileSync(f)); });
server.on('upgrade', (q, k) => { k.write('HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: tidegate.v1.json\r\nSec-WebSocket-Accept: ' + createHash('sha1').update(q.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest('base64') + '\r\n\r\n');
  const c = client((m) => { const b = Buffer.from(JSON.stringify(m)); const h = b.length < 126 ? Buffer.from([0x81, b.length]) : b.length < 65536 ? Buffer.from([0x81, 126, b.length >> 8, b.length & 255]) : Buffer.concat([Buffer.from([0x81, 127, 0, 0, 0, 0]), Buffer.from([b.length >>> 24, b.length >> 16 & 255, b.length >> 8 & 255, b.length & 255])]); k.write(Buffer.concat([h, b])); });
  let buf = Buffer.alloc(0);
  k.on('data', (d) => { buf = Buffer.concat([buf, d]); for (;;) { if (buf.length < 6) return; let l = buf[1] & 127, o = 2; if (l === 126) { l = buf.readUInt16BE(2); o = 4; } if (buf.length < o + 4 + l) return; const mask = buf.subarray(o, o + 4), p = Buffer.from(buf.subarray(o + 4, o + 4 + l)).map((x, j) => x ^ mask[j % 4]); const op = buf[0] & 15; buf = buf.subarray(o + 4 + l); if (op === 8) { k.end(); return; }
    for (const m of [JSON.parse(p.toString())].flat()) { if (m.op === 'subscribe') { c.send({ id: m.id, ok: m.from ? { outcome: 'snapshot', reason: 'too_old' } : { outcome: 'snapshot', reason: 'new' } }); c.snapshot(m.channel); stale ? c.judged() : c.heartbeat(); } if (m.op === 'ping') c.send({ op: 'pong' }); } } });
  k.on('close', () => clients.delete(c)); k.on('error', () => clients.delete(c)); });
const [host, port] = flag('--listen', '127.0.0.1:9700').split(':'); server.listen(port, host);
const [ah, ap] = flag('--admin', '127.0.0.1:9701').split(':');
createServer((q, s) => { if (q.url.endsWith('/pause')) paused = true; if (q.url.endsWith('/resume')) paused = false; s.end('ok'); }).listen(ap, ah);
