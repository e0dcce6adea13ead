/**
 * Runs the tests that `tsc` has compiled.
 * Does: finds what this Node can: WebSocket is behind a flag in Node 20, files side by side came with 20.10. Owns: nothing.
 * Never knows: what is tested.
 */
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';

const [major, minor] = process.versions.node.split('.').map(Number);
const flags = ['--test', '--test-reporter=tap'];
if (process.allowedNodeEnvironmentFlags.has('--experimental-websocket')) flags.push('--experimental-websocket');
// Most of the time is waiting for processes and clocks.
if (major > 20 || (major === 20 && minor >= 10)) flags.push('--test-concurrency=4');
const files = readdirSync('build/test').filter((name) => name.endsWith('.test.js')).map((name) => `build/test/${name}`);
process.exitCode = spawnSync(process.execPath, [...flags, ...files], { stdio: 'inherit' }).status ?? 1;
