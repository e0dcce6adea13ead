/**
 * The departures board.
 *
 * Does: shows the rows of one airport's channel and how fresh they are; turns pages on a wall, scrolls on a phone.
 * Owns: the page. Never knows: the protocol (`tide.js`), or what freshness means (`state.js`).
 * Keeps: says `live` only while `state.js` does; rows that are not live stay, visibly dimmed.
 */
import { Flaps } from './flap.js';
import { AIRPORTS } from './places.js';
import { Row } from './row.js';
import { Tide } from './tide.js';
import { age, badge, tally } from './words.js';

const PAGE_MS = 14_000;
const SPEAK_MS = 30_000;
const RATE_MS = 5_000;
/** Room for a row, in heights of its flaps. */
const ROW_PITCH = 1.24;

const at = (id) => document.getElementById(id);
const wall = matchMedia('(min-width: 900px) and (min-height: 560px)');
const still = matchMedia('(prefers-reduced-motion: reduce)');
const query = new URLSearchParams(location.search);
const oneOf = (value, choices) => (choices.includes(value) ? value : choices[0]);

let airport = oneOf(query.get('airport'), Object.keys(AIRPORTS));
const channelOf = (code) => `departures/${code}`;
const CLOCK = channelOf('clock');
const theme = query.get('theme');
if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;

/* ---- the flights of the airport that is looked at ---- */

const keyOf = ([id, { data }]) => `${data?.scheduled ?? '99:99'} ${id}`;
const current = () => tide.channels.get(channelOf(airport));
const flights = () => [...current().rows].map((entry) => ({ id: entry[0], key: keyOf(entry), data: entry[1].data }))
  .filter((flight) => flight.data).sort((a, b) => (a.key < b.key ? -1 : 1));
/** `{clock, day}` of the demonstration; none where nobody publishes it. */
const clockNow = () => {
  const data = tide.channels.get(CLOCK).rows.get('clock')?.data;
  return /^\d\d:\d\d$/.test(data?.clock) ? data : undefined;
};
/** Where a board that is opened now begins: half an hour ago. */
const nowKey = () => (clockNow() ? halfAnHourBefore(clockNow().clock) : '');
const halfAnHourBefore = (time) => {
  const minutes = Math.max(0, Number(time.slice(0, 2)) * 60 + Number(time.slice(3, 5)) - 30);
  return `${String(Math.floor(minutes / 60)).padStart(2, '0')}:${String(minutes % 60).padStart(2, '0')}`;
};

/* ---- a wall: as many lines as fit, page after page ---- */

const pager = {
  rows: [],
  ids: [],
  from: null,
  turnedAt: performance.now(),
  held: still.matches,

  /** Makes as many lines as fit. */
  fit() {
    const box = at('rows');
    if (!this.rows.length) this.add(box);
    const height = this.rows[0].element.querySelector('.flap').offsetHeight * ROW_PITCH;
    const fits = Math.max(1, Math.floor(box.clientHeight / height));
    while (this.rows.length < fits) this.add(box);
    while (this.rows.length > fits) this.rows.pop().element.remove();
    this.compose(flights(), false);
  },
  add(box) {
    const row = new Row();
    this.rows.push(row);
    box.append(row.element);
  },
  /** Chooses the flights of the page; until the clock is known, each time. A row that goes leaves its line empty until then, so that the others stand still. */
  compose(list, turn = true) {
    const start = Math.max(0, list.findIndex((flight) => flight.key >= (this.from ?? nowKey())));
    const shown = list.slice(start, start + this.rows.length);
    if (shown.length && clockNow()) this.from = shown[0].key;
    this.ids = shown.map((flight) => flight.id);
    this.last = shown.at(-1)?.key ?? '';
    const pages = Math.max(1, Math.ceil(list.length / this.rows.length));
    at('page-count').textContent = `${Math.min(pages, Math.floor(start / this.rows.length) + 1)} / ${pages}`;
    this.show(turn);
  },
  show(turn = true) {
    const data = current().rows;
    this.rows.forEach((row, i) => row.set(data.get(this.ids[i])?.data ?? null, turn));
  },
  /** Goes a page on, or back; after the last one to the present, not to what has long departed. */
  turn(step) {
    const list = flights();
    const size = this.rows.length;
    const here = list.findIndex((flight) => flight.key >= (this.from ?? nowKey()));
    const next = list.find((flight) => flight.key > this.last);
    const back = here > 0 ? list[Math.max(0, here - size)] : list[Math.max(0, list.length - size)];
    const present = list.find((flight) => flight.key >= nowKey()) ?? list[0];
    this.from = (step < 0 ? back : next ?? present)?.key ?? '';
    this.turnedAt = performance.now();
    this.compose(list);
  },
  tick(now) {
    if (now - this.turnedAt < PAGE_MS) return;
    if (!this.held) this.turn(1);
    else this.compose(flights());
    this.turnedAt = now;
  },
};

