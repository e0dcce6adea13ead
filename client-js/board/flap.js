/**
 * Split flaps: a line of characters that turn, one after the other, when their text changes.
 *
 * Does: shows a text on a fixed number of flaps. Owns: those elements and the one clock that turns all of them.
 * Never knows: what the text means. Keeps: nothing turns where nobody sees it, or where less motion is asked for.
 */

/** The order of the characters on a drum; others come at once. */
const DRUM = " ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:-'";
/** Flaps that fall before the right one, at most. */
const TURNS_MAX = 4;
/** Half a turn, in milliseconds; `board.css` says the same. */
const HALF_TURN_MS = 46;

const still = matchMedia('(prefers-reduced-motion: reduce)');
const turning = new Set();
let lastTick = 0;

function tick(time) {
  if (time - lastTick >= HALF_TURN_MS) {
    lastTick = time;
    turning.forEach((flap) => flap.halfTurn());
  }
  if (turning.size) requestAnimationFrame(tick);
}

class Flap {
  #text = document.createTextNode(' ');
  #shown = ' ';
  #queue = [];
  #wait = 0;
  #falling = false;

  constructor() {
    this.element = document.createElement('span');
    this.element.className = 'flap';
    this.element.append(this.#text);
  }

  set(character, wait) {
    const last = this.#queue.at(-1) ?? this.#shown;
    if (character === last) return;
    if (wait === null) {
      this.#queue = [];
      this.#show(character);
      return;
    }
    this.#queue = way(this.#shown, character);
    this.#wait = wait;
    if (turning.size === 0) requestAnimationFrame(tick);
    turning.add(this);
  }

  #show(character) {
    this.#shown = character;
    this.#text.data = character;
  }

  halfTurn() {
    if (this.#wait > 0) {
      this.#wait -= 1;
    } else if (this.#falling) {
      this.#falling = false;
      this.element.className = 'flap land';
    } else if (this.#queue.length) {
      this.element.dataset.was = this.#shown;
      this.#show(this.#queue.shift());
      this.element.dataset.now = this.#shown;
      this.element.className = 'flap fall';
      this.#falling = true;
    } else {
      this.element.className = 'flap';
      turning.delete(this);
    }
  }
}

/** The characters that fall on the way from one to another: the last few of the drum before it, and itself. */
function way(from, to) {
  const [start, end] = [DRUM.indexOf(from), DRUM.indexOf(to)];
  if (start < 0 || end < 0) return [to];
  const turns = Math.min((end - start + DRUM.length) % DRUM.length, TURNS_MAX);
  return Array.from({ length: turns }, (_, i) => DRUM[(end - turns + 1 + i + DRUM.length) % DRUM.length]);
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
