//! Those who do not read, and one who reads slowly: what the others notice, what it costs the server, what they see.

use std::time::Duration;

use anyhow::Result;

use super::{Part, QUIET, head, plan, probe, server, setup};
use crate::{
    net,
    options::{Common, Load},
    report::{Figures, Output},
    run::Run,
    stats::Tally,
    wire::Transport,
};

/// How long those who read again may take to have the newest.
const CATCH_UP: Duration = Duration::from_secs(10);

/// Who is slow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slow {
    /// Subscribers that stop reading.
    pub(crate) stalled: u32,
    /// What another one reads.
    pub(crate) bytes_per_second: u64,
    /// Its receive buffer.
    pub(crate) receive_bytes: usize,
}

/// Publishes three times alike: to readers alone; while some have stopped; while another one reads slowly.
///
/// # Errors
/// When the server cannot be reached, refuses, or goes away.
pub(crate) fn measure(
    common: &Common,
    transport: Transport,
    load: &Load,
    slow: Slow,
) -> Result<()> {
    let parts = [Part {
        scenario: "slow",
        load: load.clone(),
    }];
    let mut run = Run::new(setup(common, transport, &parts)?)?;
    let took = run.subscribe_all()?;
    run.settle(QUIET)?;
    run.open_publishers()?;
    probe(&mut run, &parts)?;
    let mut figures = head(common, transport, "slow", load);
    figures.subscribed(took);
    figures.set("stalled", slow.stalled);

    let first = memory(common)?;
    run.publish(&[plan(load, net::now())])?;
    let without_us = run.tallies[0].quantile_us(0.99);
    let second = memory(common)?;
    run.reset();

    run.stall(slow.stalled as usize)?;
    run.publish(&[plan(load, net::now())])?;
    let with_us = run.tallies[0].quantile_us(0.99);
    let third = memory(common)?;
    let (have, took) = run.resume_reading(CATCH_UP)?;
    figures.set(
        "closed",
        run.tallies.iter().map(|tally| tally.closed).sum::<u64>(),
    );
    run.settle(QUIET)?;
    run.reset();

    figures.compared(without_us, with_us);
    figures.set("rss_grown_without_kib", second.saturating_sub(first) / 1024);
    figures.set("rss_grown_with_kib", third.saturating_sub(second) / 1024);
    figures.set("stalled_that_got_the_newest", have);
    figures.milliseconds("newest_after_ms", took);

    let group = run.add_small(slow.receive_bytes)?;
    run.pace_last(slow.bytes_per_second);
    run.publish(&[plan(load, net::now())])?;
    ages(&mut figures, &run.tallies[group]);
    run.publishers
        .iter_mut()
        .for_each(crate::publisher::Publisher::finish);
    Output::new(common.json.clone()).write(&figures)
}

fn memory(common: &Common) -> Result<u64> {
    Ok(server(common)?.map_or(0, |usage| usage.resident))
}

/// How old what the slow reader sees is, by when it was due.
fn ages(figures: &mut Figures, tally: &Tally) {
    for (name, quantile) in [
        ("slow_reader_age_p50_ms", 0.5),
        ("slow_reader_age_p99_ms", 0.99),
        ("slow_reader_age_max_ms", 1.0),
    ] {
        figures.milliseconds(name, Duration::from_micros(tally.quantile_us(quantile)));
    }
    figures.set("slow_reader_updates", tally.deliveries);
}
