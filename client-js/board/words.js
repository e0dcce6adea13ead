/**
 * What the board says in words: freshness, ages, the summary.
 *
 * Does: turns states into plain sentences. Never knows: a page, a socket, a clock.
 */
const STATES = {
  live: 'Live', stale: 'Stale', catching_up: 'Catching up', connecting: 'Connecting', unavailable: 'Unavailable',
};

const REASONS = {
  source_unavailable: 'The gateway cannot reach the source of the data.',
  cache_unavailable: 'The cache does not answer.',
  producer_silent: 'Nobody has written to the source for too long.',
  lagging: 'The gateway is behind the source.',
  misplaced: 'Some records were found where they do not belong.',
  history_lost: 'The source no longer reaches back to where the gateway was.',
  incomplete_history: 'The source does not reach back to its beginning.',
  paused: 'The source is paused: by an operator, or at a record that means nothing.',
  lapsed: 'No proof has come in time that this is still true.',
  disconnected: 'The connection is lost.',
  awaiting_proof: 'Waiting for proof that this is up to date.',
  loading: 'The flights are on their way.',
  catching_up: 'The gateway is not yet as far as this page.',
  forbidden: 'This board may not be read.',
  closed: 'The gateway has closed the connection for good.',
};

/** A time span: `7 s`, `3 min 20 s`, `2 h 5 min`. */
export function age(ms) {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}.` : '');

/** The badge: a word, an age unless live, and why. `waitMs` is the time to the next attempt, or null. */
export function badge({ state, reason, message, ageMs }, waitMs) {
  const again = waitMs === null || waitMs < 1000 ? '' : ` Trying again in ${age(waitMs)}.`;
  const known = REASONS[reason] ?? sentence(message ?? (reason ? `the gateway says ${reason}` : ''));
  return {
    word: STATES[state] ?? String(state),
    age: state === 'live' || ageMs === null ? '' : age(ageMs),
    why: state === 'live' ? '' : known + again,
  };
}

const count = (number, one, many) => `${number} ${number === 1 ? one : many}`;

/** How many flights there are, and how many of them are not as planned. */
export function tally(flights) {
  const of = (status) => flights.filter((flight) => flight.status === status).length;
  return [count(flights.length, 'flight', 'flights'), `${of('delayed')} delayed`, `${of('cancelled')} cancelled`].join(' · ');
}
