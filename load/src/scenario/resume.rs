//! Everybody comes again at once, with the position that they had, after the server has been started anew.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};

use super::{Part, QUIET, head, probe, setup};
use crate::{
    net,
    options::{Common, Load},
    report::Output,
    run::Run,
    wire::Transport,
};

/// Subscribes, publishes once, says by `ready` that the server may go, and measures until all are live on the next one.
///
/// # Errors
/// When the server cannot be reached, does not go or come back, or refuses somebody.
pub(crate) fn measure(
    common: &Common,
    transport: Transport,
    load: &Load,
    ready: &Path,
    forgets: bool,
) -> Result<()> {
    let parts = [Part {
        scenario: "resume",
        load: load.clone(),
    }];
    let mut run = Run::new(setup(common, transport, &parts)?)?;
    run.keep_positions();
    run.subscribe_all()?;
    run.prove_all()?;
    run.open_publishers()?;
    probe(&mut run, &parts)?;
    run.settle(QUIET)?;
    std::fs::write(ready, "").with_context(|| ready.display().to_string())?;
    let (down, known) = run.outlive_the_server()?;
    if forgets {
        run.open_publishers()?;
        run.publish(&[super::once(load, net::now())])?;
        run.publishers.clear();
    }
    let start = net::now();
    let subscribed = run.subscribe_all()?;
    run.prove_all()?;
    let live = Duration::from_nanos(net::now() - start);
    let mut figures = head(common, transport, "resume", load);
    figures.set("channels_with_a_position", known);
    figures.milliseconds("server_was_down_ms", down);
    figures.milliseconds("subscribe_ms", subscribed);
    figures.milliseconds("all_live_ms", live);
    figures.set("gaps", run.tallies[0].gaps);
    figures.set("closed", run.tallies[0].closed);
    Output::new(common.json.clone()).write(&figures)
}
