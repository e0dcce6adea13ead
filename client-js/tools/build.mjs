/**
 * Builds the package: `dist/*.js` by esbuild, readable, shared code in chunks; `dist/types` by tsc.
 * Does: that. Owns: `dist/`. Never knows: versions.
 */
import { execFileSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const { exports } = createRequire(import.meta.url)('../package.json');
const entries = Object.keys(exports).filter((name) => !name.endsWith('.json')).map((name) => name.slice(2) || 'index');

rmSync(join(root, 'dist'), { recursive: true, force: true });
await build({
  absWorkingDir: root,
  entryPoints: entries.map((name) => `src/${name}.ts`),
  outdir: 'dist',
  bundle: true,
  splitting: true,
  format: 'esm',
  target: 'es2022',
  external: ['react'],
  chunkNames: 'chunk-[hash]',
  logLevel: 'warning',
});
const tsc = join(root, 'node_modules', '.bin', 'tsc');
execFileSync(tsc, ['-p', 'tsconfig.types.json'], { cwd: root, stdio: 'inherit' });
