/**
 * What the compiler must take and must refuse. It is checked by `tsc`; running it proves that it was compiled.
 */
import { test } from 'node:test';
import { type Change, type Client, type EventItem, type Schema, type TidegateError, connect } from '../src/index.js';

interface Flight { gate: string }
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const holds = <T extends true>(_?: T) => {};

export async function compiled(client: Client, schema: Schema<Flight>) {
  const view = client.view<Flight>('departures/JFK', { maxRate: 5, signal: AbortSignal.timeout(1) });
  holds<Same<typeof view.rows, ReadonlyMap<string, Flight>>>();
  holds<Same<ReturnType<typeof view.get>, Flight | undefined>>();
  view.onChange((changes) => holds<Same<typeof changes, readonly Change<Flight>[]>>());
  for await (const change of view) holds<Same<typeof change.data, Flight | undefined>>();
  const inferred = client.view('departures/JFK', { schema });
  holds<Same<ReturnType<typeof inferred.get>, Flight | undefined>>();
  const unknown = client.view('departures/JFK');
  holds<Same<ReturnType<typeof unknown.get>, unknown>>();
  const events = client.events<number>('trades/ACME', { from: 'earliest' });
  for await (const item of events) {
    holds<Same<typeof item, EventItem<number>>>();
    if (item.type === 'gap') holds<Same<typeof item.to, string | null>>();
    else holds<Same<typeof item.data, number>>();
  }
  const { position, duplicate } = await client.publish('departures/JFK', { gate: 'B22' }, { row: 'B6915' });
  holds<Same<typeof position, string>>();
  holds<Same<typeof duplicate, boolean>>();
  client.onError((error: TidegateError) => error.code === 'forbidden');
  connect('https://gateway.example', { token: async (signal) => String(signal.aborted) });

  // @ts-expect-error rows can't be written
  view.rows.set('x', { gate: 'B1' });
  // @ts-expect-error events have no maximal rate
  client.events('trades/ACME', { maxRate: 5 });
  // @ts-expect-error views have no history
  client.view('departures/JFK', { history: 5 });
  // @ts-expect-error there is no such transport
  connect('https://gateway.example', { transports: ['carrier pigeon'] });
  // @ts-expect-error a token is text
  connect('https://gateway.example', { token: 5 });
}

test('the types hold', () => {});
