//! The loop: one thread, one epoll instance, subscribers and publishers together.
//!
//! Does: connects subscribers a few hundred at a time, lets publishers publish, reads what arrives until all is there or
//! nothing comes any more. Owns: every connection of a run. Never knows: scenarios, output. Keeps: publishers are looked
//! after every fraction of a millisecond, however much there is to read, and so is a small group beside a large one: its
//! subscribers stand for clients of their own, who would not read behind ten thousand others; every wait has an end.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    net::{self, Poller, Ready},
    publisher::{Bounds, Plan, Publisher},
    stats::Tally,
    subscriber::{Left, Phase, Reader, Subscriber},
    wire::{self, Publications, Target, Transport},
};

const MILLISECOND: u64 = 1_000_000;
/// Publishers wait no longer than this while subscribers are read.
const PUMP_EVERY: u64 = MILLISECOND / 5;
/// Longest handshakes of all subscribers, and longest wait for deliveries after the last publication.
const PATIENCE: u64 = 30_000 * MILLISECOND;
/// Without any delivery for so long, no more is expected.
const SILENCE: u64 = 1_500 * MILLISECOND;
const PUBLISHERS: u64 = 1 << 40;
/// The poller of small groups, among the events of the large one.
const APART: u64 = PUBLISHERS - 1;
/// A group of so few, beside others, is read apart.
const FEW: u32 = 8;

/// Subscribers of some channels, and who publishes to them.
#[derive(Debug, Clone)]
pub(crate) struct GroupSetup {
    /// How many subscribers.
    pub(crate) subscribers: u32,
    /// Over how many channels they are spread.
    pub(crate) channels: u32,
    /// How it is published to.
    pub(crate) publications: Publications,
    /// What limits the publisher.
    pub(crate) bounds: Bounds,
}

/// What a run connects to.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// The server.
    pub(crate) address: SocketAddr,
    /// What it is.
    pub(crate) target: Target,
    /// How subscribers listen.
    pub(crate) transport: Transport,
    /// Bearer token.
    pub(crate) token: Option<String>,
    /// Handshakes under way at a time.
    pub(crate) in_flight: usize,
    /// The groups; each has channels of its own.
    pub(crate) groups: Vec<GroupSetup>,
}

/// One run's connections and counters.
pub(crate) struct Run {
    setup: Setup,
    poller: Poller,
    /// For the subscribers of small groups.
    apart: Poller,
    reader: Reader,
    ready: Vec<Ready>,
    ready_apart: Vec<Ready>,
    again: VecDeque<u32>,
    subscribers: Vec<Subscriber>,
    live: usize,
    /// The counters, a group each.
    pub(crate) tallies: Vec<Tally>,
    arrived_ever: Vec<u64>,
    /// The publishers, a group each, once there are any.
    pub(crate) publishers: Vec<Publisher>,
    pumped: u64,
    armed: u64,
    /// Why the first subscriber was lost.
    pub(crate) first_loss: Option<String>,
}

impl Run {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn new(setup: Setup) -> Result<Self> {
        let (poller, apart) = (Poller::new()?, Poller::new()?);
        poller.add(&apart, APART)?;
        Ok(Self {
            poller,
            apart,
            reader: Reader::new(setup.target, setup.transport),
            ready: Vec::new(),
            ready_apart: Vec::new(),
            again: VecDeque::new(),
            subscribers: Vec::with_capacity(
                setup
                    .groups
                    .iter()
                    .map(|group| group.subscribers as usize)
                    .sum(),
            ),
            live: 0,
            tallies: setup.groups.iter().map(|_| Tally::new()).collect(),
            arrived_ever: vec![0; setup.groups.len()],
            publishers: Vec::new(),
            pumped: 0,
            armed: 0,
            first_loss: None,
            setup,
        })
    }

    /// Connects and subscribes everybody; returns how long that took.
    ///
    /// # Errors
    /// When a subscriber is refused or lost, or it takes longer than the driver's patience.
    pub(crate) fn subscribe_all(&mut self) -> Result<Duration> {
        let start = net::now();
        let mut first_channel = 0;
        for (number, group) in self.setup.groups.clone().into_iter().enumerate() {
            let number = u16::try_from(number).context("too many groups")?;
            for nth in 0..group.subscribers {
                while self.subscribers.len() - self.live >= self.setup.in_flight {
                    self.handshakes(start)?;
                }
                self.connect(number, first_channel + nth % group.channels)?;
            }
            first_channel += group.channels;
        }
        while self.live < self.subscribers.len() {
            self.handshakes(start)?;
        }
        Ok(Duration::from_nanos(net::now() - start))
    }

