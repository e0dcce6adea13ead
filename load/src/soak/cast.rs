//! Everybody who is connected during the soak, and the loop that serves them.
//!
//! Does: connects those who stay and those who come and go, reads what arrives, lets the sources publish. Owns: every
//! connection but the operator's. Never knows: what is a good result. Keeps: one thread, one epoll instance; whoever is to
//! leave leaves in time, and every wait has an end.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use super::{
    client::{Asks, Client, End, Request, buffer},
    member::{Member, Role},
    track::Track,
    visit::{KNOWN, Place, Resumes, Visit},
    writer::Writer,
};
use crate::{
    net::{self, Poller, Ready},
    tokens::Signer,
};
use anyhow::Result;

const MILLISECOND: u64 = 1_000_000;
/// The streams, as the configuration of the soak names them: of views, and of events.
pub(super) const STREAMS: [&str; 2] = ["views", "events"];
/// Longest time to be subscribed, and to be let go after a goodbye.
const PATIENCE: u64 = 10_000 * MILLISECOND;
/// A slow reader's receive buffer, in bytes: small, and yet room for several segments, or the kernel itself would hold it up.
const SLOW_RECEIVES: usize = 32 << 10;
/// Who is here for so long has been answered: longer than a long-poll waits, and than a source is paused.
const BEGINS: u64 = 3_000 * MILLISECOND;
/// A token for those who come with an old one is kept so long before it is replaced.
const AGED: u64 = 15_000 * MILLISECOND;
/// Mistakes that are told in full.
const TOLD_MAX: usize = 5;

/// A token that a visitor left behind, and the number that follows it.
#[derive(Debug, Clone, Default)]
struct Kept {
    token: String,
    next: Option<u64>,
    since: u64,
}

/// What was done and what went wrong, of all who came and went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Visitors that came.
    pub(super) joined: u64,
    /// Visitors that left.
    pub(super) left: u64,
    /// Of these, that said goodbye and were let go.
    pub(super) let_go: u64,
    /// Channels that were invented.
    pub(super) invented: u64,
    /// Tokens that were shown.
    pub(super) resumed: u64,
    /// Long-polls that were answered with something newer.
    pub(super) newer: u64,
    /// Long-polls that were answered that nothing is newer.
    pub(super) not_newer: u64,
    /// Updates to visitors.
    pub(super) updates: u64,
    /// Gaps that visitors were told.
    pub(super) gaps: u64,
    /// Events that a visitor never got, without a gap, or that came again.
    pub(super) faults: u64,
    /// Connections and subscriptions that were refused, were never answered, or ended by themselves.
    pub(super) failed: u64,
}

/// Everybody.
pub(super) struct Cast {
    address: SocketAddr,
    host: String,
    signer: Signer,
    poller: Poller,
    ready: Vec<Ready>,
    buf: Vec<u8>,
    members: HashMap<u64, Member>,
    next_id: u64,
    visitors: u64,
    /// The sources, in the order of [`STREAMS`].
    pub(super) writers: Vec<Writer>,
    fresh: HashMap<(usize, usize), Kept>,
    aged: HashMap<(usize, usize), Kept>,
    /// What happened.
    pub(super) counts: Counts,
    /// The first mistakes, in full.
    pub(super) told: Vec<String>,
}

impl Cast {
    /// The sources alone, which publish nothing yet.
    ///
    /// # Errors
    /// When the server can't be reached.
    pub(super) fn new(address: SocketAddr, signer: Signer) -> Result<Self> {
        let poller = Poller::new()?;
        let token = signer.token("source", &["views/*", "events/*"])?;
        let open = |(id, stream): (usize, &'static str)| {
            Writer::open(stream, address, &poller, id as u64, &token, KNOWN)
        };
        let writers = STREAMS.into_iter().enumerate().map(open);
        let writers: Vec<_> = writers.collect::<Result<_>>()?;
        Ok(Self {
            address,
            host: address.to_string(),
            signer,
            poller,
            ready: Vec::new(),
            buf: buffer(),
            members: HashMap::new(),
            next_id: writers.len() as u64,
            visitors: 0,
            writers,
            fresh: HashMap::new(),
            aged: HashMap::new(),
            counts: Counts::default(),
            told: Vec::new(),
        })
    }

