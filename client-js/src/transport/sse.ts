/**
 * Over server-sent events, read by `fetch`.
 *
 * Does: asks for a set of channels of one stream, passes messages and ids on. Owns: the request. Never knows: what messages
 * say. Keeps: the token is in a header, never in the URL; what is not an event stream ends as `http`.
 */
import { TidegateError } from '../errors.js';
import { sseParser } from './sse-parser.js';
import { type Open, headersOf, refusedEnd, thrownEnd } from './transport.js';

export const openSse: Open = ({ base, platform, token, credentials, channels, lastId, ear }) => {
  const abort = new AbortController();
  const url = new URL('v1/sse', base);
  const asked = channels();
  for (const { name } of asked) url.searchParams.append('channel', name);
  const { maxRate, policy } = asked[0]?.options ?? {};
  if (maxRate !== undefined) url.searchParams.set('max_rate', String(maxRate));
  if (policy !== undefined) url.searchParams.set('policy', policy);
  // One channel's own token is as good as the id, and newer. An id is of a set of channels.
  const id = asked.length === 1 ? asked[0]!.from ?? '' : lastId;
  const headers = headersOf(token, { accept: 'text/event-stream', ...(id ? { 'last-event-id': id } : {}) });

  const read = async () => {
    // What a request can't ask for is refused here: beginning now instead would lose events silently.
    if (asked.some((channel) => channel.from === 'earliest' || (channel.options.history && !channel.from))) {
      return { error: new TidegateError('unsupported', 'older events need WebSocket'), refused: true };
    }
    const init: RequestInit = { headers, cache: 'no-store', signal: abort.signal };
    const response = await platform.fetch(url.href, credentials ? { ...init, credentials } : init);
    if (!response.ok) return refusedEnd(response);
    if (!response.headers.get('content-type')?.startsWith('text/event-stream') || !response.body) {
      throw new TidegateError('http', 'an answer that is not an event stream');
    }
    const feed = sseParser((block) => {
      if (block.id !== undefined) ear.id(block.id);
      if (block.data) ear.message(block.data);
    });
    const reader = response.body.getReader();
    const utf8 = new TextDecoder();
    for (let part = await reader.read(); !part.done; part = await reader.read()) feed(utf8.decode(part.value, { stream: true }));
    return { error: new TidegateError('network', 'the event stream ended') };
  };
  read().catch(thrownEnd).then((end) => { if (!abort.signal.aborted) ear.ended(end); });
  return { close: () => abort.abort() };
};
