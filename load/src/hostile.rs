//! Connections that mean harm: how long the server lets them.
//!
//! Does: opens connections of four kinds, keeps each at its harm, and counts when the server has ended them. Owns: those
//! connections. Never knows: the honest ones, which another process measures meanwhile. Keeps: its own turn is small, so
//! that what it costs the honest ones is the server's doing: a flood has a pace, nobody comes again, and who sends a byte a
//! second does so at a moment of its own, as clients that know nothing of each other do. All at the same moment is asked
//! for by name. Tells how late its own turns were: an attack that got no core was none.

use std::{io::Write as _, net::SocketAddr, time::Duration};

use anyhow::Result;
use rustix::fd::OwnedFd;

use crate::{
    net::{self, Poller, Read, Ready},
    wire::client_frame,
};

/// Connects that may be under way at a time.
const IN_FLIGHT: usize = 256;
/// Between two turns of harm.
const TURN: Duration = Duration::from_millis(10);
/// Turns over which what comes once a second is spread.
const SECOND_TURNS: u64 = 100;
/// Turns over which floods are spread.
const FLOOD_TURNS: u64 = 10;
/// Pings of one flood, as often as that.
const FLOOD: usize = 200;

/// What a connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// A head that never ends, a byte a second.
    Slowloris,
    /// Nothing.
    Silent,
    /// A session that pings without end.
    Flood,
    /// A session whose first message comes a byte a second.
    Trickle,
}

/// How an attack is made.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Plan {
    /// How many connections.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) connections: u32,
    /// Of which kinds, in equal parts.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Kind::Slowloris, Kind::Silent, Kind::Flood, Kind::Trickle])]
    kinds: Vec<Kind>,
    /// What comes once a second comes from all at the same moment.
    #[arg(long)]
    together: bool,
    /// Seconds after which those that are left are given up.
    #[arg(long, default_value_t = 120.0, value_parser = crate::options::seconds)]
    seconds: f64,
}

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
    plan: Plan,
    connecting: usize,
    flood: Vec<u8>,
    /// Messages, or bytes of one, that have left since all were opened.
    sent: u64,
}

/// Attacks until the server has ended everything, or for as long as planned.
///
/// # Errors
/// When the kernel has no more sockets.
pub(crate) fn attack(address: SocketAddr, plan: Plan) -> Result<()> {
    let seconds = plan.seconds;
    let count = usize::try_from(plan.connections)?;
    let mut attack = Attack {
        poller: Poller::new()?,
        all: Vec::new(),
        address,
        plan,
        connecting: 0,
        flood: client_frame(0x9, b"x").repeat(FLOOD),
        sent: 0,
    };
    let begin = net::now();
    attack.open(count)?;
    say(&format!(
        "opened {count} hostile connections in {:.2} s",
        begin_s(begin)
    ));
    let opened = net::now();
    let (mut turns, mut latest) = (0, Duration::ZERO);
    while attack.left() > 0 && begin_s(begin) < seconds {
        let (since, due) = (Duration::from_nanos(net::now() - opened), TURN * turns);
        if let Some(late) = since.checked_sub(due) {
            latest = latest.max(late);
            attack.harm(u64::from(turns));
            turns += 1;
        }
        // Readiness comes more often than harm is due.
        attack.look_around(due.saturating_sub(since).min(TURN))?;
    }
    attack.tell();
    let (sent, lasted) = (attack.sent, begin_s(opened));
    say(&format!(
        "sent {sent} pings and bytes in {lasted:.1} s, its turns at most {} ms late",
        latest.as_millis()
    ));
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
                    kind: self.plan.kinds[number % self.plan.kinds.len()],
                    opened: None,
                    gone: None,
                    heard: false,
                });
                self.connecting += 1;
            }
            self.look_around(TURN)?;
        }
        Ok(())
    }

    /// Looks at what has happened, after `wait` at the latest.
    fn look_around(&mut self, wait: Duration) -> Result<()> {
        let mut ready = Vec::new();
        self.poller.wait(wait, &mut ready)?;
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

    /// The harm that is due in one turn.
    fn harm(&mut self, turn: u64) {
        let (together, kinds) = (self.plan.together, self.plan.kinds.len());
        // As many of each kind in every turn.
        let is_due = |number: usize, turns: u64| {
            let own = if together { 0 } else { (number / kinds) as u64 };
            turn % turns == own % turns
        };
        for (number, hostile) in self.all.iter_mut().enumerate() {
            let Some(socket) = &hostile.socket else {
                continue;
            };
            let (bytes, turns) = match hostile.kind {
                Kind::Flood if hostile.heard => (&self.flood[..], FLOOD_TURNS),
                Kind::Slowloris => (&b"x"[..], SECOND_TURNS),
                Kind::Trickle if hostile.heard => (&b"x"[..], SECOND_TURNS),
                _ => continue,
            };
            if !is_due(number, turns) {
                continue;
            }
            match net::send(socket, bytes) {
                Some(0) => {}
                Some(_) if hostile.kind == Kind::Flood => self.sent += FLOOD as u64,
                Some(_) => self.sent += 1,
                None => hostile.end(),
            }
        }
    }

    fn left(&self) -> usize {
        let left = self.all.iter().filter(|hostile| hostile.gone.is_none());
        left.count()
    }

    /// How long each kind was let.
    fn tell(&self) {
        for &kind in &self.plan.kinds {
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
