//! A simulation of nodes, sockets and clients around the real pure rooms, with an oracle that knows the logs.
//!
//! One seed is one history: records, cuts at any byte, resumes on any node, a node that lags, slow sockets, pauses, trimmed
//! and replaced logs. The rooms in it are the product's own: `EmbeddedLog`, `Partition`, `Tail`, `Worker`. Only time, sockets
//! and the clients are simulated. A failing seed prints its story.

mod cache;
mod client;
mod compaction;
mod node;
mod oracle;
mod pipe;

use std::{fmt::Write as _, sync::Arc, time::Duration};

use tidegate::{
    cache::ViewMax,
    decode::own_key,
    model::{Change, Channel, Epoch, Mode, Moment, Placement, Policy, RowId},
    partition::Answers,
    source::embedded::{Appended, EmbeddedLog, LogSettings, NewRecord, Retention},
    streams::partition_of,
    worker::outbox::OutboxMax,
};

use cache::{Cache, Materializer};
use client::Client;
use compaction::Cleaned;
use node::Node;
use oracle::Truth;

/// Simulated time of one tick.
pub const TICK: Duration = Duration::from_millis(50);
/// The stream's name in every simulation.
pub const STREAM: &str = "s";

/// A small random source: the same seed is the same history.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// From a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1)
    }
    /// SplitMix64.
    #[expect(
        clippy::should_implement_trait,
        reason = "numbers without end are asked for one by one, not iterated over"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).unwrap_or(0)
    }
    /// True with this probability, in percent.
    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// What a history is made of. Chances are in percent a tick.
#[derive(Clone, Debug)]
pub struct Scene {
    /// View or events.
    pub mode: Mode,
    /// Placement.
    pub placement: Placement,
    /// Partitions.
    pub partitions: u32,
    /// At some time there are so many, a multiple of that.
    pub grows_to: Option<u32>,
    /// Chance that a record is still written to where its channel was before.
    pub straggle: usize,
    /// Nodes; the last one lags.
    pub nodes: usize,
    /// Clients.
    pub clients: usize,
    /// Channels.
    pub channels: usize,
    /// Rows of a channel.
    pub rows: usize,
    /// Ticks of trouble, before all is calm.
    pub ticks: usize,
    /// Records a tick, at most.
    pub publish: usize,
    /// Chance that a record is a delete.
    pub deletes: usize,
    /// Chance that a client is cut.
    pub cut: usize,
    /// Chance that a socket is slow for its life.
    pub slow: usize,
    /// Chance that a node's source fails.
    pub pause: usize,
    /// Chance that it comes back.
    pub unpause: usize,
    /// Chance that a node that lags reads its source.
    pub lag: usize,
    /// Chance that the oldest records go.
    pub trim: usize,
    /// Chance that the logs are replaced by new ones.
    pub replace: usize,
    /// Nodes fold the logs themselves, since there is no cache.
    pub folds: bool,
    /// … or others do, into a cache that all nodes read.
    pub cached: bool,
    /// Chance that one of them folds a batch.
    pub folding: usize,
    /// Chance that something happens to that cache.
    pub mishaps: usize,
    /// Chance that a log is cleaned of what newer records have superseded.
    pub compact: usize,
    /// Chance that a node starts anew.
    pub restart: usize,
    /// Records that are read for one replay.
    pub replay: usize,
    /// Chance that a partition rests that nobody needs.
    pub rest: usize,
    /// How old an update may become in a tail.
    pub tail_age: Duration,
    /// Records that a tail holds.
    pub tail: usize,
    /// Bytes of a row's padding: many make snapshots of several parts.
    pub padding: usize,
    /// The outbox.
    pub outbox: OutboxMax,
    /// How long a row lives that nobody changes.
    pub row_ttl: Option<Duration>,
    /// Flushes a second of some subscriptions.
    pub max_rate: Option<f64>,
    /// The policy of all lines.
    pub policy: Policy,
    /// Sockets that one turn of sweeps writes to.
    pub sweep: usize,
}

