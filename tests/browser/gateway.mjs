/**
 * The real gateway, as a process of its own.
 *
 * Does: starts `tidegate serve --demo` on free ports, waits until it is ready, pauses and resumes its source, ends it.
 * Owns: that process. Never knows: a browser.
 */
import { spawn } from 'node:child_process';
import { createServer } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';

const READY_MS = 30_000;
const END_MS = 10_000;

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await new Promise((listening) => { server.once('listening', listening); });
  const { port } = server.address();
  await new Promise((closed) => { server.close(closed); });
  return port;
}

/** Starts the gateway that `TIDEGATE_BIN` names: with the demo, or as these variables configure it. */
export async function startGateway(variables) {
  const binary = process.env.TIDEGATE_BIN;
  if (!binary) throw new Error('TIDEGATE_BIN must name the gateway, for example target/debug/tidegate');
  const [listen, admin] = [`127.0.0.1:${await freePort()}`, `127.0.0.1:${await freePort()}`];
  // The gateway takes variables that begin with TIDEGATE_ for its configuration, and refuses those that it does not know.
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => name !== 'TIDEGATE_BIN'));
  const own = variables && { TIDEGATE_LISTEN_ADDRESS: listen, TIDEGATE_ADMIN_ADDRESS: admin, ...variables };
  const args = own ? ['serve'] : ['serve', '--demo', '--listen', listen, '--admin', admin];
  const child = spawn(binary, args, { env: { ...env, ...own }, stdio: ['ignore', 'pipe', 'pipe'] });
  let said = '';
  const hear = (chunk) => { said = (said + chunk).slice(-4_000); };
  child.stdout.on('data', hear);
  child.stderr.on('data', hear);
  const ended = new Promise((end) => {
    child.once('exit', end);
    child.once('error', (error) => { hear(error.message); end(error); });
  });
  let over = false;
  ended.then(() => { over = true; });

  const stop = async () => {
    child.kill('SIGTERM');
    const late = setTimeout(() => child.kill('SIGKILL'), END_MS);
    await ended;
    clearTimeout(late);
  };
  const post = async (path) => {
    const answer = await fetch(`http://${admin}${path}`, { method: 'POST' });
    if (!answer.ok) throw new Error(`POST ${path} answered ${answer.status}: ${await answer.text()}`);
  };
  const deadline = Date.now() + READY_MS;
  for (;;) {
    const ready = await fetch(`http://${admin}/ready`).then((answer) => answer.ok, () => false);
    if (ready) break;
    if (over || Date.now() > deadline) {
      await stop();
      throw new Error(`the gateway was not ready within ${READY_MS} ms; it said:\n${said}`);
    }
    await pause(50);
  }
  return {
    url: `http://${listen}/`,
    pauseSource: () => post('/streams/departures/pause'),
    resumeSource: () => post('/streams/departures/resume'),
    stop,
  };
}
