//! Records that one connection brings in, answered one by one, while nobody listens.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Part, head, plan, probe, server, setup};
use crate::{
    net,
    options::{Common, Load},
    process::Usage,
    report::Output,
    run::Run,
    wire::Transport,
};

/// Publishes as fast as answers allow, and counts answers.
///
/// # Errors
/// When the server cannot be reached, refuses a record, or goes away.
pub(crate) fn measure(common: &Common, load: &Load) -> Result<()> {
    let parts = [Part {
        scenario: "publish",
        load: load.clone(),
    }];
    let mut run = Run::new(setup(common, Transport::Ws, &parts)?)?;
    run.open_publishers()?;
    probe(&mut run, &parts)?;
    let (before, driver, answered) = (
        server(common)?,
        Usage::of(None)?,
        run.publishers[0].answered(),
    );
    let start = net::now();
    run.publish(&[plan(load, start)])?;
    let wall = Duration::from_nanos(net::now() - start);
    let records = run.publishers[0].answered() - answered;
    let (refused, first_refusal) = run.publishers[0].refusals();
    ensure!(
        refused == 0,
        "{refused} records were refused: {first_refusal}"
    );
    let driver_cpu = Usage::of(None)?.cpu_us - driver.cpu_us;
    let mut figures = head(common, Transport::Ws, "publish", load);
    figures.set("bytes", common.bytes);
    figures.records(records, wall);
    let server_cpu = before
        .zip(server(common)?)
        .map(|(before, after)| after.cpu_us - before.cpu_us);
    figures.record_cost(server_cpu, driver_cpu, records, wall);
    run.publishers
        .iter_mut()
        .for_each(crate::publisher::Publisher::finish);
    Output::new(common.json.clone()).write(&figures)
}
