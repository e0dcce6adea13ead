//! The command line.
//!
//! Does: says what can be asked for, and the defaults. Owns: nothing. Never knows: how it is done. Keeps: every number
//! has a bound.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::{
    hostile::Plan,
    soak::Soak,
    wire::{PAYLOAD_MAX, Publish, Target, Transport},
};

/// Open-loop load for a push gateway and for the bare-socket limits that it is held against.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Options {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What the driver can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Subscribers and a publisher, with any numbers.
    Run(Run),
    /// Memory and time of subscribed connections that get nothing: 10,000 of one channel, 5 s, unless told otherwise.
    Idle(Idle),
    /// One channel with 10,000 subscribers, 10 updates a second, 10 s, unless told otherwise.
    Fanout(Fanout),
    /// One channel, saturated through one stream of publications.
    Stream(Stream),
    /// The highest rate at which many small channels keep their p99: doubled until it fails, then narrowed down.
    Sweep(Sweep),
    /// Records a second that one stream of publications brings in, without subscribers.
    Publish(Records),
    /// Some subscribers stop reading, another reads slowly: what the others notice, what it costs, and what those see.
    Slow(Slow),
    /// All subscribers come again, with their positions, after the server has been started anew.
    Resume(Resume),
    /// One subscriber of a small channel beside the sweeps over a big one.
    Beside(Beside),
    /// Connections that mean harm, until the server has ended them all.
    Hostile(Hostile),
    /// Two minutes of coming and going, and whether anything of it stays in the server.
    Soak(Soak),
    /// The figures of a file, servers side by side.
    Table(Table),
}

/// What `run` is asked for.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The server.
    #[command(flatten)]
    pub(crate) common: Common,
    /// The numbers.
    #[command(flatten)]
    pub(crate) load: Load,
}

/// What `idle` is asked for.
#[derive(Debug, Args)]
pub(crate) struct Idle {
    /// The server.
    #[command(flatten)]
    pub(crate) common: Common,
    /// Subscribers.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) subscribers: u32,
    /// Channels over which they are spread.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) channels: u32,
    /// Channels that each of them has.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) each: u32,
    /// Others that come and go, a thousand at a time, before memory is read once more.
    #[arg(long, default_value_t = 0)]
    pub(crate) churn: u32,
    /// Seconds of rest before memory is read.
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    pub(crate) seconds: f64,
}

/// What `fanout` is asked for.
#[derive(Debug, Args)]
pub(crate) struct Fanout {
    /// The server.
    #[command(flatten)]
    pub(crate) common: Common,
    /// Subscribers.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) subscribers: u32,
    /// Publications a second.
    #[arg(long, default_value_t = 10.0, value_parser = rate)]
    pub(crate) rate: f64,
    /// Seconds of publishing.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    pub(crate) seconds: f64,
    /// Seconds of publishing before those, which are not measured.
    #[arg(long, default_value_t = 0.0, value_parser = seconds)]
    pub(crate) warm_up: f64,
}

/// What `stream` is asked for.
#[derive(Debug, Args)]
pub(crate) struct Stream {
    /// The server.
    #[command(flatten)]
    pub(crate) common: Common,
    /// Subscribers; several numbers are measured one after the other.
    #[arg(long, default_values_t = [1_000, 10_000], value_delimiter = ',')]
    pub(crate) subscribers: Vec<u32>,
    /// Publications that may wait for their answer.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) window: u64,
    /// Updates that may be under way to each subscriber; 0: no limit.
    #[arg(long, default_value_t = 256)]
    pub(crate) lead: u64,
    /// Seconds of publishing.
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    pub(crate) seconds: f64,
}

/// What `sweep` is asked for.
#[derive(Debug, Args)]
pub(crate) struct Sweep {
    /// The server.
    #[command(flatten)]
    pub(crate) common: Common,
    /// Subscribers.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) subscribers: u32,
    /// Channels over which they are spread.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) channels: u32,
    /// Publications a second that are tried first.
    #[arg(long, default_value_t = 5_000.0, value_parser = rate)]
    pub(crate) rate: f64,
    /// Publications that may wait for their answer.
    #[arg(long, default_value_t = 4_096, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) window: u64,
    /// Longest p99, in milliseconds.
    #[arg(long, default_value_t = 200.0)]
    pub(crate) p99_ms: f64,
    /// Seconds of publishing at each rate.
    #[arg(long, default_value_t = 1.5, value_parser = seconds)]
    pub(crate) seconds: f64,
}

