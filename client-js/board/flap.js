/**
 * Split flaps: a line of characters that turn, one after the other, when their text changes.
 *
 * Does: shows a text on a fixed number of flaps. Owns: those elements and the one clock that turns all of them.
 * Never knows: what the text means. Keeps: nothing turns where nobody sees it, or where less motion is asked for.
 */

/** The order of the characters on a drum; others come at once. */
const DRUM = " ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-'";
/** The order from a digit to a digit: a clock never passes through letters. */
const DIGITS = '0123456789';
/** Flaps that fall before the right one, at most. */
const TURNS_MAX = 4;
/** Half a turn, in milliseconds. */
const HALF_TURN_MS = 46;

/** After a pause longer than this many half turns, flaps go on from where they were. */
const HALVES_MAX = 40;

/** The widest that a letter may be, in heights of its type: the rest of the flap is its margin. */
const LETTER_MAX = 0.82;

const still = matchMedia('(prefers-reduced-motion: reduce)');
const turning = new Set();
let lastTick = 0;

/** Turns all flaps by the time that went by, so that a slow screen shows fewer steps and not slower ones. */
function tick(time) {
  const halves = Math.min(Math.floor((time - lastTick) / HALF_TURN_MS), HALVES_MAX);
  if (halves > 0) {
    lastTick = halves === HALVES_MAX ? time : lastTick + halves * HALF_TURN_MS;
    turning.forEach((flap) => flap.turn(halves));
  }
  if (turning.size) requestAnimationFrame(tick);
}

function start(flap) {
  if (turning.size === 0) {
    lastTick = performance.now();
    requestAnimationFrame(tick);
  }
  turning.add(flap);
}

const pen = document.createElement('canvas').getContext('2d');
const fits = new Map();

/** How much narrower a character must be to stay on its flap, in whatever type this machine has: 1 for most, less for a W. */
function fit(character) {
  let ratio = fits.get(character);
  if (ratio === undefined) {
    pen.font = `600 100px ${getComputedStyle(document.documentElement).getPropertyValue('--flap-type')}`;
    ratio = Math.min(1, (100 * LETTER_MAX) / Math.max(1, pen.measureText(character).width));
    fits.set(character, ratio);
  }
  return ratio;
}

class Flap {
  #letter = document.createElement('b');
  #shown = ' ';
  #was = ' ';
  #queue = [];
  #wait = 0;
  #phase = '';

  constructor() {
    this.element = document.createElement('span');
    this.element.className = 'flap';
    this.#letter.textContent = ' ';
    this.element.append(this.#letter);
  }

  /** Turns to a character after `wait` half turns, or with null shows it at once. */
  set(character, wait) {
    if (character === (this.#queue.at(-1) ?? this.#shown)) return;
    this.#queue = wait === null ? [] : way(this.#shown, character);
    if (wait === null) {
      this.#shown = character;
      this.#print();
    } else {
      this.#wait = wait;
      start(this);
    }
  }

  turn(halves) {
    for (let i = 0; i < halves; i += 1) this.#halfTurn();
    const { dataset, style } = this.element;
    this.#print();
    dataset.was = this.#was;
    dataset.now = this.#shown;
    dataset.turn = this.#phase;
    style.setProperty('--was', fit(this.#was));
    if (this.#phase === '' && this.#wait === 0 && !this.#queue.length) turning.delete(this);
  }

  #print() {
    if (this.#letter.textContent === this.#shown) return;
    this.#letter.textContent = this.#shown;
    this.element.style.setProperty('--now', fit(this.#shown));
  }

  #halfTurn() {
    if (this.#wait > 0) {
      this.#wait -= 1;
    } else if (this.#phase === 'fall') {
      this.#phase = 'land';
    } else if (this.#queue.length) {
      this.#was = this.#shown;
      this.#shown = this.#queue.shift();
      this.#phase = 'fall';
    } else {
      this.#phase = '';
    }
  }
}

/** The characters that fall on the way from one to another: the last few of the drum before it, and itself. */
function way(from, to) {
  const drum = DIGITS.includes(from) && DIGITS.includes(to) ? DIGITS : DRUM;
  const [start, end] = [drum.indexOf(from), drum.indexOf(to)];
  if (start < 0 || end < 0) return [to];
  const turns = Math.min((end - start + drum.length) % drum.length, TURNS_MAX);
  return Array.from({ length: turns }, (_, i) => drum[(end - turns + 1 + i + drum.length) % drum.length]);
}

/** A line of `length` flaps; put `element` on the page. */
export class Flaps {
  element = document.createElement('span');
  #flaps;
  #text = null;

  constructor(length) {
    this.#flaps = Array.from({ length }, () => new Flap());
    this.element.className = 'flaps';
    this.element.setAttribute('aria-hidden', 'true');
    this.element.append(...this.#flaps.map((flap) => flap.element));
  }

  /** Shows `text` in capitals, cut to its length; `turn` lets the flaps turn. */
  set(text, turn) {
    if (text === this.#text) return;
    this.#text = text;
    const moving = turn && !still.matches && !document.hidden;
    const characters = [...text.toUpperCase()];
    this.#flaps.forEach((flap, i) => flap.set(characters[i] ?? ' ', moving ? Math.floor(i / 2) : null));
  }
}
