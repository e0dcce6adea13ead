/**
 * Says how large each entry is, minified and compressed, and fails where one is beyond its bound.
 * Does: that, from the sources, so that nothing need be built. Owns: the bounds. Never knows: what is in them.
 */
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { build } from 'esbuild';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
/**
 * Bytes, by entry. What an entry needs of the core counts for the core alone. The core holds all three transports and publishing;
 * its aim is 8 KiB, which it does not meet: the bound keeps it from growing until it does.
 */
export const BOUNDS = { index: 14_000, react: 1024, offline: 2048, tabs: 3072 };

export async function sizes() {
  const found = {};
  for (const entry of Object.keys(BOUNDS)) {
    const { outputFiles } = await build({
      absWorkingDir: root, entryPoints: [`src/${entry}.ts`], bundle: true, minify: true, format: 'esm', target: 'es2022',
      write: false, external: entry === 'index' ? [] : ['react', './client.js', './handle.js', './errors.js'],
    });
    const [{ contents }] = outputFiles;
    found[entry] = { minified: contents.length, gzip: gzipSync(contents, { level: 9 }).length, bound: BOUNDS[entry] };
  }
  return found;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  for (const [entry, { minified, gzip, bound }] of Object.entries(await sizes())) {
    console.log(`${entry}: ${minified} bytes minified, ${gzip} compressed, of ${bound}`);
    if (gzip > bound) process.exitCode = 1;
  }
}
