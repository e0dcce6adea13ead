//! What is measured: a run with any numbers, and the presets.
//!
//! Does: puts groups, plans and measures of processes together. Owns: the presets. Never knows: sockets. Keeps: before
//! anything is measured, one publication a channel has reached its subscribers.

pub(crate) mod idle;
pub(crate) mod records;
pub(crate) mod resume;
pub(crate) mod slow;
pub(crate) mod sweep;

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;

use crate::{
    net,
    options::{Common, Load},
    process::Usage,
    publisher::{Bounds, Plan},
    report::{Figures, Output},
    run::{GroupSetup, Run, Setup},
    tokens::Tokens,
    wire::{Publications, Publish, Transport},
};

const SECOND: u64 = 1_000_000_000;
/// How long the first publication of each channel may take.
const PROBE: u64 = 5 * SECOND;
/// A pause this long after subscribing means that the server is through with it.
const QUIET: Duration = Duration::from_millis(200);

/// Who subscribes, and how it is published to them.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// What its figures are called.
    pub(crate) scenario: &'static str,
    /// Subscribers, channels, rate.
    pub(crate) load: Load,
}

/// Measures a publishing load: a group of subscribers and a publisher for each part, all at once.
///
/// # Errors
/// When the server cannot be reached, refuses, or goes away.
pub(crate) fn publish(common: &Common, transport: Transport, parts: &[Part]) -> Result<()> {
    let mut run = Run::new(setup(common, transport, parts)?)?;
    let took = run.subscribe_all()?;
    run.settle(QUIET)?;
    run.open_publishers()?;
    probe(&mut run, parts)?;
    warm_up(&mut run, parts)?;
    let expected: Vec<_> = run
        .publishers
        .iter()
        .map(|publisher| publisher.expected)
        .collect();
    let (server, driver) = (server(common)?, Usage::of(None)?);
    let start = net::now();
    let plans: Vec<_> = parts.iter().map(|part| plan(&part.load, start)).collect();
    run.publish(&plans)?;
    let wall = Duration::from_nanos(net::now() - start);
    let (server_after, driver_after) = (self::server(common)?, Usage::of(None)?);
    run.publishers
        .iter_mut()
        .for_each(crate::publisher::Publisher::finish);
    let deliveries = run.tallies.iter().map(|tally| tally.deliveries).sum();
    for (number, part) in parts.iter().enumerate() {
        let mut figures = head(common, transport, part.scenario, &part.load);
        figures.subscribed(took);
        let publisher = &run.publishers[number];
        // A paced load lasts as long as planned, a saturated one until the last delivery; either may end late.
        let planned = if part.load.rate > 0.0 {
            plans[number].end
        } else {
            start
        };
        let end = run.tallies[number].last_ns.max(planned);
        figures.delivered(
            &run.tallies[number],
            publisher,
            publisher.expected - expected[number],
            start,
            end,
        );
        let server_cpu = server_after
            .zip(server)
            .map(|(after, before)| after.cpu_us - before.cpu_us);
        figures.cost(
            server_cpu,
            driver_after.cpu_us - driver.cpu_us,
            deliveries,
            wall,
        );
        if let Some(reason) = &run.first_loss {
            figures.set("first_loss", reason.as_str());
        }
        Output::new(common.json.clone()).write(&figures)?;
    }
    Ok(())
}

/// One publication for each channel, from `start` on.
fn once(load: &Load, start: u64) -> Plan {
    Plan {
        start,
        end: start + PROBE,
        rate: 0.0,
        count: u64::from(load.channels),
    }
}

/// One publication for each channel: learns the length of a frame, and that everybody listens.
fn probe(run: &mut Run, parts: &[Part]) -> Result<()> {
    let start = net::now();
    let plans: Vec<_> = parts.iter().map(|part| once(&part.load, start)).collect();
    run.publish(&plans)?;
    for (tally, publisher) in run.tallies.iter().zip(&run.publishers) {
        let (refused, first_refusal) = publisher.refusals();
        anyhow::ensure!(
            refused == 0,
            "the first publication was refused: {first_refusal}"
        );
        anyhow::ensure!(
            tally.deliveries >= publisher.expected,
            "the first publication of each channel reached {} of {} subscribers",
            tally.deliveries,
            publisher.expected
        );
    }
    run.reset();
    Ok(())
}

