//! The seam between a worker's step and the operating system: a simulation stands here in tests.

use std::io;

/// What the poller found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// Whose socket.
    pub key: u64,
    /// There is something to read, or its end.
    pub readable: bool,
    /// It takes more.
    pub writable: bool,
    /// It is broken.
    pub broken: bool,
}

/// Sockets that never block. Edges come once: who is told `WouldBlock` hears of it when that is over.
pub trait Sockets {
    /// One connection's socket; dropping it closes it.
    type Socket;
    /// Watches a socket under this key.
    ///
    /// # Errors
    /// What the operating system says.
    fn watch(&mut self, socket: &Self::Socket, key: u64) -> io::Result<()>;
    /// Reads what is there; zero at its end.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there.
    fn read(&mut self, socket: &Self::Socket, into: &mut [u8]) -> io::Result<usize>;
    /// Writes what it takes.
    ///
    /// # Errors
    /// `WouldBlock` when it takes nothing.
    fn write(&mut self, socket: &Self::Socket, bytes: &[u8]) -> io::Result<usize>;
    /// From now on says that there is something to read once there are so many bytes, or the end.
    fn tell_from(&mut self, socket: &Self::Socket, bytes: usize);
    /// Says that nothing more will be written; what was written still arrives.
    fn finish(&mut self, socket: &Self::Socket);
}