/* ---- a phone: all the lines, in a page that scrolls ---- */

const scroller = {
  rows: new Map(),
  opened: false,

  show(turn = true) {
    const list = flights();
    const known = new Set(list.map((flight) => flight.id));
    for (const [id, row] of this.rows) if (!known.has(id)) this.remove(id, row);
    let before = at('rows').firstChild;
    for (const flight of list) {
      const row = this.rows.get(flight.id) ?? this.add(flight.id);
      if (row.element === before) before = before.nextSibling;
      else at('rows').insertBefore(row.element, before);
      row.set(flight.data, turn && visible(row.element));
    }
    if (!this.opened && list.length && clockNow()) this.open(list);
  },
  add(id) {
    const row = new Row();
    this.rows.set(id, row);
    return row;
  },
  remove(id, row) {
    row.element.remove();
    this.rows.delete(id);
  },
  /** A board that is opened begins at the present, unless its reader has scrolled already. */
  open(list) {
    this.opened = true;
    const first = list.findIndex((flight) => flight.key >= nowKey());
    if (first > 0 && scrollY === 0) this.rows.get(list[first].id).element.scrollIntoView({ block: 'start' });
  },
};

function visible(element) {
  const { top, bottom } = element.getBoundingClientRect();
  return bottom > 0 && top < innerHeight;
}

function lay() {
  at('rows').replaceChildren();
  pager.rows = [];
  scroller.rows.clear();
  scroller.opened = false;
  at('pages').hidden = !wall.matches;
  if (wall.matches) pager.fit();
  else scroller.show(false);
}

/* ---- what stands around the rows ---- */

const clockFlaps = new Flaps(5);
at('clock-flaps').replaceWith(clockFlaps.element);
clockFlaps.element.classList.add('big');

function showClock() {
  const data = clockNow();
  at('clock').hidden = !data;
  if (!data) return;
  clockFlaps.set(data.clock, true);
  at('clock-text').textContent = `It is ${data.clock}`;
  const day = new Date(`${data.day}T12:00:00Z`);
  at('day').textContent = Number.isNaN(day.getTime()) ? '' : day.toLocaleDateString('en-GB',
    { weekday: 'long', day: 'numeric', month: 'long', year: 'numeric', timeZone: 'UTC' });
}

const put = (id, text) => {
  if (at(id).textContent !== text) at(id).textContent = text;
};
let spokenAt = -Infinity;
let spokenState = '';

