//! The first head of an HTTP connection, read before there is more to the connection than its socket.
//!
//! Whoever sends nothing, or a byte now and then, holds a few hundred bytes here and costs a read for each, instead of what
//! serving HTTP takes: parsing what has come from its beginning, a buffer, a timer. After a second it costs less still: the
//! kernel keeps what comes, and it is looked at now and then. Once the head is whole, or as long as it may be, hyper has it and
//! says what is to be said.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use rustix::{
    io::retry_on_intr,
    net::{RecvFlags, recv},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::worker::poll::tell_from;

/// Most heads are shorter.
const USUAL_BYTES: usize = 512;
/// A head whose first byte came so long ago is looked at after as long again, and then each time after twice as long: nobody's
/// head is heard later than twice the time that it took.
const PROMPT: Duration = Duration::from_secs(1);

/// A socket that can be told to keep what comes to itself until there is enough.
pub(super) trait Ear: AsyncRead + Unpin {
    /// Readable only once so many bytes are there, or its end.
    fn tell_from(&self, bytes: usize);
    /// Takes what is there all the same, without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there.
    fn look(&self, into: &mut [u8]) -> io::Result<usize>;
}

impl Ear for TcpStream {
    fn tell_from(&self, bytes: usize) {
        tell_from(self, bytes);
    }

    /// Beside tokio, to which it is not readable.
    fn look(&self, into: &mut [u8]) -> io::Result<usize> {
        let (read, _) = retry_on_intr(|| recv(self, &mut *into, RecvFlags::DONTWAIT))?;
        Ok(read)
    }
}

/// Reads until an empty line has come, or `most` bytes; none where the client has gone, or was too slow. Cancel safe only in
/// that what was read goes with the connection.
pub(super) async fn read(socket: &mut impl Ear, most: usize, patience: Duration) -> Option<Bytes> {
    timeout(patience, whole(socket, most)).await.ok()?
}

async fn whole(socket: &mut impl Ear, most: usize) -> Option<Bytes> {
    let mut head = BytesMut::new();
    if more(socket, &mut head, most).await? {
        return Some(head.freeze());
    }
    let began = Instant::now();
    while began.elapsed() < PROMPT {
        if more(socket, &mut head, most).await? {
            return Some(head.freeze());
        }
    }
    socket.tell_from(most);
    let whole = now_and_then(socket, &mut head, most).await;
    socket.tell_from(1);
    whole.map(|()| head.freeze())
}

/// Reads on after ever longer pauses, until the head is whole.
async fn now_and_then(socket: &mut impl Ear, head: &mut BytesMut, most: usize) -> Option<()> {
    let mut pause = PROMPT;
    loop {
        let whole = match timeout(pause, more(socket, head, most)).await {
            // It has become readable: so much has come, or the end.
            Ok(more) => more?,
            Err(_) => {
                pause *= 2;
                look(socket, head, most)?
            }
        };
        if whole {
            return Some(());
        }
    }
}