impl Scene {
    /// A view, by channel, two partitions, two nodes of which one lags.
    #[must_use]
    pub fn view() -> Self {
        Self {
            mode: Mode::View,
            placement: Placement::ByChannel,
            partitions: 2,
            grows_to: None,
            straggle: 0,
            nodes: 2,
            clients: 3,
            channels: 3,
            rows: 4,
            ticks: 160,
            publish: 2,
            deletes: 25,
            cut: 4,
            slow: 40,
            pause: 1,
            unpause: 10,
            lag: 25,
            trim: 0,
            replace: 0,
            folds: false,
            cached: false,
            folding: 40,
            mishaps: 0,
            compact: 0,
            restart: 0,
            replay: 60,
            rest: 0,
            tail_age: Duration::from_secs(1 << 30),
            tail: 40,
            padding: 0,
            outbox: OutboxMax {
                bytes: 1 << 20,
                frames: 4096,
            },
            row_ttl: None,
            max_rate: None,
            policy: Policy::Conflate,
            sweep: 2,
        }
    }
    /// Events, likewise.
    #[must_use]
    pub fn events() -> Self {
        Self {
            mode: Mode::Events,
            deletes: 0,
            policy: Policy::DropOldest,
            ..Self::view()
        }
    }
}

impl Scene {
    /// How many partitions there are at the end.
    fn most(&self) -> u32 {
        self.grows_to.unwrap_or(self.partitions)
    }

    /// Where records of a channel may be, while there are so many partitions.
    fn homes(&self, channel: &Channel, partitions: u32) -> Vec<u32> {
        match self.placement {
            Placement::Spread => (0..partitions).collect(),
            Placement::ByChannel => {
                let mut homes = vec![partition_of(channel.name(), "", self.partitions)];
                homes.push(partition_of(channel.name(), "", partitions));
                homes.dedup();
                homes
            }
        }
    }
}

/// Ticks after partitions were added in which some still write as if they had not been.
const STRAGGLE_TICKS: u64 = 30;

/// What a history came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reached {
    /// What came of the joins.
    pub answers: Answers,
    /// Rows that were deleted since their time was over.
    pub expired: usize,
    /// Views whose rows were older than the tail, so that the log was read in between.
    pub backfilled: u64,
    /// Views that nodes folded from the log, since their cache was silent.
    pub folded_alone: u64,
    /// Partitions that rested, and were read again.
    pub woken: u64,
    /// Views that ended where what was deleted can't be told from what is there.
    pub incomplete: u64,
}

impl Reached {
    /// Adds another history's.
    pub fn add(&mut self, other: Self) {
        self.answers.add(other.answers);
        self.expired += other.expired;
        self.backfilled += other.backfilled;
        self.folded_alone += other.folded_alone;
        self.woken += other.woken;
        self.incomplete += other.incomplete;
    }
}

/// One history.
pub struct World {
    scene: Scene,
    dice: Dice,
    ticks: u64,
    logs: Vec<(Arc<EmbeddedLog>, Cleaned)>,
    truth: Truth,
    nodes: Vec<Node>,
    caches: Vec<Cache>,
    /// Two for each partition.
    materializers: Vec<[Materializer; 2]>,
    clients: Vec<Client>,
    /// How many partitions there are, and when they become more.
    partitions: u32,
    grows_at: u64,
    numbers: u64,
    epochs: u64,
    reached: Reached,
    story: String,
}

impl World {
    /// Runs one seed to its end.
    ///
    /// Tells what it came to.
    ///
    /// # Errors
    /// The first violation, with the story that led to it.
    pub fn run(scene: &Scene, seed: u64) -> Result<Reached, String> {
        let mut world = Self::new(scene.clone(), seed);
        world
            .live()
            .map_err(|violation| format!("seed {seed}: {violation}\n{}", world.story))?;
        world
            .nodes
            .iter()
            .for_each(|node| world.reached.answers.add(node.answers()));
        for report in world.nodes.iter().flat_map(Node::fence_reports) {
            world.reached.backfilled += report.backfilled;
            world.reached.folded_alone += report.folded_alone;
        }
        world.reached.incomplete = world.incomplete();
        world.reached.woken = world.nodes.iter().map(|node| node.woken).sum();
        Ok(world.reached)
    }

