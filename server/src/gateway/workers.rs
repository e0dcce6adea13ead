//! The workers: their listeners on one port, what each is told, their threads.
//!
//! Keeps: a worker's thread runs until its token stops it, and whoever spawned it joins it.

use std::{io, sync::Arc, thread::JoinHandle, time::Duration};

use tokio::{runtime::Builder, task::LocalSet};

use super::StartError;
use crate::{
    config::Config,
    transport::thread::{Thread, listen},
    worker::{self, outbox::OutboxMax, talk::Rate},
};

/// Pings and refused messages that a connection may send at once, in seconds of its rate.
const MESSAGES_BURST_S: u32 = 5;

/// Runs a worker on a thread of its own.
pub(super) fn spawn(number: usize, thread: Thread) -> io::Result<JoinHandle<()>> {
    // The I/O driver is looked at every few turns also while sweeps keep the worker busy: a turn is about a millisecond.
    let runtime = Builder::new_current_thread()
        .enable_all()
        .event_interval(1)
        .build()?;
    let run = move || {
        if let Err(error) = LocalSet::new().block_on(&runtime, thread.run()) {
            tracing::error!(worker = number, %error, "worker ended");
        }
    };
    std::thread::Builder::new()
        .name(format!("tidegate-worker-{number}"))
        .spawn(run)
}

/// One listener a worker, all on the same port.
pub(super) fn bind(config: &Config) -> Result<Vec<std::net::TcpListener>, StartError> {
    let mut address = config.listen.address;
    let failed = |address| {
        move |error| StartError::Listen {
            what: "clients",
            address,
            error,
        }
    };
    // Sockets that share a port would also share it with another process of the same user: so the port is tried alone first.
    let alone = std::net::TcpListener::bind(address).map_err(failed(address))?;
    address = alone.local_addr().map_err(failed(address))?;
    drop(alone);
    (0..config.listen.workers)
        .map(|_| listen(address, config.listen.backlog).map_err(failed(address)))
        .collect()
}

/// How long a proof keeps a view live: one for all of a connection's streams.
pub(super) fn live_for(config: &Config) -> Duration {
    let slos = config.streams.iter().map(|stream| stream.freshness_slo);
    let slo = slos.max().unwrap_or(config.stream_defaults.freshness_slo);
    let session = &config.session;
    session.live_for.unwrap_or(session.heartbeat + slo)
}

/// What a worker is told.
pub(super) fn settings(config: &Config, node: &Arc<str>, number: usize) -> worker::Settings {
    let (session, limits) = (&config.session, &config.limits);
    let channels = u32::try_from(limits.channels_per_connection).unwrap_or(u32::MAX);
    worker::Settings {
        node: node.clone(),
        number,
        heartbeat: session.heartbeat,
        live_for: live_for(config),
        outbox: OutboxMax {
            bytes: session.outbox.bytes,
            frames: session.outbox.frames,
        },
        drain_bytes: session.drain_rate_min.bytes,
        drain_over: session.drain_rate_min.over,
        message_bytes: limits.message_bytes,
        message_timeout: limits.message_timeout,
        messages: limits.messages_per_second.map(|rate| {
            let burst = rate.get().saturating_mul(MESSAGES_BURST_S).max(channels);
            Rate::per_second(rate, burst)
        }),
        subscribes: limits
            .subscribes_per_second
            .map(|rate| Rate::per_second(rate, channels)),
        channels_max: limits.channels_per_connection,
        sweep_sockets: worker::SWEEP_SOCKETS,
        auth_timeout: config.access.auth_timeout,
    }
}