/// Takes what is there; tells whether that is all.
fn look(socket: &impl Ear, head: &mut BytesMut, most: usize) -> Option<bool> {
    let before = head.len();
    let mut piece = [0; USUAL_BYTES];
    while head.len() < most {
        match socket.look(&mut piece) {
            Ok(0) => return None,
            Ok(came) => head.extend_from_slice(&piece[..came]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(_) => return None,
        }
    }
    Some(is_whole(head, before, most))
}

/// Reads once; tells whether that is all. Cancel safe.
async fn more(socket: &mut impl Ear, head: &mut BytesMut, most: usize) -> Option<bool> {
    let before = head.len();
    head.reserve(USUAL_BYTES);
    let read = socket.read_buf(head).await.ok()?;
    (read > 0).then(|| is_whole(head, before, most))
}

/// Whether a head of which the first `seen` bytes were looked at before is whole, or as long as it may be.
fn is_whole(head: &[u8], seen: usize, most: usize) -> bool {
    has_empty_line(head, seen) || head.len() >= most
}

/// Whether there is an empty line whose end came behind the first `seen` bytes. Line ends without a carriage return count, since
/// hyper takes them too.
fn has_empty_line(head: &[u8], seen: usize) -> bool {
    let from = seen.saturating_sub(2);
    let mut after = head[from..]
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'\n')
        .map(|(at, _)| &head[from + at + 1..]);
    after.any(|rest| rest.starts_with(b"\n") || rest.starts_with(b"\r\n"))
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        collections::VecDeque,
        pin::Pin,
        task::{Context, Poll, Waker},
    };

    use tokio::{
        io::{AsyncWriteExt, DuplexStream, ReadBuf},
        time::sleep,
    };

    use super::*;

    impl Ear for DuplexStream {
        fn tell_from(&self, _: usize) {}
        fn look(&self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    /// What the kernel keeps for a socket.
    #[derive(Default)]
    struct Kernel {
        came: RefCell<VecDeque<u8>>,
        from: Cell<usize>,
        waits: Cell<Option<Waker>>,
        reads: Cell<usize>,
    }

    impl Kernel {
        fn come(&self, bytes: &[u8]) {
            self.came.borrow_mut().extend(bytes);
            self.wake();
        }

        fn wake(&self) {
            if let Some(waiting) = self.waits.take() {
                waiting.wake();
            }
        }
    }

    struct Kept<'a>(&'a Kernel);

    impl Ear for Kept<'_> {
        fn tell_from(&self, bytes: usize) {
            self.0.from.set(bytes);
            self.0.wake();
        }
        fn look(&self, into: &mut [u8]) -> io::Result<usize> {
            let mut came = self.0.came.borrow_mut();
            if came.is_empty() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.0.reads.update(|reads| reads + 1);
            io::Read::read(&mut *came, into)
        }
    }

    impl AsyncRead for Kept<'_> {
        fn poll_read(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let mut came = self.0.came.borrow_mut();
            if came.len() < self.0.from.get().max(1) {
                self.0.waits.set(Some(context.waker().clone()));
                return Poll::Pending;
            }
            self.0.reads.update(|reads| reads + 1);
            let count = came.len().min(into.remaining());
            came.drain(..count).for_each(|byte| into.put_slice(&[byte]));
            Poll::Ready(Ok(()))
        }
    }

    /// What is read of a client that says these, each after so many milliseconds, and in how many reads.
    async fn read_slowly(said: &[(u64, &[u8])], most: usize) -> (Option<Bytes>, usize) {
        let kernel = Kernel::default();
        let talk = async {
            for (pause, said) in said {
                sleep(Duration::from_millis(*pause)).await;
                kernel.come(said);
            }
        };
        let mut socket = Kept(&kernel);
        let (read, ()) = tokio::join!(read(&mut socket, most, PATIENCE), talk);
        (read, kernel.reads.get())
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    /// What is read of a client that says these one after the other, and then goes.
    async fn read_of(said: &[&[u8]], most: usize) -> Option<Bytes> {
        let (mut client, mut socket) = tokio::io::duplex(1000);
        let talk = async {
            for said in said {
                client.write_all(said).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(client);
        };
        tokio::join!(read(&mut socket, most, PATIENCE), talk).0
    }

    #[tokio::test]
    async fn a_head_is_whole_wherever_it_was_cut() {
        for head in [
            &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..],
            b"GET / HTTP/1.1\nhost: a\n\n",
        ] {
            for cut in 0..head.len() {
                let (first, second) = head.split_at(cut);
                let read = read_of(&[first, second], 1000).await;
                assert_eq!(read.as_deref(), Some(head), "cut at {cut}");
            }
        }
    }

    #[tokio::test]
    async fn what_follows_is_kept_what_is_too_long_is_handed_on_and_who_goes_is_gone() {
        let both = b"POST / HTTP/1.1\r\n\r\n{\"a\":1}";
        assert_eq!(read_of(&[both], 1000).await.as_deref(), Some(&both[..]));
        let long = [b'x'; 300];
        assert_eq!(read_of(&[&long], 300).await.as_deref(), Some(&long[..]));
        assert_eq!(read_of(&[b"GET / HTTP/1.1\r\n"], 1000).await, None);
        assert_eq!(read_of(&[], 1000).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_too_slow_is_not_waited_for() {
        let (mut client, mut socket) = tokio::io::duplex(1000);
        client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        assert_eq!(read(&mut socket, 1000, PATIENCE).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_a_byte_a_second_is_looked_at_now_and_then() {
        let bytes = [(1000, &b"x"[..]); 20];
        // The first two as they come, then what has come until 3, 5 and 9 s.
        assert_eq!(read_slowly(&bytes, 1000).await, (None, 5));
        let fast = [(100, &b"x"[..]); 200];
        let (read, reads) = read_slowly(&fast, 1000).await;
        assert!(read.is_none() && reads < 20, "{reads}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_comes_slowly_is_whole_all_the_same() {
        let (first, second, last) = (
            &b"GET / HTTP/1.1\r\n"[..],
            &b"host: a\r\n"[..],
            &b"\r\n"[..],
        );
        let slow = [(0, first), (1500, second), (1500, last)];
        let (read, _) = read_slowly(&slow, 1000).await;
        assert_eq!(read.as_deref(), Some(&[first, second, last].concat()[..]));
        // As much as may come is enough, also while it is not looked at.
        let long = [(0, first), (1500, second), (100, &[b'x'; 300][..])];
        let (read, _) = read_slowly(&long, 300).await;
        assert!(read.is_some_and(|read| read.len() >= 300));
    }
}
