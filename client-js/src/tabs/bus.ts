/**
 * What tabs say to each other, and a WebSocket made of it.
 *
 * Does: carries the protocol's text between a tab and the hub over a BroadcastChannel. Owns: the sockets of this tab. Never
 * knows: what the text says. Keeps: a new hub cuts the sockets of the old one, so that nothing is half of each.
 */
import type { Platform, Socket } from '../platform.js';

/** To the hub: `open`, `text`, `close`, `here`. From it: `hub` (a new one), `text`, `close`, `who` (is anybody there). */
export type Word =
  | { readonly kind: 'hub' | 'who' }
  | { readonly kind: 'open' | 'here' | 'leave'; readonly socket: string }
  | { readonly kind: 'up' | 'down'; readonly socket: string; readonly text: string }
  | { readonly kind: 'cut'; readonly socket: string };

/** A name that no other socket has. */
const unique = () => Math.random().toString(36).slice(2) + Math.random().toString(36).slice(2);

/** The constructor of sockets that lead to the hub; `unanswered` is told how many in a row were not greeted. */
export function tabSocket(bus: BroadcastChannel, unanswered: (count: number) => void): NonNullable<Platform['WebSocket']> {
  let ungreeted = 0;
  return class implements Socket {
    onopen: Socket['onopen'] = null;
    onmessage: Socket['onmessage'] = null;
    onclose: Socket['onclose'] = null;
    onerror: Socket['onerror'] = null;
    readyState = 0;
    readonly #name = unique();
    readonly #hear = ({ data }: MessageEvent<Word>) => this.#heard(data);

    constructor() {
      ungreeted += 1;
      unanswered(ungreeted);
      bus.addEventListener('message', this.#hear);
      this.#post({ kind: 'open', socket: this.#name });
    }

    send(text: string) {
      this.#post({ kind: 'up', socket: this.#name, text });
    }

    close() {
      if (this.readyState !== 3) this.#post({ kind: 'leave', socket: this.#name });
      this.#end();
    }

    #post(word: Word) {
      bus.postMessage(word);
    }

    #end() {
      this.readyState = 3;
      bus.removeEventListener('message', this.#hear);
    }

    #heard(word: Word) {
      if (word.kind === 'who') return this.#post({ kind: 'here', socket: this.#name });
      if (word.kind === 'hub') return this.readyState === 0 ? this.#post({ kind: 'open', socket: this.#name }) : this.#cut();
      if (!('socket' in word) || word.socket !== this.#name) return undefined;
      if (word.kind === 'cut') return this.#cut();
      if (word.kind !== 'down') return undefined;
      this.readyState = 1;
      ungreeted = 0;
      return this.onmessage?.({ data: word.text });
    }

    #cut() {
      this.#end();
      this.onclose?.({ code: 1006, reason: '' });
    }
  };
}
