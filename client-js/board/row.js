/**
 * One line of the board: a flight, or nothing.
 *
 * Does: shows the data of a row. Owns: its elements. Never knows: where the data came from, or which line it is.
 */
import { Flaps } from './flap.js';
import { airlineName, town } from './places.js';

/** Columns: their class, and how many flaps they have (none: plain text). */
const COLUMNS = { time: 5, place: 15, code: 3, flight: 6, airline: 0, status: 14 };
const TIME = /^\d\d:\d\d$/;
const SVG = 'http://www.w3.org/2000/svg';
const WORDS = {
  scheduled: 'Scheduled', delayed: 'Delayed', departed: 'Departed', landed: 'Landed', cancelled: 'Cancelled',
};

/** `HH:MM`, some minutes later, around the clock. */
export function later(time, minutes) {
  const [hours, mins] = time.split(':').map(Number);
  const total = (((hours * 60 + mins + minutes) % 1440) + 1440) % 1440;
  return `${String(Math.floor(total / 60)).padStart(2, '0')}:${String(total % 60).padStart(2, '0')}`;
}

/** What the status column says; a late or early start is told by its time. */
export function statusText({ status, scheduled, delay_min: delay }) {
  const timed = (status === 'delayed' || status === 'departed') && Number.isFinite(delay) && TIME.test(scheduled);
  return timed ? `${WORDS[status]} ${later(scheduled, delay)}` : WORDS[status] ?? String(status ?? '');
}

const texts = (data) => ({
  time: data.scheduled,
  place: town(data.to, data.city),
  code: data.to,
  flight: data.flight,
  airline: airlineName(data.airline),
  status: statusText(data),
});

function span(className, role) {
  const element = document.createElement('span');
  element.className = className;
  if (role) element.setAttribute('role', role);
  return element;
}

/** A line of the board. */
export class Row {
  element = document.createElement('div');
  #cells = {};
  #icon = document.createElementNS(SVG, 'use');
  #data = null;

  constructor() {
    this.element.className = 'row';
    this.element.setAttribute('role', 'row');
    for (const [name, length] of Object.entries(COLUMNS)) this.element.append(this.#cell(name, length));
  }

  #cell(name, length) {
    const cell = span(name, 'cell');
    const text = span(length ? 'sr' : 'plain');
    const flaps = length ? new Flaps(length) : null;
    if (name === 'status') {
      const icon = document.createElementNS(SVG, 'svg');
      icon.setAttribute('aria-hidden', 'true');
      icon.append(this.#icon);
      cell.append(icon);
    }
    cell.append(text, ...(flaps ? [flaps.element] : []));
    this.#cells[name] = { text, flaps };
    return cell;
  }

  /** Shows a flight, or with null an empty line; `turn` lets the flaps turn. */
  set(data, turn) {
    if (data === this.#data) return;
    this.#data = data;
    const said = data ? texts(data) : {};
    this.element.dataset.status = data?.status ?? '';
    this.element.dataset.flight = data?.flight ?? '';
    this.#icon.setAttribute('href', data ? `#${data.status}` : '');
    for (const [name, { text, flaps }] of Object.entries(this.#cells)) {
      const words = String(said[name] ?? '');
      if (text.textContent !== words) text.textContent = words;
      flaps?.set(words, turn);
    }
  }
}
