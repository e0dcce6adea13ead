/**
 * The SDK in a real browser, before the real gateway: the built package, on a page of the gateway's own origin.
 *
 * Does: follows a view over each transport, pauses the source, freezes and shows the page, keeps the token out of URLs.
 * Owns: the browser and the gateway. Keeps: waits for conditions, never for time.
 */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { chromium } from 'playwright-core';

import { startGateway } from './gateway.mjs';

const DIST = new URL('../../client-js/dist/', import.meta.url);
const PATIENCE_MS = 40_000;
const CHROMIUM = {
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  headless: true,
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync'],
};

let gateway;
let browser;

before(async () => {
  browser = await chromium.launch(CHROMIUM);
  gateway = await startGateway();
});

after(async () => {
  await browser?.close();
  await gateway?.stop();
});

/**
 * A page of the gateway's own, a view as JSON, into which the SDK is loaded. A page that the test made up would not do: Chromium
 * keeps pages that came from nowhere from opening sockets to this machine.
 */
async function onPage(visit) {
  const context = await browser.newContext();
  const complaints = [];
  try {
    await context.route('**/sdk/**', async (route) => {
      const name = new URL(route.request().url()).pathname.slice('/sdk/'.length);
      if (name === 'board.js') return route.fulfill({ contentType: 'text/javascript', body: await inReact() });
      assert.ok(readdirSync(DIST).includes(name), name);
      return route.fulfill({ contentType: 'text/javascript', body: readFileSync(new URL(name, DIST)) });
    });
    const open = async () => {
      const page = await context.newPage();
      page.on('pageerror', (error) => complaints.push(error.message));
      await page.goto(`${gateway.url}v1/view/departures/JFK`);
      return page;
    };
    await visit(await open(), open);
    assert.deepEqual(complaints, []);
  } finally {
    await context.close();
  }
}

/** A page in React, bundled as an application would be: two components that follow one view, one of which can go. */
async function inReact() {
  const { build } = createRequire(new URL('../../client-js/package.json', import.meta.url))('esbuild');
  const contents = `
    import { createElement as h, StrictMode, useState } from 'react';
    import { createRoot } from 'react-dom/client';
    import { connect } from './dist/index.js';
    import { useFreshness, useView } from './dist/react.js';
    const client = connect('/', { transports: ['ws'] });
    window.client = client;
    window.draws = 0;
    function Rows() {
      const { rows, freshness } = useView(client, 'departures/JFK');
      window.draws += 1;
      window.maps = (window.maps ?? new Set()).add(rows);
      return h('p', { id: 'rows', 'data-state': freshness.state }, String(rows.size));
    }
    const Badge = () => h('b', { id: 'badge' }, useFreshness(client, 'departures/JFK').state);
    function Board() {
      const [shown, show] = useState(true);
      window.hide = () => show(false);
      return shown ? h('div', null, h(Rows), h(Badge)) : h('div', { id: 'gone' });
    }
    const root = document.body.appendChild(document.createElement('main'));
    createRoot(root).render(h(StrictMode, null, h(Board)));`;
  const resolveDir = fileURLToPath(new URL('../../client-js/', import.meta.url));
  const { outputFiles } = await build({
    stdin: { contents, resolveDir }, bundle: true, write: false, format: 'esm', define: { 'process.env.NODE_ENV': '"development"' },
  });
  return outputFiles[0].text;
}

/** Follows the demo's JFK on a page; what it knows is `window.view`. */
const follow = (page, options) => page.evaluate(async (given) => {
  const { connect } = await import('/sdk/index.js');
  window.client = connect('/', given);
  window.view = window.client.view('departures/JFK');
  window.changes = 0;
  window.told = [];
  window.view.onChange((changes) => { window.changes += changes.length; });
  window.view.onFreshness(({ state }) => window.told.push(state));
}, options);

const state = (page, wanted) => page.waitForFunction((word) => window.view.freshness.state === word, wanted, { timeout: PATIENCE_MS });

