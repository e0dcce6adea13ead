//! The first head of an HTTP connection, read before there is more to the connection than its socket.
//!
//! Whoever sends nothing, or a byte now and then, holds a few hundred bytes here and costs a read for each, instead of what
//! serving HTTP takes: parsing what has come from its beginning, a buffer, a timer. Once the head is whole, or as long as it
//! may be, hyper has it and says what is to be said.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::timeout,
};

/// Most heads are shorter.
const USUAL_BYTES: usize = 512;

/// Reads until an empty line has come, or `most` bytes; none where the client has gone, or was too slow. Cancel safe only in
/// that what was read goes with the connection.
pub(super) async fn read(
    socket: &mut (impl AsyncRead + Unpin),
    most: usize,
    patience: Duration,
) -> Option<Bytes> {
    timeout(patience, whole(socket, most)).await.ok()?
}

async fn whole(socket: &mut (impl AsyncRead + Unpin), most: usize) -> Option<Bytes> {
    let mut head = BytesMut::new();
    loop {
        let before = head.len();
        head.reserve(USUAL_BYTES);
        let read = socket.read_buf(&mut head).await.ok()?;
        if read == 0 {
            return None;
        }
        if has_empty_line(&head, before) || head.len() >= most {
            return Some(head.freeze());
        }
    }
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
    use tokio::io::AsyncWriteExt;

    use super::*;

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
}
