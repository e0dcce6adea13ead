//! How much must have come before a socket says so.
//!
//! Does: where the rest of a message has a known length and comes in small pieces, has the kernel keep them until there is
//! more, or all of it. Owns: nothing. Never knows: what a message says. Keeps: nobody waits longer for it: the kernel tells when
//! the last byte has come, and when the client has gone. So a message that comes a byte at a time costs the worker a few looks
//! instead of one for each byte.

use super::{Key, Outside, Sockets, Worker, parts};

/// A piece of fewer bytes is small: less than the least segment that a host must take (RFC 9293, 3.7.1).
const SMALL_BYTES: usize = 256;
/// Nobody keeps more than that in the kernel.
const MARK_MAX: usize = 4096;

impl<S: Sockets, O: Outside> Worker<S, O> {
    /// After `came` bytes of which the last ones began a message, or went on with one (`goes_on`), that is not whole.
    pub(super) fn listen_from(&mut self, key: Key, came: usize, goes_on: bool) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        if connection.cold.is_none() {
            return;
        }
        let (socket, cold) = parts(connection);
        let left = cold.partial.as_ref().map_or(0, |part| part.payload_left());
        let mark = mark(cold.mark, came, left, goes_on);
        if mark != cold.mark {
            cold.mark = mark;
            self.sockets.tell_from(socket, usize::from(mark) + 1);
        }
    }
}

/// How many bytes before the one that shall wake us are left to the kernel: of `left` ones of a message, after `came` ones, where
/// it was `before`.
fn mark(before: u16, came: usize, left: usize, goes_on: bool) -> u16 {
    let small = goes_on && came < SMALL_BYTES;
    if before == 0 && !small {
        return 0;
    }
    u16::try_from(left.min(MARK_MAX).saturating_sub(1)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_rest_of_a_message_that_comes_in_small_pieces_waits_in_the_kernel() {
        assert_eq!(mark(0, 6, 60_000, false), 0, "its header came first");
        assert_eq!(mark(0, 1, 60_000, true), 4095);
        assert_eq!(mark(0, 1, 100, true), 99, "the last byte wakes");
        assert_eq!(mark(0, 1, 1, true), 0);
        assert_eq!(mark(0, 1400, 60_000, true), 0, "it comes as it should");
        assert_eq!(mark(4095, 4096, 60_000, true), 4095);
        assert_eq!(mark(4095, 4096, 10, true), 9);
        assert_eq!(mark(99, 100, 0, true), 0, "it is whole");
    }
}