for (const transport of ['ws', 'sse', 'poll']) {
  test(`over ${transport}: rows, changes, stale when the source pauses, live again`, async () => {
    await onPage(async (page) => {
      const urls = [];
      page.on('request', (request) => urls.push(request.url()));
      await follow(page, { transports: [transport] });
      await state(page, 'live');
      assert.ok(await page.evaluate(() => window.view.rows.size) > 0);
      const before = await page.evaluate(() => window.changes);
      await page.waitForFunction((count) => window.changes > count, before, { timeout: PATIENCE_MS });
      try {
        await gateway.pauseSource();
        await state(page, 'stale');
        assert.ok(await page.evaluate(() => window.view.rows.size) > 0, 'the rows stay');
      } finally {
        await gateway.resumeSource();
      }
      await state(page, 'live');
      assert.ok((await page.evaluate(() => window.told)).includes('stale'));
      assert.ok(urls.every((url) => !url.includes('token')));
    });
  });
}

test('a token that does not hold is told, and is in no URL', async () => {
  await onPage(async (page) => {
    const urls = [];
    page.on('request', (request) => urls.push(request.url()));
    page.on('websocket', (socket) => urls.push(socket.url()));
    await follow(page, { token: 'nobody-knows-it' });
    await page.waitForFunction(() => window.view.freshness.reason === 'unauthorized', null, { timeout: PATIENCE_MS });
    assert.ok(urls.length > 0 && urls.every((url) => !url.includes('nobody-knows-it')), urls.join());
  });
});

test('begun offline: held, and live once the browser is online', async () => {
  await onPage(async (page) => {
    await page.evaluate(() => import('/sdk/index.js').then(() => {}));
    await page.context().setOffline(true);
    await page.waitForFunction(() => !navigator.onLine, null, { timeout: PATIENCE_MS });
    await follow(page, {});
    assert.deepEqual(await page.evaluate(() => [window.client.status.state, window.view.freshness.state]), ['held', 'connecting']);
    await page.context().setOffline(false);
    await state(page, 'live');
  });
});

test('a page that is hidden and frozen lets go, and comes back live', async () => {
  await onPage(async (page) => {
    await follow(page, { transports: ['ws'] });
    await state(page, 'live');
    // What a browser tells a page that it puts into the back/forward cache, and takes out of it.
    await page.evaluate(() => window.dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true })));
    assert.deepEqual(await page.evaluate(() => [window.client.status.state, window.view.freshness.state]), ['held', 'stale']);
    await page.evaluate(() => window.dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true })));
    await state(page, 'live');
  });
});

test('in React: rows and freshness are drawn, and when nobody draws them nothing is followed', async () => {
  await onPage(async (page) => {
    await page.evaluate(() => import('/sdk/board.js').then(() => {}));
    await page.waitForFunction(() => document.querySelector('#badge')?.textContent === 'live', null, { timeout: PATIENCE_MS });
    await page.waitForFunction(() => Number(document.querySelector('#rows').textContent) > 0, null, { timeout: PATIENCE_MS });
    const maps = await page.evaluate(() => window.maps.size);
    await page.waitForFunction((count) => window.maps.size > count, maps, { timeout: PATIENCE_MS });
    assert.equal(await page.getAttribute('#rows', 'data-state'), 'live');
    assert.ok(await page.evaluate(() => window.draws < window.maps.size * 4 + 20), 'it is drawn when something has changed');
    await page.evaluate(() => window.hide());
    await page.waitForFunction(() => window.client.status.state === 'idle', null, { timeout: PATIENCE_MS });
  });
});