function showBadge(now) {
  const freshness = current().freshness(tide.link, now);
  const { word, age: old, why } = badge(freshness, tide.link.retryAt === null ? null : tide.link.retryAt - now);
  at('badge').dataset.state = freshness.state;
  at('badge').dataset.ageS = freshness.ageMs === null ? '' : Math.floor(freshness.ageMs / 1000);
  at('board').dataset.live = String(freshness.state === 'live');
  put('badge-word', word);
  put('badge-age', old);
  const list = flights();
  const summary = list.length ? tally(list.map((flight) => flight.data)) : '';
  put('tally', summary);
  // On a phone the summary is far below: while all is well it stands in the line that is kept for what is not.
  put('badge-why', freshness.state === 'live' ? summary : why);
  at('empty').hidden = list.length > 0;
  put('empty', freshness.state === 'live' ? 'No departures.' : why || `${word} …`);
  showWire(freshness, now);
  speak(`${airport}: ${word}${why ? `. ${why}` : ''} ${summary}`, `${airport} ${word}`, now);
}

/** Tells screen readers of a new state or airport at once, of numbers now and then. */
function speak(text, state, now) {
  if (state === spokenState && now - spokenAt < SPEAK_MS) return;
  spokenState = state;
  spokenAt = now;
  put('spoken', text);
}

let samples = [];

function showWire(freshness, now) {
  const total = [...tide.channels.values()].reduce((sum, channel) => sum + channel.updates, 0);
  samples = [...samples.filter((sample) => now - sample.now < RATE_MS), { now, total }];
  const first = samples[0];
  const rate = now > first.now ? ((total - first.total) * 1000) / (now - first.now) : 0;
  const proof = freshness.state === 'live' ? `proved ${age(freshness.ageMs)} ago` : freshness.state.replace('_', ' ');
  const via = tide.transport === 'sse' ? 'SSE' : 'WebSocket';
  put('wire', `${via} · ${current().position ?? 'no position yet'} · ${rate.toFixed(1)} updates/s · ${proof}`);
}

/* ---- choices ---- */

function remember(name, value) {
  query.set(name, value);
  history.replaceState(null, '', `?${query}`);
}

function choose(code) {
  airport = code;
  remember('airport', code);
  pager.from = null;
  pager.turnedAt = performance.now();
  showTabs();
  if (wall.matches) pager.compose(flights());
  else lay();
  showBadge(performance.now());
}

function showTabs() {
  put('airport-name', AIRPORTS[airport]);
  document.title = `${airport} departures`;
  for (const tab of at('airports').children) tab.setAttribute('aria-pressed', String(tab.value === airport));
}

for (const code of Object.keys(AIRPORTS)) {
  const tab = document.createElement('button');
  Object.assign(tab, { type: 'button', value: code, textContent: code, title: AIRPORTS[code] });
  tab.addEventListener('click', () => choose(code));
  at('airports').append(tab);
}

const transport = oneOf(query.get('transport'), ['ws', 'sse']);
document.querySelector(`[name=transport][value=${transport}]`).checked = true;
at('transports').addEventListener('change', ({ target }) => {
  remember('transport', target.value);
  tide.use(target.value);
});

function hold(held) {
  pager.held = held;
  at('page-hold').setAttribute('aria-pressed', String(held));
}
at('page-hold').addEventListener('click', () => hold(!pager.held));
at('page-back').addEventListener('click', () => pager.turn(-1));
at('page-on').addEventListener('click', () => pager.turn(1));

/* ---- running ---- */

let dirty = false;
const tide = new Tide({
  channels: [...Object.keys(AIRPORTS).map(channelOf), CLOCK],
  transport,
  onChange: () => {
    if (dirty) return;
    dirty = true;
    requestAnimationFrame(show);
  },
});

function show() {
  dirty = false;
  if (!wall.matches) scroller.show();
  else if (pager.from === null) pager.compose(flights());
  else pager.show();
  showClock();
  showBadge(performance.now());
}

hold(pager.held);
showTabs();
lay();
wall.addEventListener('change', lay);
new ResizeObserver(() => wall.matches && pager.fit()).observe(at('rows'));
setInterval(() => {
  const now = performance.now();
  if (wall.matches) pager.tick(now);
  showBadge(now);
}, 500);
