/**
 * `tidegate/tabs`: one connection for all tabs of an origin.
 *
 * Does: elects by a Web Lock the tab that is connected; the others follow it over a BroadcastChannel. Owns: the lock, the
 * channel. Never knows: rows. Keeps: there is a hub as long as there is a tab, also when it crashed or was frozen; without
 * Web Locks or BroadcastChannel each tab has a connection of its own.
 */
import { Client, type ConnectOptions, type EventsOptions } from './client.js';
import { type Events, onAbort } from './handle.js';
import { tabSocket } from './tabs/bus.js';
import { Hub } from './tabs/hub.js';

export interface TabsOptions extends ConnectOptions {
  /** Tabs of one name share a connection and its token; choose it by the user. By default the address. */
  name?: string;
}

/** Sockets in a row that no hub has greeted, after which the lock is taken from whoever holds it. */
const PATIENCE = 3;

class TabsClient extends Client {
  readonly #url: string | URL;
  readonly #own: ConnectOptions;
  readonly #name: string;
  readonly #buses: readonly BroadcastChannel[];
  readonly #over = new AbortController();
  #events: Client | null = null;
  #resign: (() => void) | null = null;

  constructor(url: string | URL, { name, signal, keeper, ...options }: TabsOptions) {
    const lock = `tidegate ${name ?? new URL(url, globalThis.location?.href).href}`;
    // Two, since one of them does not hear what it says itself, and the hub has tabs in its own page.
    const buses = [new BroadcastChannel(lock), new BroadcastChannel(lock)] as const;
    const WebSocket = tabSocket(buses[0], (count) => { if (count > PATIENCE) this.#elect(true); });
    super(url, { ...options, ...(keeper ? { keeper } : {}), transports: ['ws'], platform: { ...options.platform, WebSocket } });
    this.#url = url;
    this.#own = options;
    this.#name = lock;
    this.#buses = buses;
    this.#elect(false);
    onAbort(signal, () => this.close());
  }

  /** Whether this tab is the one that is connected. */
  get isHub() {
    return this.#resign !== null;
  }

  /** Events are each tab's own: a place in them can't be shared. */
  override events<T = unknown>(channel: string, options: EventsOptions<T> = {}): Events<T> {
    this.#events ??= new Client(this.#url, this.#own);
    return this.#events.events(channel, options);
  }

  override close() {
    if (this.#over.signal.aborted) return;
    super.close();
    this.#events?.close();
    this.#over.abort();
    this.#resign?.();
    this.#buses.forEach((bus) => bus.close());
  }

  /** Waits for the lock, or takes it from a tab that is there no more and does not answer. */
  #elect(steal: boolean) {
    if (this.#over.signal.aborted || (steal && this.#resign)) return;
    const options = steal ? { steal } : { signal: this.#over.signal };
    navigator.locks.request(this.#name, options, () => this.#lead()).catch(() => {
      // It was taken away, or the client was closed before it had it.
      this.#resign?.();
      this.#elect(false);
    });
  }

  #lead() {
    if (this.#over.signal.aborted) return undefined;
    const hub = new Hub(this.#buses[1]!, new Client(this.#url, this.#own));
    return new Promise<void>((resign) => {
      this.#resign = () => {
        this.#resign = null;
        hub.close();
        resign();
      };
    });
  }
}

export type { TabsClient };

/** Connects as `connect` does, but all tabs share one connection for their views. */
export function connectTabs(url: string | URL, options: TabsOptions = {}): Client & { readonly isHub?: boolean } {
  const { name: _, ...own } = options;
  if (!globalThis.navigator?.locks || !globalThis.BroadcastChannel) return new Client(url, own);
  return new TabsClient(url, options);
}
