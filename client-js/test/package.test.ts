/**
 * The package as others get it: packed, installed into an empty project, imported by Node, checked by `tsc`, bundled by
 * Vite; and its size. `SDK_NODES` names other Node binaries to try it with.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const run = promisify(execFile);
const root = fileURLToPath(new URL('../../', import.meta.url));
const project = mkdtempSync(join(tmpdir(), 'tidegate-package-'));
const NODES = [process.execPath, ...(process.env['SDK_NODES'] ?? '').split(' ').filter(Boolean)];

before(async () => {
  const { stdout } = await run('npm', ['pack', '--silent', '--pack-destination', project], { cwd: root });
  writeFileSync(join(project, 'package.json'), '{"private":true,"type":"module"}');
  await run('npm', ['install', '--offline', '--ignore-scripts', '--omit=peer', '--no-audit', '--no-fund', `./${stdout.trim().split('\n').at(-1)}`], { cwd: project });
});
after(() => rmSync(project, { recursive: true, force: true }));

test('it holds what it should, and needs nothing at run time', () => {
  const installed = join(project, 'node_modules', 'tidegate');
  const { dependencies, exports } = JSON.parse(readFileSync(join(installed, 'package.json'), 'utf8'));
  assert.equal(dependencies, undefined);
  assert.deepEqual(readdirSync(installed).sort(), ['LICENSE', 'README.md', 'SPEC.md', 'dist', 'package.json']);
  for (const entry of Object.values<{ types?: string; default?: string }>(exports)) {
    for (const path of [entry.types, entry.default]) if (path) assert.ok(readFileSync(join(installed, path)).length > 0, path);
  }
});

for (const node of NODES) {
  test(`it is imported by ${node.split('/').slice(-5).join('/')}`, async () => {
    const program = `
      import { connect, TidegateError } from 'tidegate';
      const client = connect('https://gateway.example', { platform: { fetch: () => Promise.reject(new Error('no')), WebSocket: undefined } });
      const view = client.view('departures/JFK');
      client.onError((error) => {
        console.log(process.version, error instanceof TidegateError, error.code, view.freshness.state);
        client.close();
      });`;
    writeFileSync(join(project, 'program.mjs'), program);
    const { stdout } = await run(node, ['program.mjs'], { cwd: project });
    assert.match(stdout, /^v\d+\.\d+\.\d+ true network connecting\n$/);
  });
}

test('its types are found, in each way of resolving', async () => {
  writeFileSync(join(project, 'typed.ts'), `
    import { connect, type Change } from 'tidegate';
    const view = connect('https://gateway.example').view<{ gate: string }>('departures/JFK');
    const gate: string | undefined = view.get('B6915')?.gate;
    view.onChange((changes: readonly Change<{ gate: string }>[]) => console.log(gate, changes));
    // @ts-expect-error it is text
    const wrong: number = view.get('B6915')!.gate;
    export { wrong };`);
  const tsc = join(root, 'node_modules', '.bin', 'tsc');
  for (const [module, resolution] of [['nodenext', 'nodenext'], ['esnext', 'bundler']] as const) {
    const options = ['--noEmit', '--strict', '--skipLibCheck', 'false', '--target', 'es2022', '--lib', 'es2022,dom,dom.iterable', '--module', module, '--moduleResolution', resolution];
    await run(tsc, [...options, '--types', '', 'typed.ts'], { cwd: project }).catch(({ stdout }) => assert.fail(stdout));
  }
});

// Vite 8 itself needs a newer Node than the package does.
const OLD = Number(process.versions.node.split('.')[0]) < 20 && 'Vite needs Node 20';

test('Vite bundles it', { skip: OLD }, async () => {
  mkdirSync(join(project, 'page'), { recursive: true });
  writeFileSync(join(project, 'page', 'index.html'), '<!doctype html><script type="module" src="./main.js"></script>');
  writeFileSync(join(project, 'page', 'main.js'), "import { connect } from 'tidegate'; document.title = connect('/').status.state;");
  const vite = join(root, 'node_modules', '.bin', 'vite');
  await run(vite, ['build', '--logLevel', 'error', 'page'], { cwd: project });
  const [asset] = readdirSync(join(project, 'page', 'dist', 'assets'));
  assert.match(readFileSync(join(project, 'page', 'dist', 'assets', asset!), 'utf8'), /tidegate\.v1\.json/);
});

test('each entry keeps to its size', async () => {
  const { sizes } = (await import(new URL('../../tools/size.mjs', import.meta.url).href)) as {
    sizes(): Promise<Record<string, { gzip: number; bound: number }>>;
  };
  for (const [entry, { gzip, bound }] of Object.entries(await sizes())) {
    assert.ok(gzip <= bound, `${entry}: ${gzip} bytes compressed, of ${bound}`);
  }
});
