//! Subscribed connections that get nothing: what they hold, what it cost to let them in, and what others leave behind
//! that come and go.

use std::time::Duration;

use anyhow::Result;

use super::{Part, QUIET, head, server, setup};
use crate::{
    net,
    options::{Common, Load},
    process::Usage,
    report::Output,
    run::Run,
    wire::Transport,
};

/// Measures `load.subscribers` with `each` channels, before and after `churn` others.
///
/// # Errors
/// When the server cannot be reached, refuses, or goes away.
pub(crate) fn measure(
    common: &Common,
    transport: Transport,
    load: &Load,
    each: u32,
    churn: u32,
) -> Result<()> {
    let before = server(common)?;
    let part = Part {
        scenario: "idle",
        load: load.clone(),
    };
    let mut setup = setup(common, transport, &[part])?;
    setup.each = each;
    let mut run = Run::new(setup)?;
    let driver = Usage::of(None)?;
    let took = run.subscribe_all()?;
    let driver_us = Usage::of(None)?.cpu_us - driver.cpu_us;
    run.settle(QUIET)?;
    let (subscribed, start) = (server(common)?, net::now());
    run.idle(Duration::from_secs_f64(load.seconds))?;
    let wall = Duration::from_nanos(net::now() - start);
    let mut figures = head(common, transport, "idle", load);
    figures.set("each", each);
    figures.subscribed(took);
    let after = server(common)?;
    if let (Some(before), Some(subscribed), Some(after)) = (before, subscribed, after) {
        figures.memory(before, after, load.subscribers);
        let connect_us = (subscribed.cpu_us - before.cpu_us) / u64::from(load.subscribers.max(1));
        figures.set("server_cpu_us_per_subscribe", connect_us);
        figures.set(
            "driver_cpu_us_per_subscribe",
            driver_us / u64::from(load.subscribers.max(1)),
        );
        figures.set(
            "idle_cpu_us_per_second",
            (after.cpu_us - subscribed.cpu_us) * 1000 / u64::try_from(wall.as_millis())?.max(1),
        );
    }
    if churn > 0 {
        run.churn(churn)?;
        run.idle(Duration::from_secs_f64(load.seconds))?;
        if let (Some(before), Some(after)) = (before, server(common)?) {
            let grown = after.resident.saturating_sub(before.resident);
            figures.set("churned", churn);
            figures.set(
                "rss_per_connection_after_churn_bytes",
                grown / u64::from(load.subscribers.max(1)),
            );
        }
    }
    figures.set("closed", run.tallies[0].closed);
    Output::new(common.json.clone()).write(&figures)
}
