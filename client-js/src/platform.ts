/**
 * What the SDK takes from where it runs.
 *
 * Does: finds clock, timers, `fetch`, `WebSocket` and the page's events, or does without. Owns: nothing. Never knows: the
 * protocol. Keeps: whatever is injected in its place is used alone, so that tests need neither time nor network.
 */

/** The part of a WebSocket that is used. */
export interface Socket {
  onopen: ((event: never) => void) | null;
  onmessage: ((event: { data: unknown }) => void) | null;
  onclose: ((event: { code: number; reason: string }) => void) | null;
  onerror: ((event: never) => void) | null;
  readonly readyState: number;
  send(text: string): void;
  close(code?: number): void;
}

/** What the page tells: `lapse`: its clock may have stood still; `look`: it is seen again. */
export type PageEvent = 'offline' | 'online' | 'freeze' | 'thaw' | 'look';

export interface Platform {
  /** Milliseconds of a clock that never goes back. */
  now(): number;
  /** Milliseconds of the time of day: only to notice that the machine slept, and for the age of what is stored. */
  wall(): number;
  /** In [0, 1). */
  random(): number;
  setTimer(run: () => void, ms: number): () => void;
  fetch: typeof fetch;
  /** None: there is no WebSocket here. */
  WebSocket: (new (url: string, protocols: string[]) => Socket) | undefined;
  /** Tells of the page until the returned function is called. */
  watchPage(tell: (event: PageEvent) => void): () => void;
}

/** Listeners by name, on the window or worker, and on the document. */
const PAGE: readonly (readonly [on: 'window' | 'document', event: string, tell: PageEvent])[] = [
  ['window', 'offline', 'offline'], ['window', 'online', 'online'],
  // A page that may come back from the back/forward cache closes its sockets, or it is not kept there.
  ['window', 'pagehide', 'freeze'], ['window', 'pageshow', 'thaw'],
  ['document', 'freeze', 'freeze'], ['document', 'resume', 'thaw'],
  ['document', 'visibilitychange', 'look'],
];

function watchPage(tell: (event: PageEvent) => void): () => void {
  const off = PAGE.map(([on, event, word]) => {
    const target = (on === 'window' ? globalThis : globalThis.document) as EventTarget | undefined;
    const hear = () => tell(word);
    target?.addEventListener?.(event, hear);
    return () => target?.removeEventListener?.(event, hear);
  });
  if (globalThis.navigator?.onLine === false) tell('offline');
  return () => off.forEach((stop) => stop());
}

/** Where this runs. */
export const platform = (): Platform => ({
  now: () => performance.now(),
  wall: () => Date.now(),
  random: () => Math.random(),
  setTimer: (run, ms) => {
    const timer = setTimeout(run, ms);
    return () => clearTimeout(timer);
  },
  fetch: (...request) => globalThis.fetch(...request),
  WebSocket: globalThis.WebSocket as unknown as Platform['WebSocket'],
  watchPage,
});
