//! Sockets of the simulation: two byte queues, of which the one towards the client takes only so much.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    io,
    rc::Rc,
};

use tidegate::worker::sockets::{Ready, Sockets};

/// Both directions of one connection.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    pub(super) to_client: VecDeque<u8>,
    pub(super) to_server: VecDeque<u8>,
    /// What the client has said, on its way to the server's side: this comes in pieces.
    pub(super) on_its_way: VecDeque<u8>,
    /// Bytes of a piece.
    pub(super) piece: usize,
    /// Bytes that the client's side holds at most.
    pub(super) window: usize,
    /// The server was told that there is no room, and not yet that there is some again.
    pub(super) starved: bool,
    /// The client's end is gone.
    pub(super) cut: bool,
    /// The server's end is gone.
    pub(super) ended: bool,
    pub(super) unread: bool,
    /// So many more bytes than one must be there before the server is told.
    pub(super) mark: usize,
}

impl Pipe {
    /// The client takes at most `most` bytes.
    pub(super) fn take(&mut self, most: usize) -> Vec<u8> {
        let count = most.min(self.to_client.len());
        self.to_client.drain(..count).collect()
    }
    /// The client says something.
    pub(super) fn say(&mut self, bytes: &[u8]) {
        self.on_its_way.extend(bytes);
    }
    /// A piece of it comes.
    fn come(&mut self) {
        let count = self.piece.min(self.on_its_way.len());
        self.to_server.extend(self.on_its_way.drain(..count));
        self.unread |= count > 0;
    }
    pub(super) fn cut(&mut self) {
        self.cut = true;
        self.unread = true;
    }
}

/// The server's end; dropping it ends the pipe.
#[derive(Debug)]
pub(super) struct End(pub(super) Rc<RefCell<Pipe>>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.borrow_mut().ended = true;
    }
}

/// The simulated poller: edges, each once.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    watched: HashMap<u64, Rc<RefCell<Pipe>>>,
}

impl Pipes {
    pub(super) fn ready(&mut self) -> Vec<Ready> {
        self.watched.retain(|_, pipe| !pipe.borrow().ended);
        let mut ready = Vec::new();
        for (&key, pipe) in &self.watched {
            let mut pipe = pipe.borrow_mut();
            pipe.come();
            let writable = pipe.starved && pipe.to_client.len() < pipe.window;
            let enough = pipe.cut || pipe.to_server.len() > pipe.mark;
            let readable = enough && std::mem::take(&mut pipe.unread);
            if writable {
                pipe.starved = false;
            }
            if writable || readable {
                ready.push(Ready {
                    key,
                    readable,
                    writable,
                    broken: false,
                });
            }
        }
        // The order of a map is no order: a seed must be the same history each time.
        ready.sort_by_key(|ready| ready.key);
        ready
    }
}

impl Sockets for Pipes {
    type Socket = End;

    fn watch(&mut self, socket: &End, key: u64) -> io::Result<()> {
        self.watched.insert(key, socket.0.clone());
        Ok(())
    }
    fn read(&mut self, socket: &End, into: &mut [u8]) -> io::Result<usize> {
        let mut pipe = socket.0.borrow_mut();
        if pipe.to_server.is_empty() {
            return if pipe.cut {
                Ok(0)
            } else {
                Err(io::ErrorKind::WouldBlock.into())
            };
        }
        let count = into.len().min(pipe.to_server.len());
        for (slot, byte) in into.iter_mut().zip(pipe.to_server.drain(..count)) {
            *slot = byte;
        }
        // Linux reports what is left as readable again only after a short read; a cut is another edge.
        pipe.unread = pipe.cut || !pipe.to_server.is_empty();
        Ok(count)
    }
    fn write(&mut self, socket: &End, bytes: &[u8]) -> io::Result<usize> {
        let mut pipe = socket.0.borrow_mut();
        if pipe.cut {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = pipe
            .window
            .saturating_sub(pipe.to_client.len())
            .min(bytes.len());
        pipe.to_client.extend(&bytes[..count]);
        pipe.starved |= count < bytes.len();
        if count == 0 && !bytes.is_empty() {
            Err(io::ErrorKind::WouldBlock.into())
        } else {
            Ok(count)
        }
    }
    fn tell_from(&mut self, socket: &End, bytes: usize) {
        let mut pipe = socket.0.borrow_mut();
        pipe.mark = bytes.saturating_sub(1);
        pipe.unread |= !pipe.to_server.is_empty();
    }
    fn finish(&mut self, _: &End) {}
}