/// Publications that are not measured. The first sixteen segments that a connection gets are acknowledged one by one, so they
/// cost more than later ones.
fn warm_up(run: &mut Run, parts: &[Part]) -> Result<()> {
    if parts.iter().all(|part| part.load.warm_up == 0.0) {
        return Ok(());
    }
    let start = net::now();
    let warm = |part: &Part| Plan {
        end: start + nanoseconds(part.load.warm_up),
        ..plan(&part.load, start)
    };
    let plans: Vec<_> = parts.iter().map(warm).collect();
    run.publish(&plans)?;
    run.reset();
    Ok(())
}

fn server(common: &Common) -> Result<Option<Usage>> {
    common
        .server_pid
        .map(|pid| Usage::of(Some(pid)))
        .transpose()
}

fn head(common: &Common, transport: Transport, scenario: &str, load: &Load) -> Figures {
    let mut figures = Figures::default();
    figures.set("scenario", scenario);
    figures.set("label", common.label());
    figures.set("round", common.round);
    figures.set("transport", transport.word());
    figures.set("subscribers", load.subscribers);
    figures.set("channels", load.channels);
    figures.set("publish", load.publish.word());
    figures.set("rate", load.rate);
    figures.set("window", load.window());
    figures.set("lead", load.lead);
    figures
}

fn setup(common: &Common, transport: Transport, parts: &[Part]) -> Result<Setup> {
    let subscribers: u32 = parts.iter().map(|part| part.load.subscribers).sum();
    let tokens = match (&common.jwt_secret, &common.token) {
        (Some(file), _) => Tokens::sign(file, &common.jwt_kid, subscribers)?,
        (None, Some(token)) => Tokens::Shared(token.clone()),
        (None, None) => Tokens::None,
    };
    let address: SocketAddr = common.address;
    let groups = parts.iter().map(|Part { load, .. }| GroupSetup {
        subscribers: load.subscribers,
        channels: load.channels.max(1),
        publications: Publications {
            target: common.target,
            transport,
            publish: load.publish,
            data_bytes: common.bytes,
            frame_bytes: common.frame_bytes,
            host: address.to_string(),
            token: tokens.of(0).map(str::to_owned),
        },
        bounds: Bounds {
            window: load.window(),
            owed: owed(load),
        },
    });
    let groups = groups.collect();
    Ok(Setup {
        address,
        publish_address: common.publish_address.unwrap_or(address),
        target: common.target,
        transport,
        tokens,
        each: 1,
        kernel_times: common.kernel_times,
        in_flight: common.in_flight.max(1),
        groups,
    })
}

/// Deliveries that may be under way: `lead` for each subscriber.
fn owed(load: &Load) -> u64 {
    if load.lead == 0 {
        u64::MAX
    } else {
        load.lead * u64::from(load.subscribers.max(1))
    }
}

#[expect(
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    reason = "clap bounds the seconds"
)]
fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

fn plan(load: &Load, start: u64) -> Plan {
    Plan {
        start,
        end: start + nanoseconds(load.seconds),
        rate: load.rate,
        count: u64::MAX,
    }
}

/// One subscriber of a small channel at 50 publications a second, beside the sweeps over a big channel.
///
/// # Errors
/// As [`publish`].
pub(crate) fn beside(
    common: &Common,
    transport: Transport,
    load: &Load,
    small_rate: f64,
) -> Result<()> {
    let small = Load {
        subscribers: 1,
        channels: 1,
        rate: small_rate,
        publish: Publish::One,
        ..load.clone()
    };
    let parts = [
        Part {
            scenario: "beside",
            load: small,
        },
        Part {
            scenario: "beside-big",
            load: load.clone(),
        },
    ];
    publish(common, transport, &parts)
}
