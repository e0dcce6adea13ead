//! The loop: one thread, one epoll instance, subscribers and publishers together.
//!
//! Does: connects subscribers a few hundred at a time, lets publishers publish, reads what arrives until all is there or
//! nothing comes any more. Owns: every connection of a run. Never knows: scenarios, output. Keeps: publishers are looked
//! after every fraction of a millisecond, however much there is to read, and so is a small group beside a large one: its
//! subscribers stand for clients of their own, who would not read behind ten thousand others; every wait has an end.

use std::{collections::VecDeque, net::SocketAddr, ops::Range, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    net::{self, Poller, Ready},
    publisher::{Bounds, Plan, Publisher},
    stats::Tally,
    subscriber::{Left, Phase, Reader, Subscriber},
    tokens::Tokens,
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
/// Who reads at a pace reads so many bytes at a time, and is looked after this often.
const PACED_READ: usize = 1024;
const PACE: Duration = Duration::from_millis(5);

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
    /// Where it is published to.
    pub(crate) publish_address: SocketAddr,
    /// What subscribers show.
    pub(crate) tokens: Tokens,
    /// Channels of each subscriber.
    pub(crate) each: u32,
    /// Times are the server's alone.
    pub(crate) kernel_times: bool,
    /// Handshakes under way at a time.
    pub(crate) in_flight: usize,
    /// The groups; each has channels of its own.
    pub(crate) groups: Vec<GroupSetup>,
}

