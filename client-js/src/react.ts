/**
 * `tidegate/react`: a view and its freshness as hooks.
 *
 * Does: lends what a handle says to `useSyncExternalStore`. Owns: a handle for each mounted component and channel. Never
 * knows: connections. Keeps: what React is given is a value that changes only when the rows or the state do.
 */
import { useCallback, useMemo, useRef, useSyncExternalStore } from 'react';
import type { Client, ViewOptions } from './client.js';
import type { View } from './handle.js';
import type { Freshness } from './lease.js';

/** What a component draws. */
export interface ViewState<T> {
  readonly rows: ReadonlyMap<string, T>;
  readonly freshness: Freshness;
}

const NOWHERE: Freshness = { state: 'connecting', reason: 'connecting', ageMs: null };
const EMPTY: ViewState<never> = { rows: new Map<string, never>(), freshness: NOWHERE };
const same = (a: Freshness, b: Freshness) => a.state === b.state && a.reason === b.reason;

/** Follows a view while the component is mounted. `rows` is another map whenever a row has changed. */
export function useView<T = unknown>(client: Client, channel: string, options?: ViewOptions<T>): ViewState<T> {
  const first = useRef(options);
  first.current = options;
  const store = useMemo(() => {
    let view: View<T> | null = null;
    let state: ViewState<T> = EMPTY;
    const subscribe = (draw: () => void) => {
      const own = client.view<T>(channel, first.current);
      view = own;
      const take = (rows: ReadonlyMap<string, T>) => {
        state = { rows, freshness: own.freshness };
        draw();
      };
      const stops = [
        own.onChange(() => take(new Map(own.rows))),
        own.onFreshness(() => take(state.rows)),
      ];
      if (own.rows.size || !same(own.freshness, state.freshness)) state = { rows: new Map(own.rows), freshness: own.freshness };
      return () => {
        stops.forEach((stop) => stop());
        own.close();
        if (view === own) view = null;
      };
    };
    return { subscribe, get: () => state };
  }, [client, channel]);
  return useSyncExternalStore(store.subscribe, store.get, useCallback(() => EMPTY as ViewState<T>, []));
}

/** How fresh a view is: another value whenever the state or its reason changes. The age in it is that of the change. */
export function useFreshness(client: Client, channel: string): Freshness {
  return useView(client, channel).freshness;
}