    fn new(scene: Scene, seed: u64) -> Self {
        let mut world = Self {
            dice: Dice::new(seed),
            ticks: 1,
            logs: Vec::new(),
            truth: Truth::of(scene.partitions),
            nodes: Vec::new(),
            caches: (0..scene.most()).map(|_| Cache::default()).collect(),
            materializers: (0..scene.most()).map(|_| Default::default()).collect(),
            clients: Vec::new(),
            partitions: scene.partitions,
            grows_at: 0,
            numbers: 0,
            epochs: 0,
            reached: Reached::default(),
            story: String::new(),
            scene,
        };
        world.new_logs();
        if world.scene.grows_to.is_some() {
            world.grows_at = 2 + world.dice.next() % (world.scene.ticks as u64 * 2 / 3);
        }
        let channels: Vec<Channel> = (0..world.scene.channels).map(channel).collect();
        world.clients = (0..world.scene.clients)
            .map(|n| Client::new(n, channels.clone(), &world.scene))
            .collect();
        world
    }

    fn now(&self) -> Moment {
        Moment::default().plus(TICK * u32::try_from(self.ticks).unwrap_or(u32::MAX))
    }

    /// The wall clock of this world.
    fn wall_ms(&self) -> i64 {
        i64::try_from(self.now().millis()).unwrap_or(i64::MAX)
    }

    fn tell(&mut self, text: &str) {
        writeln!(self.story, "t={} {text}", self.ticks).unwrap_or_default();
    }

    /// New logs, and nodes that know nothing.
    fn new_logs(&mut self) {
        self.epochs += 1;
        let settings = LogSettings {
            mode: self.scene.mode,
            retention: Retention {
                records: None,
                bytes: usize::MAX,
                age: Duration::from_secs(1 << 30),
            },
            view_max: ViewMax {
                rows: usize::MAX,
                bytes: usize::MAX,
            },
            row_ttl: self.scene.row_ttl,
        };
        let epoch = |partition: u32| {
            Epoch::new(&format!("e{}p{partition}", self.epochs)).expect("letters and digits")
        };
        self.logs = (0..self.scene.most())
            .map(|partition| {
                let log = EmbeddedLog::new(partition, epoch(partition), settings);
                (log, Cleaned::default())
            })
            .collect();
        self.truth.replace(self.ticks, self.logs.len());
        let now = self.now();
        let gone = self.nodes.iter();
        gone.for_each(|node| self.reached.answers.add(node.answers()));
        self.nodes = (0..self.scene.nodes)
            .map(|n| Node::new(n, &self.scene, &self.logs, &self.caches, now))
            .collect();
        let epochs = self.epochs;
        self.tell(&format!("logs of epoch {epochs}"));
    }

    fn live(&mut self) -> Result<(), String> {
        for _ in 0..self.scene.ticks {
            self.trouble();
            self.tick(false)?;
        }
        self.tell("all is calm");
        for node in &mut self.nodes {
            node.paused = false;
        }
        self.caches.iter().for_each(Cache::calm);
        self.clients.iter_mut().for_each(Client::widen);
        self.scene.slow = 0;
        for _ in 0..200 {
            self.tick(true)?;
            if self.at_rest().is_ok() {
                return Ok(());
            }
        }
        for node in 0..self.nodes.len() {
            let report = self.nodes[node].report();
            self.tell(&report);
        }
        self.at_rest()
    }

    fn at_rest(&self) -> Result<(), String> {
        self.clients
            .iter()
            .try_for_each(|client| client.at_rest(&self.truth, &self.logs, self.ticks))
    }

    /// Channels that some client knows to be incomplete.
    fn incomplete(&self) -> u64 {
        self.clients.iter().map(Client::incomplete).sum()
    }

