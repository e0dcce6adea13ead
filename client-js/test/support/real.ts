/**
 * The real gateway, as a process that can be killed and started again at the same address.
 *
 * Does: starts `TIDEGATE_BIN` with a data directory, pauses its source, signs tokens. Owns: the process and the directory.
 * Never knows: the client.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash, createHmac } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';

export const KEY = 'a-key-of-the-sdks-tests';
const SECRET = 'a-secret-of-the-sdks-tests-of-32-bytes-at-least';
const PATIENCE_MS = 30_000;

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await new Promise((listening) => { server.once('listening', listening); });
  const { port } = server.address() as { port: number };
  await new Promise((closed) => { server.close(closed); });
  return port;
}

/** Waits until `holds` says so; fails with what was waited for. */
export async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + PATIENCE_MS;
  while (!(await holds())) {
    if (Date.now() > deadline) throw new Error(`waited too long: ${what}`);
    await pause(10);
  }
}

/** A JWT for everything, signed as the gateway's key says. */
export function jwt(seconds: number, more: object = {}): string {
  const now = Math.floor(Date.now() / 1000);
  const text = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const claims = { sub: 'sdk', iat: now, exp: now + seconds, channels: ['*'], can: ['subscribe', 'publish'], ...more };
  const body = `${text({ alg: 'HS256', kid: 'sdk' })}.${text(claims)}`;
  return `${body}.${createHmac('sha256', SECRET).update(body).digest('base64url')}`;
}

export class RealGateway {
  #child: ChildProcess | null = null;
  #said = '';
  readonly #dir = mkdtempSync(join(tmpdir(), 'tidegate-sdk-'));
  #listen = '';
  #admin = '';

  get url() {
    return `http://${this.#listen}`;
  }

  async start(): Promise<this> {
    const binary = process.env['TIDEGATE_BIN'];
    if (!binary) throw new Error('TIDEGATE_BIN must name the gateway, for example target/debug/tidegate');
    this.#listen ||= `127.0.0.1:${await freePort()}`;
    this.#admin ||= `127.0.0.1:${await freePort()}`;
    const rest = Object.entries(process.env).filter(([name]) => !name.startsWith('TIDEGATE_'));
    const env = {
      ...Object.fromEntries(rest),
      TIDEGATE_LISTEN_ADDRESS: this.#listen,
      TIDEGATE_ADMIN_ADDRESS: this.#admin,
      TIDEGATE_EMBEDDED_DIR: this.#dir,
      TIDEGATE_STREAMS: '[{"name":"departures","freshness_slo":"1s"},{"name":"trades","mode":"events"}]',
      TIDEGATE_SESSION_HEARTBEAT: '500ms',
      TIDEGATE_ACCESS_API_KEYS: JSON.stringify([{
        id: 'sdk', sha256: createHash('sha256').update(KEY).digest('hex'), channels: ['*'], can: ['subscribe', 'publish'],
      }]),
      TIDEGATE_ACCESS_JWT_KEYS: JSON.stringify([{ id: 'sdk', algorithm: 'HS256', secret: SECRET }]),
    };
    const child = spawn(binary, ['serve'], { env, stdio: ['ignore', 'pipe', 'pipe'] });
    this.#child = child;
    for (const stream of [child.stdout, child.stderr]) stream!.on('data', (chunk) => { this.#said = (this.#said + chunk).slice(-4_000); });
    await until('the gateway is ready', async () => {
      if (child.exitCode !== null) throw new Error(`the gateway ended:\n${this.#said}`);
      return fetch(`http://${this.#admin}/ready`).then(({ ok }) => ok, () => false);
    });
    return this;
  }

  async #end(signal: NodeJS.Signals) {
    const child = this.#child;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise((end) => { child.once('exit', end); });
    child.kill(signal);
    await ended;
  }

  /** As a crash would. */
  kill() {
    return this.#end('SIGKILL');
  }

  async stop() {
    await this.#end('SIGKILL');
    rmSync(this.#dir, { recursive: true, force: true });
  }

  async admin(path: string) {
    const answer = await fetch(`http://${this.#admin}${path}`, { method: 'POST' });
    if (!answer.ok) throw new Error(`POST ${path} answered ${answer.status}: ${await answer.text()}`);
  }
}