    fn handshakes(&mut self, start: u64) -> Result<()> {
        self.turn(Duration::from_millis(100))?;
        if let Some(reason) = &self.first_loss {
            anyhow::bail!(
                "subscriber refused or lost after {} were subscribed: {reason}",
                self.live
            );
        }
        ensure!(
            net::now() - start < PATIENCE,
            "only {} subscribed in {} s",
            self.live,
            PATIENCE / 1_000_000_000
        );
        Ok(())
    }

    fn connect(&mut self, group: u16, channel: u32) -> Result<()> {
        let nth = self.subscribers.len();
        let socket = net::connect(self.setup.address, nth)?;
        let groups = &self.setup.groups;
        let few = groups.len() > 1 && groups[usize::from(group)].subscribers <= FEW;
        let poller = if few { &self.apart } else { &self.poller };
        poller.add(&socket, nth as u64)?;
        self.subscribers
            .push(Subscriber::new(socket, group, channel));
        Ok(())
    }

    /// Waits until nothing has arrived for `quiet`, at most three seconds.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn settle(&mut self, quiet: Duration) -> Result<()> {
        let end = net::now() + 3_000 * MILLISECOND;
        let quiet = u64::try_from(quiet.as_nanos())?;
        let (mut seen, mut since) = (self.reads(), net::now());
        while net::now() < end && net::now() - since < quiet {
            self.turn(Duration::from_millis(20))?;
            if self.reads() != seen {
                (seen, since) = (self.reads(), net::now());
            }
        }
        Ok(())
    }

    /// Reads for `time`, whatever comes.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn idle(&mut self, time: Duration) -> Result<()> {
        let end = net::now() + u64::try_from(time.as_nanos())?;
        while net::now() < end {
            self.turn(Duration::from_millis(100))?;
        }
        Ok(())
    }

    fn reads(&self) -> u64 {
        self.tallies.iter().map(|tally| tally.reads).sum()
    }

    /// Connects the publishers.
    ///
    /// # Errors
    /// When the server does not take them.
    pub(crate) fn open_publishers(&mut self) -> Result<()> {
        let mut first_channel = 0;
        for (number, group) in self.setup.groups.iter().enumerate() {
            let socket = net::connect(self.setup.address, 0)?;
            self.poller.add(&socket, PUBLISHERS + number as u64)?;
            let fans = (0..group.channels)
                .map(|channel| fans(group.subscribers, group.channels, channel))
                .collect();
            let publisher = Publisher::new(
                socket,
                group.publications.clone(),
                group.bounds,
                first_channel,
                fans,
            )?;
            self.publishers.push(publisher);
            first_channel += group.channels;
        }
        // A connect to loopback has ended by now or ends within this turn; a later one only delays the first answer.
        self.turn(Duration::from_millis(100))
    }

    /// Begins counting anew.
    pub(crate) fn reset(&mut self) {
        for (ever, tally) in self.arrived_ever.iter_mut().zip(&mut self.tallies) {
            *ever += tally.deliveries + tally.skipped;
            let frame_bytes = tally.frame_bytes;
            *tally = Tally::new();
            tally.frame_bytes = frame_bytes;
        }
    }

    /// Publishes as planned, a plan for each group, and reads until all is delivered or nothing comes any more.
    ///
    /// # Errors
    /// When the server is gone, or refuses the stream of publications.
    pub(crate) fn publish(&mut self, plans: &[Plan]) -> Result<()> {
        for (publisher, plan) in self.publishers.iter_mut().zip(plans) {
            publisher.begin(*plan);
        }
        self.armed = 0;
        loop {
            self.pump()?;
            if self
                .publishers
                .iter()
                .all(|publisher| publisher.done(net::now()))
            {
                break;
            }
            self.turn(Duration::from_millis(100))?;
        }
        let end = net::now();
        let quiet_since = |run: &Self| {
            run.tallies
                .iter()
                .map(|tally| tally.last_ns)
                .max()
                .unwrap_or(0)
                .max(end)
        };
        while !self.all_arrived()
            && net::now() < end + PATIENCE
            && net::now() < quiet_since(self) + SILENCE
        {
            self.turn(Duration::from_millis(20))?;
        }
        Ok(())
    }

    /// Deliveries, or numbers passed over, in all plans so far.
    fn arrived(&self, group: usize) -> u64 {
        let tally = &self.tallies[group];
        self.arrived_ever[group] + tally.deliveries + tally.skipped
    }

    fn all_arrived(&self) -> bool {
        self.publishers
            .iter()
            .enumerate()
            .all(|(group, publisher)| self.arrived(group) >= publisher.expected)
    }

    fn pump(&mut self) -> Result<()> {
        let now = net::now();
        self.pumped = now;
        self.read_apart()?;
        let mut wake: Option<u64> = None;
        for group in 0..self.publishers.len() {
            let arrived = self.arrived(group);
            let next = self.publishers[group].pump(now, arrived)?;
            wake = [wake, next].into_iter().flatten().min();
        }
        if let Some(wake) = wake.filter(|&wake| wake != self.armed) {
            self.poller.wake_at(wake)?;
            self.armed = wake;
        }
        Ok(())
    }

    /// One turn: waits at most `longest`, reads what is ready, and looks after the publishers meanwhile.
    fn turn(&mut self, longest: Duration) -> Result<()> {
        let longest = if self.again.is_empty() {
            longest
        } else {
            Duration::ZERO
        };
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        self.poller.wait(longest, &mut ready)?;
        for _ in 0..self.again.len() {
            if let Some(number) = self.again.pop_front() {
                self.read(number as usize)?;
            }
        }
        for event in &ready {
            if event.id < APART {
                self.subscriber_ready(*event)?;
            }
        }
        self.ready = ready;
        self.pump()
    }

    /// Reads what small groups have got.
    fn read_apart(&mut self) -> Result<()> {
        let mut ready = std::mem::take(&mut self.ready_apart);
        ready.clear();
        self.apart.wait(Duration::ZERO, &mut ready)?;
        for event in &ready {
            self.subscriber_ready(*event)?;
        }
        self.ready_apart = ready;
        Ok(())
    }

    fn subscriber_ready(&mut self, event: Ready) -> Result<()> {
        let number = usize::try_from(event.id)?;
        let subscriber = &mut self.subscribers[number];
        if event.writable && subscriber.phase == Phase::Connecting {
            let setup = &self.setup;
            let host = setup.address.to_string();
            let request = wire::subscribe_request(
                setup.target,
                setup.transport,
                subscriber.channel(),
                &host,
                setup.token.as_deref(),
            );
            if let Err(reason) = subscriber.connected(&request) {
                self.lose(number, reason);
            }
        }
        if event.readable {
            self.read(number)
        } else {
            Ok(())
        }
    }

    fn read(&mut self, number: usize) -> Result<()> {
        let subscriber = &mut self.subscribers[number];
        let before = subscriber.phase;
        if matches!(before, Phase::Connecting | Phase::Closed) {
            return Ok(());
        }
        let tally = &mut self.tallies[usize::from(subscriber.group)];
        match self.reader.read(subscriber, tally) {
            Ok(left) => {
                if before != Phase::Live && subscriber.phase == Phase::Live {
                    self.live += 1;
                }
                if left == Left::Perhaps {
                    self.again.push_back(u32::try_from(number)?);
                }
                if self.reader.now().saturating_sub(self.pumped) > PUMP_EVERY {
                    self.pump()?;
                }
            }
            Err(reason) => self.lose(number, reason),
        }
        Ok(())
    }

    fn lose(&mut self, number: usize, reason: String) {
        let subscriber = &mut self.subscribers[number];
        subscriber.phase = Phase::Closed;
        self.tallies[usize::from(subscriber.group)].closed += 1;
        self.first_loss.get_or_insert(reason);
    }
}

/// Subscribers of the `channel`th of `channels`.
fn fans(subscribers: u32, channels: u32, channel: u32) -> u32 {
    subscribers / channels + u32::from(channel < subscribers % channels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fans_add_up() {
        let per_channel: Vec<_> = (0..4).map(|channel| fans(10, 4, channel)).collect();
        assert_eq!(per_channel, [3, 3, 2, 2]);
    }
}