    fn trouble(&mut self) {
        if let Some(partitions) = self.scene.grows_to
            && self.partitions != partitions
            && self.ticks >= self.grows_at
        {
            self.partitions = partitions;
            self.tell(&format!("there are {partitions} partitions"));
        }
        for _ in 0..self.dice.below(self.scene.publish + 1) {
            self.publish();
        }
        if self.dice.percent(self.scene.trim) {
            let at = self.dice.below(self.logs.len());
            let (head, start, ..) = self.logs[at].0.extent();
            let upto = start.number() + self.dice.next() % (head.number() - start.number() + 1);
            self.logs[at].0.trim(tidegate::model::Offset::new(upto));
            self.tell(&format!("log {at} trimmed to {upto}"));
        }
        if self.dice.percent(self.scene.compact) {
            let at = self.dice.below(self.logs.len());
            let (log, cleaned) = &self.logs[at];
            cleaned.run(log, self.wall_ms());
            self.tell(&format!("log {at} cleaned"));
        }
        if self.scene.replace > 0 && self.dice.below(1000) < self.scene.replace {
            self.clients.iter_mut().for_each(Client::cut);
            self.new_logs();
        }
        for n in 0..self.nodes.len() {
            if self.dice.percent(self.scene.restart) {
                let node = self.nodes[n].number;
                self.clients
                    .iter_mut()
                    .filter(|client| client.is_on(node))
                    .for_each(Client::cut);
                let now = self.now();
                self.reached.answers.add(self.nodes[n].answers());
                self.nodes[n] = Node::new(n, &self.scene, &self.logs, &self.caches, now);
                self.tell(&format!("node {n} restarted"));
            }
            let paused = self.nodes[n].paused;
            let chance = if paused {
                self.scene.unpause
            } else {
                self.scene.pause
            };
            if self.dice.percent(chance) {
                self.nodes[n].paused = !paused;
                self.tell(&format!(
                    "node {n} {}",
                    if paused {
                        "has its source again"
                    } else {
                        "lost its source"
                    }
                ));
            }
        }
    }

    fn publish(&mut self) {
        self.numbers += 1;
        let name = channel(self.dice.below(self.scene.channels));
        let row = RowId::new(&format!("r{}", self.dice.below(self.scene.rows))).expect("short");
        let row = if self.scene.mode == Mode::Events {
            RowId::default()
        } else {
            row
        };
        let spread = if self.scene.placement == Placement::Spread {
            format!(
                "{}{}",
                row.as_str(),
                if self.scene.mode == Mode::Events {
                    self.numbers
                } else {
                    0
                }
            )
        } else {
            String::new()
        };
        let straggles = self.partitions > self.scene.partitions && {
            let for_a_while = self.ticks < self.grows_at + STRAGGLE_TICKS;
            for_a_while && self.dice.percent(self.scene.straggle)
        };
        let partitions = if straggles {
            self.scene.partitions
        } else {
            self.partitions
        };
        let partition = partition_of(name.name(), &spread, partitions) as usize;
        let data = (!self.dice.percent(self.scene.deletes)).then(|| {
            format!(
                "{{\"n\":{},\"pad\":\"{}\"}}",
                self.numbers,
                "x".repeat(self.scene.padding)
            )
        });
        let change = Change {
            channel: name.clone(),
            row: row.clone(),
            data: data.map(Into::into),
            ts_ms: 0,
        };
        let new = NewRecord {
            key: own_key(name.name(), row.as_str()),
            change: change.clone(),
            event_time_ms: Some(0),
            id: None,
        };
        let appended = self.logs[partition]
            .0
            .append(vec![new], self.wall_ms())
            .remove(0);
        let Appended::At(position) = appended else {
            panic!("{appended:?}")
        };
        self.truth.record(
            partition,
            position.offset,
            &change,
            self.ticks,
            self.numbers,
        );
        let shown = change
            .data
            .as_ref()
            .map_or("deleted".to_owned(), |_| self.numbers.to_string());
        self.tell(&format!(
            "log {partition}: {} {name} {} = {shown}",
            position.offset,
            row.as_str()
        ));
    }

