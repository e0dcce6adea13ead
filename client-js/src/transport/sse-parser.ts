/**
 * Reads the text of an event stream.
 *
 * Does: `feed(chunk)` calls back for each block. Owns: the unfinished line. Never knows: where the text comes from, what it
 * says. Keeps: any division into chunks gives the same blocks; a line that does not end is refused.
 */
import { badAnswer } from '../errors.js';

/** Characters of one block: more than any message of the gateway has. */
const BLOCK_MAX = 32 * 1024 * 1024;

/** One block. `id` and `data` are absent where no line said them. */
export interface Block { id?: string; data?: string }

export function sseParser(tell: (block: Block) => void): (chunk: string) => void {
  let pieces: string[] = [];
  let size = 0;
  let block: Block = {};
  let afterReturn = false;

  const line = (text: string) => {
    if (!text) {
      const done = block;
      block = {};
      size = 0;
      if (done.id !== undefined || done.data !== undefined) tell(done);
      return;
    }
    const colon = text.indexOf(':');
    const field = colon < 0 ? text : text.slice(0, colon);
    const value = colon < 0 ? '' : text.slice(colon + (text[colon + 1] === ' ' ? 2 : 1));
    if (field === 'data') block.data = block.data === undefined ? value : `${block.data}\n${value}`;
    else if (field === 'id' && !value.includes('\0')) block.id = value;
  };

  return (chunk) => {
    // The second half of a CRLF that was divided between two chunks.
    let from = afterReturn && chunk[0] === '\n' ? 1 : 0;
    if (chunk) afterReturn = chunk.endsWith('\r');
    size += chunk.length;
    if (size > BLOCK_MAX) throw badAnswer('an event does not end');
    const ends = /\r\n?|\n/g;
    ends.lastIndex = from;
    for (let end = ends.exec(chunk); end; end = ends.exec(chunk)) {
      // Joined once a line: appending to what there is would be quadratic in its chunks.
      pieces.push(chunk.slice(from, end.index));
      from = ends.lastIndex;
      const text = pieces.join('');
      pieces = [];
      line(text);
    }
    if (from < chunk.length) pieces.push(chunk.slice(from));
  };
}
