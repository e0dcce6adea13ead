//! The highest rate that a server keeps up with: p99 below a bound, nothing lost, nothing left behind.

use std::time::Duration;

use anyhow::Result;

use super::{Part, QUIET, head, plan, probe, setup};
use crate::{
    net,
    options::{Common, Load},
    report::Output,
    run::Run,
    wire::Transport,
};

/// Highest rate that is tried, in publications a second.
const RATE_MAX: f64 = 1_000_000.0;
/// Halvings between the last rate that passed and the first that did not: to 3 % of it.
const HALVINGS: u32 = 5;

/// Doubles `load.rate` until it is too much, then halves the distance.
///
/// # Errors
/// When the server cannot be reached, refuses, or goes away.
pub(crate) fn measure(
    common: &Common,
    transport: Transport,
    load: &Load,
    p99_ms: f64,
) -> Result<()> {
    let parts = [Part {
        scenario: "sweep",
        load: load.clone(),
    }];
    let mut run = Run::new(setup(common, transport, &parts)?)?;
    let took = run.subscribe_all()?;
    run.settle(QUIET)?;
    run.open_publishers()?;
    probe(&mut run, &parts)?;
    let (mut passed, mut failed, mut worst) = (0.0, None, None);
    let (mut rate, mut halvings, mut best) = (load.rate, 0, None);
    while halvings <= HALVINGS && rate <= RATE_MAX {
        let mut tried = try_rate(&mut run, load, rate)?;
        if !tried.keeps_up(p99_ms) {
            // The machine may have done something else for a moment.
            tried = try_rate(&mut run, load, rate)?;
        }
        if tried.keeps_up(p99_ms) {
            (passed, best) = (rate, Some(tried));
        } else {
            (failed, worst) = (Some(rate), Some(tried));
        }
        rate = match failed {
            None => rate * 2.0,
            Some(failed) => {
                halvings += 1;
                f64::midpoint(passed, failed)
            }
        };
    }
    let mut figures = head(common, transport, "sweep", load);
    figures.subscribed(took);
    let fan = f64::from(load.subscribers) / f64::from(load.channels);
    figures.set("deliveries_per_second", (passed * fan).round());
    figures.set("publications_per_second", passed.round());
    if let Some(best) = best {
        figures.set("p99_ms", best.p99_ms);
        figures.set("p50_ms", best.p50_ms);
        figures.set("frame_bytes", run.tallies[0].frame_bytes);
    }
    if let Some(worst) = worst {
        figures.set("too_much_p99_ms", worst.p99_ms);
        figures.set("too_much_lost", worst.lost);
        figures.set("too_much_behind", worst.behind);
    }
    Output::new(common.json.clone()).write(&figures)
}

struct Tried {
    p50_ms: f64,
    p99_ms: f64,
    lost: u64,
    behind: u64,
    /// Of the offered ones, how many a hundredth is.
    tolerated: u64,
}

impl Tried {
    /// What was due in the last moment may still be on its way out of the driver.
    fn keeps_up(&self, p99_ms: f64) -> bool {
        self.p99_ms < p99_ms && self.lost == 0 && self.behind <= self.tolerated
    }
}

fn try_rate(run: &mut Run, load: &Load, rate: f64) -> Result<Tried> {
    let load = Load {
        rate,
        ..load.clone()
    };
    let expected = run.publishers[0].expected;
    let plan = plan(&load, net::now());
    run.publish(&[plan])?;
    let (tally, publisher) = (&run.tallies[0], &run.publishers[0]);
    let (p50_us, p99_us) = (tally.quantile_us(0.5), tally.quantile_us(0.99));
    let tried = Tried {
        p50_ms: Duration::from_micros(p50_us).as_secs_f64() * 1e3,
        p99_ms: Duration::from_micros(p99_us).as_secs_f64() * 1e3,
        lost: (publisher.expected - expected).saturating_sub(tally.deliveries - tally.repeated),
        behind: publisher.behind(),
        tolerated: plan.offered() / 100,
    };
    run.settle(QUIET)?;
    run.reset();
    Ok(tried)
}
