//! Runs a fleet before the oracle: `fleet [--seconds N] [--seed S] [--clients N] [--brokers 1|3] [--brokers 1|3] [--fault NAME|each|long|random|none]… [--bug NAME] [--cache one|sentinel|cluster]`.
//!
//! Ends with a line `N passed, M failed`. With `--bug` the run passes only if the oracle finds that bug and calls it by its name.

use std::{io::Write, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use tidegate_tests::fleet::{Bug, Cache, Fault, Faults, Plan};

const USAGE: &str = "usage: fleet [--seconds N] [--seed S] [--clients N] [--fault NAME|each|long|random|none]… [--bug NAME] [--cache one|sentinel|cluster]";

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let plan = parse(&words).with_context(|| USAGE)?;
    let report = plan.run().await?;
    let mut out = std::io::stdout();
    let (passed, failed) = if report.holds() { (1, 0) } else { (0, 1) };
    writeln!(out, "{}{passed} passed, {failed} failed", report.text())?;
    Ok(ExitCode::from(failed))
}

fn parse(words: &[String]) -> anyhow::Result<Plan> {
    let mut plan = Plan::calm(1, Duration::from_secs(20));
    plan.tells = true;
    let mut wanted = Vec::new();
    for pair in words.chunks(2) {
        let [option, value] = pair else {
            bail!("{pair:?}: an option without its value");
        };
        match option.as_str() {
            "--seconds" => plan.length = Duration::from_secs(value.parse()?),
            "--seed" => plan.seed = value.parse()?,
            "--brokers" => plan.brokers = value.parse()?,
            "--clients" => plan.clients = value.parse()?,
            "--cache" => {
                plan.cache =
                    Some(Cache::named(value).with_context(|| format!("no cache {value}"))?);
            }
            "--bug" => {
                let mut bugs = Bug::ALL.into_iter();
                let found = bugs.find(|bug| bug.word() == value.as_str());
                plan.bug = Some(found.with_context(|| format!("no bug {value}"))?);
            }
            "--fault" => wanted.push(value.as_str()),
            other => bail!("no option {other}"),
        }
    }
    // What "each" means depends on all the other words.
    let mut faults = Vec::new();
    for word in wanted {
        match word {
            "random" => plan.faults = Faults::Random,
            "none" => {}
            "each" => faults.extend(Fault::of(&plan, false)),
            "long" => faults.extend(Fault::of(&plan, true)),
            name => faults.push(Fault::named(name).with_context(|| format!("no fault {name}"))?),
        }
    }
    if plan.bug == Some(Bug::Hide) && faults.is_empty() {
        // Bad news must be there to be hidden.
        faults = vec![Fault::RoadFog, Fault::Pause, Fault::RoadStorm, Fault::Pause];
    }
    if !faults.is_empty() {
        plan.faults = Faults::InTurn(faults);
    }
    Ok(plan)
}
