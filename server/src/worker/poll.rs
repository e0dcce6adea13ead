//! The real sockets: one edge-triggered epoll a worker, through rustix's safe wrappers.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    io::retry_on_intr,
    net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown},
};

use tokio::io::{Interest, unix::AsyncFd};

use super::sockets::{Ready, Sockets};

/// Events taken in one go.
const EVENTS: usize = 1024;
/// Unsent bytes that the kernel may hold for a socket: a slow client's data waits where it can be conflated.
const NOT_SENT_LOWAT: u32 = 16 * 1024;
/// A peer that acknowledges nothing for so long is dead (RFC 5482).
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Of an option that is an int.
#[expect(clippy::cast_possible_truncation, reason = "4")]
const INT_BYTES: libc::socklen_t = size_of::<libc::c_int>() as libc::socklen_t;

/// An epoll instance.
pub struct Epoll {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Epoll {
    /// A new one.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS),
        })
    }

    /// Takes the events that are there, without waiting; tells whether there may be more.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn take(&mut self, ready: &mut Vec<Ready>) -> io::Result<bool> {
        self.events.clear();
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&now))?;
        ready.extend(self.events.iter().map(|event| {
            let flags = event.flags;
            Ready {
                key: event.data.u64(),
                readable: flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP),
                writable: flags.contains(EventFlags::OUT),
                broken: flags.contains(EventFlags::ERR),
            }
        }));
        Ok(self.events.len() == EVENTS)
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Sockets for Epoll {
    type Socket = OwnedFd;

    fn watch(&mut self, socket: &OwnedFd, key: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(
            &self.epoll,
            socket,
            EventData::new_u64(key),
            flags,
        )?)
    }
    fn read(&mut self, socket: &OwnedFd, into: &mut [u8]) -> io::Result<usize> {
        let (read, _) = retry_on_intr(|| recv(socket, &mut *into, RecvFlags::DONTWAIT))?;
        Ok(read)
    }
    fn write(&mut self, socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(retry_on_intr(|| send(socket, bytes, flags))?)
    }
    fn tell_from(&mut self, socket: &OwnedFd, bytes: usize) {
        tell_from(socket, bytes);
    }
    fn finish(&mut self, socket: &OwnedFd) {
        // The peer may be gone already; then there is nothing to finish.
        shutdown(socket, Shutdown::Write).unwrap_or_default();
    }
}

/// Lets tokio await the epoll itself: the one place of this crate that is not safe code.
///
/// # Errors
/// What the operating system says.
#[allow(
    unsafe_code,
    reason = "tokio's safe constructor is deprecated as unsound, and there is no other way to await an epoll"
)]
pub fn await_readable(epoll: &Epoll) -> io::Result<AsyncFd<OwnedFd>> {
    let copy = epoll.as_fd().try_clone_to_owned()?;
    // SAFETY: an `OwnedFd` is the only owner of its descriptor, always answers `as_raw_fd` with it, and closes it when it
    // is dropped, which `AsyncFd` does only after it has left the reactor.
    Ok(unsafe { AsyncFd::register_with_interest(copy, Interest::READABLE) }?)
}

/// From now on a socket is readable once so many bytes have come, or its end (socket(7), `SO_RCVLOWAT`). Linux says so at once
/// where they are there already. What the system refuses changes nothing but the number of wake-ups.
#[allow(unsafe_code, reason = "no crate that is used here has a safe wrapper")]
pub fn tell_from(socket: &impl AsFd, bytes: usize) {
    let least = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: the descriptor is open while it is borrowed, and the kernel copies an int of the given length.
    unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const least).cast(),
            INT_BYTES,
        );
    }
}

/// What every adopted socket is told.
///
/// # Errors
/// What the operating system says.
pub fn tune(socket: &socket2::SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOT_SENT_LOWAT)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}