/// What `publish` is asked for.
#[derive(Debug, Args)]
pub(crate) struct Records {
    /// The server.
    #[command(flatten)]
    pub(crate) common: Common,
    /// Publications that may wait for their answer.
    #[arg(long, default_value_t = 4_096, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) window: u64,
    /// Seconds of publishing.
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    pub(crate) seconds: f64,
}

/// What `slow` is asked for.
#[derive(Debug, Args)]
pub(crate) struct Slow {
    /// The server.
    #[command(flatten)]
    pub(crate) common: Common,
    /// Subscribers.
    #[arg(long, default_value_t = 1_000)]
    pub(crate) subscribers: u32,
    /// Those of them that stop reading.
    #[arg(long, default_value_t = 50)]
    pub(crate) stalled: u32,
    /// Publications a second.
    #[arg(long, default_value_t = 25.0, value_parser = rate)]
    pub(crate) rate: f64,
    /// What the slow reader reads, in bytes a second.
    #[arg(long, default_value_t = 64 << 10)]
    pub(crate) slow_bytes: u64,
    /// The slow reader's receive buffer, in bytes.
    #[arg(long, default_value_t = 8 << 10)]
    pub(crate) receive_bytes: usize,
    /// Seconds of publishing before, while some do not read, and while one reads slowly.
    #[arg(long, default_value_t = 20.0, value_parser = seconds)]
    pub(crate) seconds: f64,
}

/// What `resume` is asked for.
#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// The server.
    #[command(flatten)]
    pub(crate) common: Common,
    /// Subscribers.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) subscribers: u32,
    /// Channels over which they are spread.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) channels: u32,
    /// This file is made once the server may be stopped and started anew.
    #[arg(long)]
    pub(crate) ready: PathBuf,
    /// The server forgets its log when it stops: a record of each channel is published to the new one first.
    #[arg(long)]
    pub(crate) forgets: bool,
}

/// What `beside` is asked for.
#[derive(Debug, Args)]
pub(crate) struct Beside {
    /// The server.
    #[command(flatten)]
    pub(crate) common: Common,
    /// Subscribers of the big channel.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) subscribers: u32,
    /// Publications a second to the big channel.
    #[arg(long, default_value_t = 10.0, value_parser = rate)]
    pub(crate) rate: f64,
    /// Publications a second to the small channel.
    #[arg(long, default_value_t = 50.0, value_parser = rate)]
    pub(crate) small_rate: f64,
    /// Seconds of publishing.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    pub(crate) seconds: f64,
}

/// What `hostile` is asked for.
#[derive(Debug, Args)]
pub(crate) struct Hostile {
    /// Where the server listens.
    #[arg(long, default_value = "127.0.0.1:9700")]
    pub(crate) address: SocketAddr,
    /// Who comes.
    #[command(flatten)]
    pub(crate) plan: Plan,
}

/// What `table` is asked for.
#[derive(Debug, Args)]
pub(crate) struct Table {
    /// JSON lines, as `--json` writes them.
    pub(crate) file: PathBuf,
    /// The label that the others are divided by; may be repeated.
    #[arg(long, default_values_t = ["limit-write", "limit-coalesce", "bun", "nats"].map(str::to_owned))]
    pub(crate) against: Vec<String>,
}

