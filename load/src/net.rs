//! Sockets, readiness, the clock.
//!
//! Does: wraps epoll, a timer, non-blocking connects and the monotonic clock. Owns: the epoll instance and its timer.
//! Never knows: what the bytes mean. Keeps: sockets are registered once, edge-triggered; whoever reads one must read
//! until a read comes back short.

use std::{
    io::IoSliceMut,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd as _},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, sockopt::ReceiveTimestampns};
use rustix::{
    event::epoll,
    fd::OwnedFd,
    io::Errno,
    net::{RecvFlags, SendFlags},
    time::{ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec},
};

/// Sockets that one turn looks at.
const EVENTS: usize = 512;
/// Connections from one source address: below the usual range of ephemeral ports (32768 to 60999).
const PER_SOURCE: usize = 28_000;
const TIMER: u64 = u64::MAX;

/// The monotonic clock, in nanoseconds.
pub(crate) fn now() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

fn timespec(nanoseconds: u64) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(nanoseconds / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(nanoseconds % 1_000_000_000).unwrap_or(0),
    }
}

/// A socket that can do something.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    /// As given to [`Poller::add`].
    pub(crate) id: u64,
    /// Bytes, an end or an error wait.
    pub(crate) readable: bool,
    /// It takes bytes again, or its connect has ended.
    pub(crate) writable: bool,
}

/// One epoll instance with a timer that wakes it.
pub(crate) struct Poller {
    epoll: OwnedFd,
    timer: OwnedFd,
    events: Vec<epoll::Event>,
}

impl AsFd for Poller {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Poller {
    /// Opens both.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn new() -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll_create1")?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)
            .context("timerfd_create")?;
        epoll::add(
            &epoll,
            &timer,
            epoll::EventData::new_u64(TIMER),
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )?;
        Ok(Self {
            epoll,
            timer,
            events: Vec::with_capacity(EVENTS),
        })
    }

    /// Registers a socket for good: edge-triggered, both directions.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn add(&self, socket: impl AsFd, id: u64) -> Result<()> {
        let interest = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        epoll::add(&self.epoll, socket, epoll::EventData::new_u64(id), interest)
            .context("epoll_ctl")
    }

    /// Makes [`Poller::wait`] return at `due` (nanoseconds, monotonic) even if nothing happens.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn wake_at(&self, due: u64) -> Result<()> {
        let once = Itimerspec {
            it_interval: timespec(0),
            it_value: timespec(due.max(1)),
        };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)
            .context("timerfd_settime")?;
        Ok(())
    }

    /// Waits for readiness, at most `longest`, and appends what is ready to `ready`.
    ///
    /// # Errors
    /// Those of the kernel, but for interruption.
    pub(crate) fn wait(&mut self, longest: Duration, ready: &mut Vec<Ready>) -> Result<()> {
        self.events.clear();
        let longest = timespec(u64::try_from(longest.as_millis()).unwrap_or(1000) * 1_000_000);
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut self.events),
            Some(&longest),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll_wait"),
        }
        let input = epoll::EventFlags::IN
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::HUP
            | epoll::EventFlags::ERR;
        let ends = epoll::EventFlags::OUT | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        ready.extend(
            self.events
                .iter()
                .filter(|event| event.data.u64() != TIMER)
                .map(|event| {
                    let flags = event.flags;
                    Ready {
                        id: event.data.u64(),
                        readable: flags.intersects(input),
                        writable: flags.intersects(ends),
                    }
                }),
        );
        Ok(())
    }
}