/// A subscriber that reads so fast and no faster.
#[derive(Debug, Clone, Copy)]
struct Paced {
    number: usize,
    bytes_per_second: u64,
    since: u64,
    /// Bytes that its counters had then.
    before: u64,
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
    /// Subscribers that do not read.
    stalled: Range<usize>,
    /// One that reads at a pace.
    paced: Option<Paced>,
    /// Subscribers that were told that their channel is live.
    pub(crate) proven: usize,
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
        let mut reader = Reader::new(
            setup.target,
            setup.transport,
            setup.each,
            setup.groups.iter().map(|group| group.channels).sum(),
        );
        if setup.kernel_times {
            reader.use_kernel_times();
        }
        Ok(Self {
            poller,
            apart,
            reader,
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
            stalled: 0..0,
            paced: None,
            proven: 0,
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
                self.connect(number, first_channel + nth % group.channels, None)?;
            }
            first_channel += group.channels;
        }
        self.all_live(start)?;
        Ok(Duration::from_nanos(net::now() - start))
    }

    fn all_live(&mut self, start: u64) -> Result<()> {
        while self.live < self.subscribers.len() {
            self.handshakes(start)?;
        }
        Ok(())
    }

    /// Lets `count` more come and go, a thousand at a time, beside those who stay.
    ///
    /// # Errors
    /// As [`Run::subscribe_all`].
    pub(crate) fn churn(&mut self, count: u32) -> Result<()> {
        const TOGETHER: u32 = 1_000;
        let (stay, channels) = (self.subscribers.len(), self.setup.groups[0].channels);
        let mut left = count;
        while left > 0 {
            let start = net::now();
            for nth in 0..left.min(TOGETHER) {
                while self.subscribers.len() - self.live >= self.setup.in_flight {
                    self.handshakes(start)?;
                }
                self.connect(0, nth % channels, None)?;
            }
            self.all_live(start)?;
            self.subscribers.truncate(stay);
            self.again.retain(|&number| (number as usize) < stay);
            self.live = stay;
            left -= left.min(TOGETHER);
        }
        Ok(())
    }

    /// Adds a subscriber of the first channel whose socket keeps only `receive` bytes, with counters of its own; gives
    /// their number.
    ///
    /// # Errors
    /// As [`Run::subscribe_all`].
    pub(crate) fn add_small(&mut self, receive: usize) -> Result<usize> {
        self.tallies.push(Tally::new());
        self.arrived_ever.push(0);
        let group = self.tallies.len() - 1;
        self.connect(u16::try_from(group)?, 0, Some(receive))?;
        self.all_live(net::now())?;
        Ok(group)
    }

    /// From now on the last subscriber reads so many bytes a second.
    pub(crate) fn pace_last(&mut self, bytes_per_second: u64) {
        let number = self.subscribers.len() - 1;
        let group = usize::from(self.subscribers[number].group);
        self.paced = Some(Paced {
            number,
            bytes_per_second,
            since: net::now(),
            before: self.tallies[group].bytes,
        });
    }

    /// The first `count` subscribers stop reading, and are counted apart; gives the number of their counters.
    ///
    /// # Errors
    /// When there are too many groups.
    pub(crate) fn stall(&mut self, count: usize) -> Result<usize> {
        self.tallies.push(Tally::new());
        self.arrived_ever.push(0);
        let group = self.tallies.len() - 1;
        for subscriber in &mut self.subscribers[..count] {
            subscriber.group = u16::try_from(group)?;
        }
        self.stalled = 0..count;
        self.publishers[0].leave(0, u32::try_from(count)?);
        Ok(group)
    }

    /// They read again, until each of them has the newest update or `time` is over. Tells how many have it, and how long
    /// the last of those took.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn resume_reading(&mut self, time: Duration) -> Result<(usize, Duration)> {
        let (numbers, start) = (std::mem::take(&mut self.stalled), net::now());
        let newest = self.publishers[0].next_number(0);
        for number in numbers.clone() {
            self.again.push_back(u32::try_from(number)?);
        }
        let end = start + u64::try_from(time.as_nanos())?;
        let (mut have, mut since) = (0, start);
        while have < numbers.len() && net::now() < end {
            self.turn(Duration::from_millis(5))?;
            let now_have = self.subscribers[numbers.clone()]
                .iter()
                .filter(|subscriber| subscriber.expects() >= newest)
                .count();
            if now_have > have {
                (have, since) = (now_have, net::now());
            }
        }
        Ok((have, Duration::from_nanos(since - start)))
    }

    /// Keeps the newest position of each channel, for those who come again.
    pub(crate) fn keep_positions(&mut self) {
        self.reader.keep_positions();
    }

    /// Reads until the server has gone and all connections with it, then waits until it listens again. Tells for how long
    /// it did not, and of how many channels positions are known.
    ///
    /// # Errors
    /// When it does not go, or does not come back.
    pub(crate) fn outlive_the_server(&mut self) -> Result<(Duration, usize)> {
        let start = net::now();
        while self.tallies.iter().map(|tally| tally.closed).sum::<u64>() < self.live as u64 {
            self.turn(Duration::from_millis(20))?;
            ensure!(net::now() - start < PATIENCE, "the server has not gone");
        }
        let gone = net::now();
        let known = self.reader.freeze_positions();
        while std::net::TcpStream::connect(self.setup.address).is_err() {
            ensure!(net::now() - gone < PATIENCE, "the server has not come back");
            self.turn(Duration::from_millis(1))?;
        }
        self.subscribers.clear();
        self.publishers.clear();
        self.again.clear();
        (self.live, self.proven, self.first_loss) = (0, 0, None);
        self.reset();
        self.arrived_ever.fill(0);
        Ok((Duration::from_nanos(net::now() - gone), known))
    }

    /// Reads until all subscribers were told that their channel is live.
    ///
    /// # Errors
    /// When that takes longer than the driver's patience.
    pub(crate) fn prove_all(&mut self) -> Result<()> {
        let start = net::now();
        while self.proven < self.subscribers.len() {
            self.turn(Duration::from_millis(20))?;
            ensure!(
                net::now() - start < PATIENCE,
                "only {} were told that their channel is live",
                self.proven
            );
        }
        Ok(())
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

    fn connect(&mut self, group: u16, channel: u32, receive: Option<usize>) -> Result<()> {
        let nth = self.subscribers.len();
        let socket = net::connect(self.setup.address, nth, receive)?;
        let groups = &self.setup.groups;
        let few = groups.len() > 1 && groups[usize::from(group)].subscribers <= FEW;
        let poller = if few { &self.apart } else { &self.poller };
        poller.add(&socket, nth as u64)?;
        if self.setup.kernel_times {
            net::note_arrivals(&socket)?;
        }
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
            let socket = net::connect(self.setup.publish_address, 0, None)?;
            self.poller.add(&socket, PUBLISHERS + number as u64)?;
            let fans = (0..group.channels)
                .map(|channel| fans(group.subscribers, group.channels, channel))
                .collect();
            let mut publisher = Publisher::new(
                socket,
                group.publications.clone(),
                group.bounds,
                first_channel,
                fans,
            )?;
            if self.setup.kernel_times {
                publisher.use_kernel_times();
            }
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
        let longest = match (self.again.is_empty(), &self.paced) {
            (false, _) => Duration::ZERO,
            (true, Some(_)) => longest.min(PACE),
            (true, None) => longest,
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
        self.read_paced()?;
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

    fn read_paced(&mut self) -> Result<()> {
        let Some(paced) = self.paced else {
            return Ok(());
        };
        let subscriber = &mut self.subscribers[paced.number];
        let tally = &mut self.tallies[usize::from(subscriber.group)];
        let read = tally.bytes.saturating_sub(paced.before);
        let may = (net::now() - paced.since).saturating_mul(paced.bytes_per_second) / 1_000_000_000;
        if may.saturating_sub(read) < PACED_READ as u64 {
            return Ok(());
        }
        if let Err(reason) = self.reader.read_some(subscriber, tally, PACED_READ) {
            self.paced = None;
            self.lose(paced.number, reason);
        }
        Ok(())
    }

    fn subscriber_ready(&mut self, event: Ready) -> Result<()> {
        let number = usize::try_from(event.id)?;
        let Some(subscriber) = self.subscribers.get(number) else {
            // It has left while its readiness was on the way.
            return Ok(());
        };
        if event.writable && subscriber.phase == Phase::Connecting {
            let setup = &self.setup;
            let host = setup.address.to_string();
            let request = wire::subscribe_request(
                setup.target,
                setup.transport,
                self.reader.channels_of(subscriber),
                &host,
                setup.tokens.of(number),
                self.reader.position_of(subscriber.channel()),
            );
            if let Err(reason) = self.subscribers[number].connected(&request) {
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
        let paced = self.paced.is_some_and(|paced| paced.number == number);
        if paced || self.stalled.contains(&number) {
            return Ok(());
        }
        let subscriber = &mut self.subscribers[number];
        let before = subscriber.phase;
        if matches!(before, Phase::Connecting | Phase::Closed) {
            return Ok(());
        }
        let tally = &mut self.tallies[usize::from(subscriber.group)];
        match self.reader.read(subscriber, tally) {
            Ok(left) => {
                if !before.is_live() && subscriber.phase.is_live() {
                    self.live += 1;
                }
                if before != Phase::Proven && subscriber.phase == Phase::Proven {
                    self.proven += 1;
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
