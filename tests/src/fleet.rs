//! A fleet of real nodes on a real broker, hundreds of clients that come and go, faults in turn or at random, and an oracle that
//! holds what each client saw against the log.
//!
//! Does: starts everything, runs a [`Plan`], waits for rest, judges, reports. Owns: the broker, the nodes and all tasks of a run.
//! Never knows: how a node works; it sees sockets, files and what librdkafka reads. Keeps: a run says of itself what made it, so that
//! it can be made again; it is no replay, since nobody holds the clocks of three processes.
//!
//! The simulation has an oracle of the same kind for the pure rooms, and finds the rare interleavings; this one has what no
//! simulation has: the program itself, its threads, sockets and clocks, and Kafka.

mod client;
mod faults;
mod held;
mod history;
mod judge;
mod message;
mod nodes;
mod report;
mod road;
mod scene;
mod sockets;
mod spells;
mod store;
mod truth;
mod world;
mod writer;

use std::time::Duration;

pub use faults::Fault;
pub use history::Manner;
pub use judge::{Kind, Verdict};
pub use report::Report;

/// A bug that the server has on purpose, to see whether the oracle finds it: the Cargo feature `seeded-bugs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// An update is lost.
    Lose,
    /// An update is sent twice.
    Double,
    /// Two updates change places.
    Swap,
    /// Bad news is swallowed, and leases renewed without a proof.
    Hide,
    /// A subscription goes on from another place than its token's.
    Misplace,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Lose,
        Self::Double,
        Self::Swap,
        Self::Hide,
        Self::Misplace,
    ];

    /// Its word in configurations.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Lose => "lose",
            Self::Double => "double",
            Self::Swap => "swap",
            Self::Hide => "hide",
            Self::Misplace => "misplace",
        }
    }

    /// What the oracle must call it.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self {
            Self::Lose => Kind::Lost,
            Self::Double => Kind::Doubled,
            Self::Swap => Kind::Reordered,
            Self::Hide => Kind::UnmarkedStale,
            Self::Misplace => Kind::WrongResume,
        }
    }
}

/// What the fleet's cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// One Redis.
    One,
    /// A primary and its replica, which three sentinels watch.
    Sentinel,
    /// A cluster of three primaries, each with a replica.
    Cluster,
}

impl Cache {
    /// By its word on the command line.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        match word {
            "one" => Some(Self::One),
            "sentinel" => Some(Self::Sentinel),
            "cluster" => Some(Self::Cluster),
            _ => None,
        }
    }
}

/// Which faults a run has.
#[derive(Clone, Debug)]
pub enum Faults {
    /// These, one after the other.
    InTurn(Vec<Fault>),
    /// Any, for as long as the run lasts.
    Random,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the dice begin with.
    pub seed: u64,
    /// How many nodes.
    pub nodes: usize,
    /// How many clients.
    pub clients: usize,
    /// How long everything runs before all becomes calm, at least.
    pub length: Duration,
    /// The faults of that time.
    pub faults: Faults,
    /// How many brokers; what several keep, all of them keep.
    pub brokers: usize,
    /// The Redis from which the nodes read views, and where two materializers fold them.
    pub cache: Option<Cache>,
    /// A bug that the nodes have.
    pub bug: Option<Bug>,
    /// Whether it says on the way what happens.
    pub tells: bool,
}

impl Plan {
    /// Three nodes, one broker, 200 clients, no faults, no bugs.
    #[must_use]
    pub fn calm(seed: u64, length: Duration) -> Self {
        Self {
            seed,
            nodes: 3,
            clients: 200,
            length,
            faults: Faults::InTurn(Vec::new()),
            brokers: 1,
            cache: None,
            bug: None,
            tells: false,
        }
    }

    /// Carries it out.
    ///
    /// # Errors
    /// When something of the run itself does not do what it should: then it says nothing about the nodes.
    pub async fn run(&self) -> anyhow::Result<Report> {
        world::World::begin(self).await?.live(self).await
    }
}