    /// Connects those who stay and read: both transports, both streams, all known channels.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(super) fn add_steady(&mut self, count: usize) -> Result<()> {
        for nth in 0..count {
            let asks = [Asks::WebSocket, Asks::Events][nth % 2];
            let (stream, channel) = (nth / 2 % 2, nth / 4 % KNOWN);
            let channels = vec![format!("{}/c{channel}", STREAMS[stream])];
            self.add(Role::Steady, asks, channels, None)?;
        }
        Ok(())
    }

    /// Connects those who stay and do not always read: each has all channels of a stream.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(super) fn add_slow(&mut self, count: usize) -> Result<()> {
        for nth in 0..count {
            let stream = STREAMS[nth % 2];
            let channels = (0..KNOWN).map(|channel| format!("{stream}/c{channel}"));
            self.add(Role::Slow, Asks::WebSocket, channels.collect(), None)?;
        }
        Ok(())
    }

    /// Connects the next visitor.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(super) fn add_visitor(&mut self) -> Result<()> {
        let (nth, visit) = (self.visitors, Visit::of(self.visitors));
        self.visitors += 1;
        self.counts.joined += 1;
        let stream = STREAMS[visit.stream];
        let name = match visit.place {
            Place::Known(channel) => format!("c{channel}"),
            Place::Invented { written } => {
                self.counts.invented += 1;
                let name = format!("x{nth}");
                if written {
                    self.writers[visit.stream].line(&name, Some("a"), 1, false);
                }
                name
            }
        };
        let from = match (visit.place, visit.resumes) {
            (Place::Known(channel), Resumes::Fresh) => self.fresh.get(&(visit.stream, channel)),
            (Place::Known(channel), Resumes::Aged) => self.aged.get(&(visit.stream, channel)),
            _ => None,
        };
        let from = from.cloned();
        self.counts.resumed += u64::from(from.is_some());
        self.add(
            Role::Visitor(nth, visit),
            visit.asks,
            vec![format!("{stream}/{name}")],
            from,
        )
    }

    fn add(
        &mut self,
        role: Role,
        asks: Asks,
        channels: Vec<String>,
        from: Option<Kept>,
    ) -> Result<()> {
        let id = self.next_id;
        self.next_id += 1;
        let first = if matches!(role, Role::Visitor(..)) {
            from.as_ref().and_then(|kept| kept.next)
        } else {
            Some(1)
        };
        let track = |channel: &String| {
            let track = Track {
                is_events: channel.starts_with("events/"),
                next: first,
                ..Track::default()
            };
            (channel.clone(), track)
        };
        let tracks = channels.iter().map(track).collect();
        let request = Request {
            asks,
            channels,
            from: from.map(|kept| kept.token),
            token: self
                .signer
                .token(&format!("reader-{id}"), &["views/*", "events/*"])?,
        };
        let receive = (role == Role::Slow).then_some(SLOW_RECEIVES);
        let (born, stays) = match role {
            Role::Visitor(_, visit) => (net::now(), visit.stays_ms * MILLISECOND),
            Role::Steady | Role::Slow => (net::now(), u64::MAX / 2),
        };
        let member = Member {
            role,
            client: Client::connect(self.address, &self.poller, id, request, receive)?,
            tracks,
            began: 0,
            born,
            leaves_at: born + stays,
            said_goodbye: None,
        };
        self.members.insert(id, member);
        Ok(())
    }

    /// One turn: waits at most `longest`, reads what is ready, lets the sources publish and those leave whose time is over.
    ///
    /// # Errors
    /// When the server has gone.
    pub(super) fn turn(&mut self, longest: Duration) -> Result<()> {
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        self.poller.wait(longest, &mut ready)?;
        let now = net::now();
        for event in &ready {
            self.go_on(event.id, Some(*event), now);
        }
        self.ready = ready;
        self.look_after_members(now);
        self.writers
            .iter_mut()
            .try_for_each(|writer| writer.pump(now))
    }

    fn go_on(&mut self, id: u64, ready: Option<Ready>, now: u64) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if member.reads(id, now)
            && let Err(end) = member.go_on(ready, &self.host, &mut self.buf)
        {
            self.ended(id, end);
        }
    }

    /// Those whose time is over leave; those who were slow read again.
    fn look_after_members(&mut self, now: u64) {
        let mut due = Vec::new();
        let mut late = Vec::new();
        for (&id, member) in &self.members {
            let patience = PATIENCE + member.said_goodbye.unwrap_or(member.born);
            let waits = member.said_goodbye.is_some() || !member.has_begun();
            if member.role == Role::Slow
                || (member.leaves_at <= now && member.said_goodbye.is_none())
            {
                due.push(id);
            } else if waits && now > patience {
                late.push(id);
            }
        }
        for id in due {
            match self.members.get(&id).map(|member| member.role) {
                Some(Role::Slow) => self.go_on(id, None, now),
                Some(Role::Visitor(_, visit)) => self.leave(id, visit, now),
                _ => {}
            }
        }
        for id in late {
            self.fail(id, "it was not answered, or not let go");
        }
    }

    fn leave(&mut self, id: u64, visit: Visit, now: u64) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let begun = member.has_begun();
        if visit.is_polite && begun {
            member.client.say_goodbye();
            member.said_goodbye = Some(now);
        } else if begun || now - member.born < BEGINS {
            self.forget(id, now);
        } else {
            self.fail(id, "it was not answered");
        }
    }

    fn ended(&mut self, id: u64, end: End) {
        let Some(member) = self.members.get(&id) else {
            return;
        };
        match end {
            End::Wrong(reason) => self.fail(id, &reason),
            End::Closed if member.client.asks() == Asks::View && member.client.status() > 0 => {
                match member.client.status() {
                    200 => self.counts.newer += 1,
                    _ => self.counts.not_newer += 1,
                }
                self.forget(id, net::now());
            }
            End::Closed if member.said_goodbye.is_some() => {
                self.counts.let_go += 1;
                self.forget(id, net::now());
            }
            End::Closed => self.fail(id, "the server closed it"),
        }
    }

    fn fail(&mut self, id: u64, reason: &str) {
        self.counts.failed += 1;
        if let Some(member) = self.members.get(&id)
            && self.told.len() < TOLD_MAX
        {
            let channels: Vec<_> = member.tracks.iter().map(|(channel, _)| channel).collect();
            self.told
                .push(format!("{:?} of {channels:?}: {reason}", member.role));
        }
        self.forget(id, net::now());
    }

    /// A connection is closed, and what its visitor has seen is counted and handed down.
    fn forget(&mut self, id: u64, now: u64) {
        let Some(member) = self.members.remove(&id) else {
            return;
        };
        let Role::Visitor(nth, visit) = member.role else {
            return;
        };
        self.counts.left += 1;
        for (_, track) in &member.tracks {
            self.counts.updates += track.updates;
            self.counts.gaps += track.gaps;
            let faults = track.faults.lost + track.faults.went_back;
            if faults > 0 && self.told.len() < TOLD_MAX {
                self.told
                    .push(format!("visitor {nth}, {visit:?}: {:?}", track.faults));
            }
            self.counts.faults += faults;
        }
        match visit.place {
            Place::Known(channel) => self.keep((visit.stream, channel), &member, now),
            Place::Invented { written: true } if visit.stream == 0 => {
                self.writers[0].line(&format!("x{nth}"), Some("a"), 2, true);
            }
            Place::Invented { .. } => {}
        }
    }

    /// The token of who leaves is for those who come.
    fn keep(&mut self, place: (usize, usize), member: &Member, now: u64) {
        let Some(token) = member.tracks[0].1.position.clone() else {
            return;
        };
        let kept = Kept {
            token,
            next: member.tracks[0].1.next,
            since: now,
        };
        let aged = self.aged.entry(place).or_insert_with(|| kept.clone());
        if now - aged.since > AGED {
            *aged = self.fresh.get(&place).cloned().unwrap_or_default();
            aged.since = now;
        }
        self.fresh.insert(place, kept);
    }

    /// Visitors that are here.
    pub(super) fn visitors_here(&self) -> usize {
        self.members
            .values()
            .filter(|member| matches!(member.role, Role::Visitor(..)))
            .count()
    }

    /// Those who stay and do or do not read all the time: how many are here, and how many have begun.
    pub(super) fn staying(&self) -> (usize, usize) {
        let staying = || {
            self.members
                .values()
                .filter(|member| !matches!(member.role, Role::Visitor(..)))
        };
        (
            staying().count(),
            staying().filter(|member| member.has_begun()).count(),
        )
    }

    /// All visitors leave at once.
    pub(super) fn send_visitors_home(&mut self) {
        for member in self.members.values_mut() {
            if matches!(member.role, Role::Visitor(..)) {
                member.leaves_at = 0;
            }
        }
    }

    /// The tracks of those who stay: of those who always read, or of the others, with what was published to each.
    pub(super) fn tracks(
        &self,
        slow: bool,
    ) -> impl Iterator<Item = (&Track, &super::writer::Published)> {
        let role = if slow { Role::Slow } else { Role::Steady };
        let members = self
            .members
            .values()
            .filter(move |member| member.role == role);
        members
            .flat_map(|member| &member.tracks)
            .filter_map(|(channel, track)| {
                let (stream, name) = channel.split_once('/')?;
                let stream = STREAMS.iter().position(|known| *known == stream)?;
                let number: usize = name.strip_prefix('c')?.parse().ok()?;
                Some((track, self.writers[stream].known.get(number)?))
            })
    }
}