/// Starts a connect. The `nth` connection of a process takes its source address from its number, so that loopback does
/// not run out of ports. `receive`: bytes of its receive buffer, where that is not the kernel's choice. Closing such a socket resets it: nothing is left in TIME_WAIT.
///
/// # Errors
/// When the kernel has no more sockets, or refuses at once.
pub(crate) fn connect(address: SocketAddr, nth: usize, receive: Option<usize>) -> Result<OwnedFd> {
    let kind = socket2::Type::STREAM.nonblocking().cloexec();
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        kind,
        Some(socket2::Protocol::TCP),
    )
    .with_context(|| format!("socket {nth} (ulimit -n?)"))?;
    socket.set_linger(Some(Duration::ZERO))?;
    if let Some(bytes) = receive {
        socket.set_recv_buffer_size(bytes)?;
    }
    let source = nth / PER_SOURCE;
    if source > 0 && address.ip().is_loopback() && address.is_ipv4() {
        let last = u8::try_from(source + 1)
            .context("too many connections for 127.0.0.2 to 127.0.0.255")?;
        socket
            .bind(&SocketAddr::from(([127, 0, 0, last], 0)).into())
            .with_context(|| format!("bind to 127.0.0.{last}"))?;
    }
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
        Err(error) => return Err(error).with_context(|| format!("connect to {address}")),
    }
    Ok(OwnedFd::from(socket))
}

/// Says why a connect has failed, if it has.
///
/// # Errors
/// The reason, for people.
pub(crate) fn connected(socket: &OwnedFd) -> Result<(), String> {
    match rustix::net::sockopt::socket_error(socket) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) | Err(error) => Err(format!("connect: {error}")),
    }
}

/// Sends small writes at once.
///
/// # Errors
/// Those of the kernel.
pub(crate) fn no_delay(socket: &OwnedFd) -> Result<()> {
    socket2::SockRef::from(socket)
        .set_tcp_nodelay(true)
        .context("TCP_NODELAY")
}

/// What came of a read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing waits.
    Empty,
    /// The other side is gone.
    Closed,
}

/// Reads once.
pub(crate) fn read(socket: &OwnedFd, buf: &mut [u8]) -> Read {
    match rustix::net::recv(socket, buf, RecvFlags::empty()) {
        Ok((_, 0)) => Read::Closed,
        Ok((_, bytes)) => Read::Bytes(bytes),
        Err(Errno::AGAIN | Errno::INTR) => Read::Empty,
        Err(_) => Read::Closed,
    }
}

/// Makes the kernel note when bytes arrive, for [`read_arrived`].
///
/// # Errors
/// Those of the kernel.
pub(crate) fn note_arrivals(socket: &OwnedFd) -> Result<()> {
    nix::sys::socket::setsockopt(socket, ReceiveTimestampns, &true).context("SO_TIMESTAMPNS")
}

/// Reads once, as [`read`]; tells also when the last of the bytes arrived (nanoseconds, monotonic), as the kernel noted it in
/// the sender's turn (socket(7), `SO_TIMESTAMPNS`; on loopback nothing lies between). `None`: it has not.
pub(crate) fn read_arrived(socket: &OwnedFd, buf: &mut [u8]) -> (Read, Option<u64>) {
    let mut parts = [IoSliceMut::new(buf)];
    let mut space = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let message = match recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::empty(),
    ) {
        Ok(message) => message,
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => return (Read::Empty, None),
        Err(_) => return (Read::Closed, None),
    };
    let noted = message.cmsgs().into_iter().flatten().find_map(|part| {
        let ControlMessageOwned::ScmTimestampns(time) = part else {
            return None;
        };
        u64::try_from(Duration::from(time).as_nanos()).ok()
    });
    let read = match message.bytes {
        0 => Read::Closed,
        bytes => Read::Bytes(bytes),
    };
    // Of the clock of the day: what has passed since is the same on both.
    let passed = noted.map(|noted| nanoseconds(ClockId::Realtime).saturating_sub(noted));
    (read, passed.map(|passed| now().saturating_sub(passed)))
}

/// Sends once; returns the bytes taken, or `None` when the other side is gone.
pub(crate) fn send(socket: &OwnedFd, bytes: &[u8]) -> Option<usize> {
    match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL) {
        Ok(taken) => Some(taken),
        Err(Errno::AGAIN | Errno::INTR) => Some(0),
        Err(_) => None,
    }
}