/// The server, and what the figures are called.
#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// What is at the address.
    #[arg(long, value_enum, default_value = "tidegate")]
    pub(crate) target: Target,
    /// Where it listens.
    #[arg(long, default_value = "127.0.0.1:9700")]
    pub(crate) address: SocketAddr,
    /// How subscribers listen; several are measured one after the other.
    #[arg(long, value_enum, default_values_t = [Transport::Ws], value_delimiter = ',')]
    pub(crate) transport: Vec<Transport>,
    /// Where it is published to, if that is another address (NATS).
    #[arg(long)]
    pub(crate) publish_address: Option<SocketAddr>,
    /// Bearer token for subscribing and publishing.
    #[arg(long)]
    pub(crate) token: Option<String>,
    /// File with an HS256 secret: every subscriber shows a token of its own, signed with it.
    #[arg(long, conflicts_with = "token")]
    pub(crate) jwt_secret: Option<PathBuf>,
    /// The id of that key.
    #[arg(long, default_value = "bench")]
    pub(crate) jwt_kid: String,
    /// Process whose CPU time and memory are read.
    #[arg(long)]
    pub(crate) server_pid: Option<u32>,
    /// Bytes of data in a publication.
    #[arg(long, default_value_t = 128, value_parser = bytes)]
    pub(crate) bytes: usize,
    /// For a limit: bytes that one delivery shall have on the wire, as the gateway's figures tell (`frame_bytes`).
    #[arg(long, value_parser = bytes)]
    pub(crate) frame_bytes: Option<usize>,
    /// Handshakes under way at a time.
    #[arg(long, default_value_t = 256)]
    pub(crate) in_flight: usize,
    /// Appends the figures to this file, a line of JSON each.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Times are the server's alone: from the writing of a publication until the kernel has its update for the subscriber.
    /// How late the driver itself writes and reads is told apart. For a driver that shares its core with other load.
    #[arg(long)]
    pub(crate) kernel_times: bool,
    /// What the server is called in the figures; its kind by default.
    #[arg(long)]
    label: Option<String>,
    /// Which round of a series this is.
    #[arg(long, default_value_t = 1)]
    pub(crate) round: u32,
}

impl Common {
    /// What the server is called in the figures.
    pub(crate) fn label(&self) -> &str {
        self.label.as_deref().unwrap_or(match self.target {
            Target::Tidegate => "tidegate",
            Target::Limit => "limit",
            Target::Nats => "nats",
        })
    }
}

/// Subscribers and the publisher of one group of channels.
#[derive(Debug, Clone, Args)]
pub(crate) struct Load {
    /// Subscribers.
    #[arg(long, default_value_t = 1_000)]
    pub(crate) subscribers: u32,
    /// Channels over which they are spread.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) channels: u32,
    /// How publications travel.
    #[arg(long, value_enum, default_value = "one")]
    pub(crate) publish: Publish,
    /// Publications a second; 0: as fast as answers allow.
    #[arg(long, default_value_t = 10.0, value_parser = rate)]
    pub(crate) rate: f64,
    /// Seconds of publishing.
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    pub(crate) seconds: f64,
    /// Seconds of publishing before those, which are not measured.
    #[arg(long, default_value_t = 0.0, value_parser = seconds)]
    pub(crate) warm_up: f64,
    /// Publications of a stream that may wait for their answer.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) window: u64,
    /// Updates that may be under way to each subscriber; 0: no limit.
    #[arg(long, default_value_t = 0)]
    pub(crate) lead: u64,
}

impl Load {
    /// One channel, one request at a time.
    pub(crate) const fn one_channel(subscribers: u32, rate: f64, seconds: f64) -> Self {
        Self {
            subscribers,
            channels: 1,
            publish: Publish::One,
            rate,
            seconds,
            warm_up: 0.0,
            window: 1,
            lead: 0,
        }
    }

    /// Publications that may wait for their answer.
    pub(crate) const fn window(&self) -> u64 {
        match self.publish {
            Publish::One => 1,
            Publish::Stream => self.window,
        }
    }
}

fn bounded(text: &str, most: f64) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text} is no number"))?;
    if (0.0..=most).contains(&value) {
        Ok(value)
    } else {
        Err(format!("{text} is not between 0 and {most}"))
    }
}

fn rate(text: &str) -> Result<f64, String> {
    bounded(text, 10_000_000.0)
}

pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    bounded(text, 86_400.0)
}

fn bytes(text: &str) -> Result<usize, String> {
    let value: usize = text.parse().map_err(|_| format!("{text} is no number"))?;
    if value <= PAYLOAD_MAX {
        Ok(value)
    } else {
        Err(format!("{text} is more than {PAYLOAD_MAX}"))
    }
}