    fn tick(&mut self, calm: bool) -> Result<(), String> {
        self.ticks += 1;
        self.expire()?;
        let now = self.now();
        self.materialize(calm);
        for n in 0..self.nodes.len() {
            let lags = n + 1 == self.nodes.len() && self.nodes.len() > 1;
            let reads = calm || self.dice.percent(if lags { self.scene.lag } else { 90 });
            for told in self.nodes[n].rest_and_wake(self.scene.rest, now, &mut self.dice) {
                self.tell(&told);
            }
            let (partitions, ticks) = (self.partitions, self.ticks);
            if let Some(told) = self.nodes[n].look(partitions, ticks, calm, &mut self.dice) {
                self.tell(&format!("node {n} {told}"));
            }
            self.nodes[n].step(reads, calm, now, &mut self.dice);
        }
        for n in 0..self.clients.len() {
            self.step_client(n, calm, now)?;
        }
        Ok(())
    }

    /// Those who fold the logs into the caches, and what happens to these.
    fn materialize(&mut self, calm: bool) {
        if !self.scene.cached {
            return;
        }
        let now_ms = self.wall_ms();
        for at in 0..self.logs.len() {
            let (cache, (log, cleaned)) = (&self.caches[at], &self.logs[at]);
            for materializer in &mut self.materializers[at] {
                if calm || self.dice.percent(self.scene.folding) {
                    materializer.step(cache, (log, cleaned), now_ms, &mut self.dice, calm);
                }
            }
            let mishap = (!calm).then(|| cache.trouble(self.scene.mishaps, &mut self.dice));
            if let Some(mishap) = mishap.flatten() {
                self.tell(&format!("cache {at} {mishap}"));
            }
        }
    }

    /// The logs delete the rows whose time is over: those, no others, in the order of their last changes.
    fn expire(&mut self) -> Result<(), String> {
        let Some(ttl) = self.scene.row_ttl else {
            return Ok(());
        };
        let ttl = u64::try_from(ttl.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX);
        for partition in 0..self.logs.len() {
            let before = self.logs[partition].0.extent().0;
            self.logs[partition].0.expire(self.wall_ms());
            let written = self.logs[partition].0.read(Some(before), usize::MAX);
            let written = written.expect("a log in memory").records;
            let due = self
                .truth
                .unchanged(partition, self.ticks.saturating_sub(ttl));
            let keys = |change: &Change| own_key(change.channel.name(), change.row.as_str());
            let found: Vec<_> = written.iter().map(|record| record.key.clone()).collect();
            if found != due.iter().map(keys).collect::<Vec<_>>() {
                return Err(format!("log {partition} deleted {found:?}, not {due:?}"));
            }
            self.reached.expired += due.len();
            for (record, change) in written.iter().zip(due) {
                let data = record.value.clone();
                let change = Change { data, ..change };
                self.numbers += 1;
                let (number, ticks) = (self.numbers, self.ticks);
                self.truth
                    .record(partition, record.offset, &change, ticks, number);
                let row = change.row.as_str();
                self.tell(&format!(
                    "log {partition}: {} {} {row} is over",
                    record.offset, change.channel
                ));
            }
        }
        Ok(())
    }

    fn step_client(&mut self, n: usize, calm: bool, now: Moment) -> Result<(), String> {
        let client = &mut self.clients[n];
        if !client.is_connected() {
            if calm || self.dice.percent(30) {
                let at = self.dice.below(self.nodes.len());
                let slow = self.dice.percent(self.scene.slow);
                let told = client.connect(&mut self.nodes[at], slow, now, &mut self.dice);
                self.tell(&told);
            }
            return Ok(());
        }
        if !calm && self.dice.percent(self.scene.cut) {
            // What the kernel has accepted may arrive up to any byte.
            client.take(
                &self.truth,
                self.ticks,
                self.dice.below(400),
                &mut self.story,
            )?;
            let client = &mut self.clients[n];
            client.cut();
            let told = format!("client {n} is cut, has {}", client.tokens());
            self.tell(&told);
            return Ok(());
        }
        let most = if calm || !client.slow {
            usize::MAX
        } else {
            self.dice.below(120)
        };
        let ticks = self.ticks;
        client.take(&self.truth, ticks, most, &mut self.story)?;
        client.check_honesty(&self.truth, self.partitions, ticks)
    }
}

fn channel(n: usize) -> Channel {
    Channel::new(STREAM, &format!("c{n}")).expect("a name")
}
