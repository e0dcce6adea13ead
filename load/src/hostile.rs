//! Connections that mean harm: how long the server lets them.
//!
//! Does: opens connections of four kinds, keeps each at its harm, and counts when the server has ended them. Owns: those
//! connections. Never knows: the honest ones, which another process measures meanwhile. Keeps: its own turn is small, so
//! that what it costs the honest ones is the server's doing: a flood has a pace, and nobody comes again.

use std::{io::Write as _, net::SocketAddr, time::Duration};

use anyhow::Result;
use rustix::fd::OwnedFd;

use crate::{
    net::{self, Poller, Read, Ready},
    wire::client_frame,
};

/// Connects that may be under way at a time.
const IN_FLIGHT: usize = 256;
/// How often floods go on, and ends are looked at.
const TURN: Duration = Duration::from_millis(100);
/// Pings of one flood in one turn.
const FLOOD: usize = 200;

/// What a connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A head that never ends, a byte a second.
    Slowloris,
    /// Nothing.
    Silent,
    /// A session that pings without end.
    Flood,
    /// A session whose first message comes a byte a second.
    Trickle,
}

const KINDS: [Kind; 4] = [Kind::Slowloris, Kind::Silent, Kind::Flood, Kind::Trickle];

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Slowloris => "slowloris",
            Self::Silent => "silent",
            Self::Flood => "flood",
            Self::Trickle => "one byte a second",
        }
    }

    /// What it sends first.
    fn opening(self, address: SocketAddr) -> Vec<u8> {
        match self {
            Self::Slowloris => b"GET /v1/ws HTTP/1.1\r\nx-slow: ".to_vec(),
            Self::Silent => Vec::new(),
            Self::Flood | Self::Trickle => format!(
                "GET /v1/ws HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            .into_bytes(),
        }
    }
}

/// One of them.
struct Hostile {
    socket: Option<OwnedFd>,
    kind: Kind,
    opened: Option<u64>,
    gone: Option<u64>,
    /// A session has been answered.
    heard: bool,
}

/// All of them.
struct Attack {
    poller: Poller,
    all: Vec<Hostile>,
    address: SocketAddr,
    connecting: usize,
    flood: Vec<u8>,
}

/// Attacks until the server has ended everything, or for so many seconds.
///
/// # Errors
/// When the kernel has no more sockets.
pub(crate) fn attack(address: SocketAddr, count: u32, seconds: f64) -> Result<()> {
    let mut attack = Attack {
        poller: Poller::new()?,
        all: Vec::new(),
        address,
        connecting: 0,
        flood: client_frame(0x9, b"x").repeat(FLOOD),
    };
    let count = usize::try_from(count)?;
    let begin = net::now();
    attack.open(count)?;
    let opened = begin_s(begin);
    say(&format!(
        "opened {count} hostile connections in {opened:.2} s"
    ));
    let mut turns = 0u32;
    while attack.left() > 0 && begin_s(begin) < seconds {
        attack.turn()?;
        // Readiness comes more often than harm is due.
        if begin_s(begin) >= opened + TURN.as_secs_f64() * f64::from(turns) {
            attack.harm(turns.is_multiple_of(10));
            turns += 1;
        }
    }
    attack.tell();
    Ok(())
}

fn begin_s(begin: u64) -> f64 {
    Duration::from_nanos(net::now() - begin).as_secs_f64()
}

/// At once, also into a file: a script waits for it.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .unwrap_or_default();
}

impl Attack {
    fn open(&mut self, count: usize) -> Result<()> {
        while self.all.len() < count || self.connecting > 0 {
            while self.all.len() < count && self.connecting < IN_FLIGHT {
                let number = self.all.len();
                let socket = net::connect(self.address, number, None)?;
                self.poller.add(&socket, u64::try_from(number)?)?;
                self.all.push(Hostile {
                    socket: Some(socket),
                    kind: KINDS[number % KINDS.len()],
                    opened: None,
                    gone: None,
                    heard: false,
                });
                self.connecting += 1;
            }
            self.turn()?;
        }
        Ok(())
    }

    /// Looks at what has happened.
    fn turn(&mut self) -> Result<()> {
        let mut ready = Vec::new();
        self.poller.wait(TURN, &mut ready)?;
        for ready in ready {
            self.look(ready);
        }
        Ok(())
    }

    fn look(&mut self, ready: Ready) {
        let Some(hostile) = usize::try_from(ready.id)
            .ok()
            .and_then(|number| self.all.get_mut(number))
        else {
            return;
        };
        let Some(socket) = &hostile.socket else {
            return;
        };
        if hostile.opened.is_none() && ready.writable {
            self.connecting -= 1;
            hostile.opened = Some(net::now());
            if net::connected(socket).is_err()
                || net::send(socket, &hostile.kind.opening(self.address)).is_none()
            {
                return hostile.end();
            }
        }
        // What the server answers is passed over; only that it does matters.
        let mut void = [0; 16 * 1024];
        if !ready.readable {
            return;
        }
        loop {
            match net::read(socket, &mut void) {
                Read::Bytes(len) => {
                    if !hostile.heard && hostile.kind == Kind::Trickle {
                        // A text of 65,535 bytes, of which the header comes at once.
                        net::send(socket, &[0x81, 0xfe, 0xff, 0xff, 0, 0, 0, 0]);
                    }
                    hostile.heard = true;
                    if len < void.len() {
                        return;
                    }
                }
                Read::Empty => return,
                Read::Closed => return hostile.end(),
            }
        }
    }

    /// The harm of one turn; once a second also what comes once a second.
    fn harm(&mut self, whole_second: bool) {
        for hostile in &mut self.all {
            let Some(socket) = &hostile.socket else {
                continue;
            };
            let sent = match hostile.kind {
                Kind::Flood if hostile.heard => net::send(socket, &self.flood),
                Kind::Slowloris if whole_second => net::send(socket, b"x"),
                Kind::Trickle if whole_second && hostile.heard => net::send(socket, b"x"),
                _ => Some(0),
            };
            if sent.is_none() {
                hostile.end();
            }
        }
    }

    fn left(&self) -> usize {
        let left = self.all.iter().filter(|hostile| hostile.gone.is_none());
        left.count()
    }

    /// How long each kind was let.
    fn tell(&self) {
        for kind in KINDS {
            let of_kind: Vec<_> = self.all.iter().filter(|one| one.kind == kind).collect();
            let mut lives: Vec<_> = of_kind.iter().filter_map(|one| one.life()).collect();
            lives.sort_by(f64::total_cmp);
            let at = |place: usize| lives.get(place).copied().unwrap_or(f64::NAN);
            say(&format!(
                "{}: {} of {} ended by the server, after {:.2} s (median), {:.2} s (last)",
                kind.name(),
                lives.len(),
                of_kind.len(),
                at(lives.len() / 2),
                at(lives.len().saturating_sub(1)),
            ));
        }
        say(&format!("left: {}", self.left()));
    }
}

impl Hostile {
    fn end(&mut self) {
        self.gone = Some(net::now());
        self.socket = None;
    }

    /// From its opening to its end, in seconds.
    fn life(&self) -> Option<f64> {
        let (opened, gone) = (self.opened?, self.gone?);
        let life = Duration::from_nanos(gone.saturating_sub(opened));
        Some(life.as_secs_f64())
    }
}