test('tabs: one connection for all; another takes over when the hub goes; a signal before the start is heeded', async () => {
  await onPage(async (page, open) => {
    const sockets = [];
    const begin = async (tab) => {
      tab.on('websocket', (socket) => sockets.push(socket.url()));
      await tab.evaluate(async () => {
        const { connectTabs } = await import('/sdk/tabs.js');
        connectTabs('/', { signal: AbortSignal.abort() });
        window.client = connectTabs('/', { transports: ['ws'] });
        window.view = window.client.view('departures/JFK');
        window.changes = 0;
        window.view.onChange((changes) => { window.changes += changes.length; });
      });
      await state(tab, 'live');
    };
    const other = await open();
    await begin(page);
    await begin(other);
    assert.deepEqual([await page.evaluate(() => window.client.isHub), await other.evaluate(() => window.client.isHub)], [true, false]);
    assert.equal(sockets.length, 1, sockets.join());
    const rows = (tab) => tab.evaluate(() => JSON.stringify([...window.view.rows].sort()));
    const before = await other.evaluate(() => window.changes);
    await other.waitForFunction((count) => window.changes > count, before, { timeout: PATIENCE_MS });
    try {
      await gateway.pauseSource();
      await state(page, 'stale');
      await state(other, 'stale');
      assert.equal(await rows(other), await rows(page));
      assert.equal(await other.evaluate(() => window.view.freshness.reason), await page.evaluate(() => window.view.freshness.reason));
      const ages = await Promise.all([page, other].map((tab) => tab.evaluate(() => window.view.freshness.ageMs)));
      assert.ok(Math.abs(ages[1] - ages[0]) < 5_000, ages.join());
    } finally {
      await gateway.resumeSource();
    }
    await state(other, 'live');
    await page.close();
    await other.waitForFunction(() => window.client.isHub, null, { timeout: PATIENCE_MS });
    await state(other, 'live');
    assert.equal(sockets.length, 2);
    await other.evaluate(() => window.client.close());
    assert.deepEqual(await other.evaluate(() => navigator.locks.query().then(({ held }) => held.length)), 0);
  });
});

test('tabs: a hub that does not answer loses its place', async () => {
  await onPage(async (page, open) => {
    const frozen = await open();
    // What is left of a tab that was frozen: its lock.
    await frozen.evaluate(() => new Promise((held) => {
      navigator.locks.request(`tidegate ${location.origin}/`, () => { held(); return new Promise(() => {}); }).catch(() => { window.robbed = true; });
    }));
    await page.evaluate(async () => {
      const { connectTabs } = await import('/sdk/tabs.js');
      window.client = connectTabs('/', { firstByteMs: 200 });
      window.view = window.client.view('departures/JFK');
    });
    await state(page, 'live');
    assert.equal(await page.evaluate(() => window.client.isHub), true);
    assert.equal(await frozen.evaluate(() => window.robbed), true);
  });
});

test('offline: what one page kept is shown by the next before any connection, and wiped on demand', async () => {
  await onPage(async (page, open) => {
    const begin = (tab, url) => tab.evaluate(async (address) => {
      const [{ connect }, { offline }] = await Promise.all([import('/sdk/index.js'), import('/sdk/offline.js')]);
      window.keeper = offline();
      window.client = connect(address, { keeper: window.keeper, transports: ['ws'] });
      window.view = window.client.view('departures/JFK');
    }, url);
    await begin(page, '/');
    await state(page, 'live');
    const size = await page.evaluate(() => { const { size } = window.view.rows; window.client.close(); return size; });
    // Where nobody answers: what is shown is from the store.
    const next = await open();
    await begin(next, 'http://127.0.0.1:9');
    await next.waitForFunction((rows) => window.view.rows.size === rows, size, { timeout: PATIENCE_MS });
    const shown = await next.evaluate(() => window.view.freshness);
    assert.equal(shown.state, 'stale');
    assert.ok(shown.ageMs > 0 && shown.ageMs < 60_000, String(shown.ageMs));
    await next.evaluate(() => { window.client.close(); return window.keeper.wipe(); });
    const last = await open();
    await begin(last, 'http://127.0.0.1:9');
    await last.waitForFunction(() => window.client.status.error !== null, null, { timeout: PATIENCE_MS });
    assert.equal(await last.evaluate(() => window.view.rows.size), 0);
  });
});

test('in a worker', async () => {
  await onPage(async (page) => {
    const said = await page.evaluate(() => new Promise((resolve, reject) => {
      const program = `import { connect } from '${location.origin}/sdk/index.js';
        const view = connect('${location.origin}').view('departures/JFK');
        view.live().then(() => postMessage([view.freshness.state, view.rows.size > 0]));`;
      const worker = new Worker(URL.createObjectURL(new Blob([program], { type: 'text/javascript' })), { type: 'module' });
      worker.onmessage = ({ data }) => resolve(data);
      worker.onerror = (event) => reject(new Error(event.message));
    }));
    assert.deepEqual(said, ['live', true]);
  });
});
