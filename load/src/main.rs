//! `tidegate-load`: open-loop load for push gateways.
//!
//! One thread and one epoll instance hold all subscribers and the publisher, so that the driver costs little of the
//! machine that it shares with the server. `README.md` beside this crate says how to use it and how to read the figures.
//!
//! | room | does |
//! |---|---|
//! | `options` | the command line |
//! | `scenario` | what is measured, the presets |
//! | `run` | the loop that holds all connections |
//! | `subscriber`, `publisher`, `answers` | the receiving and the sending half |
//! | `parse`, `wire` | bytes to messages, messages to bytes |
//! | `hostile` | connections that mean harm, beside which another driver measures |
//! | `soak` | two minutes of coming and going, and whether anything of it stays |
//! | `net`, `process`, `tokens` | sockets and clock; CPU time and memory; tokens that are signed for subscribers |
//! | `stats`, `report`, `table` | counters, figures, figures side by side |

mod answers;
mod hostile;
mod net;
mod options;
mod parse;
mod process;
mod publisher;
mod report;
mod run;
mod scenario;
mod soak;
mod stats;
mod subscriber;
mod table;
mod tokens;
mod wire;

#[cfg(test)]
mod fake;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser as _;

use crate::{
    options::{Beside, Command, Common, Idle, Load, Options, Records, Resume, Slow, Stream, Sweep},
    scenario::Part,
    wire::{Publish, Transport},
};

/// Files that the driver needs beside its subscribers: publishers, epoll, timer, standard streams, and some to spare.
const OTHER_FILES: u64 = 32;
/// Connections that a soak has at most: at twice its usual pace, and when visitors are not let go.
const SOAK_FILES: u32 = 4_000;

fn main() -> ExitCode {
    match perform(Options::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(command: Command) -> Result<()> {
    match command {
        Command::Run(run) => publish(&run.common, "run", &run.load),
        Command::Idle(idle) => measure_idle(&idle),
        Command::Fanout(fanout) => {
            let load = Load {
                warm_up: fanout.warm_up,
                ..Load::one_channel(fanout.subscribers, fanout.rate, fanout.seconds)
            };
            publish(&fanout.common, "fanout", &load)
        }
        Command::Stream(stream) => measure_stream(&stream),
        Command::Sweep(sweep) => measure_sweep(&sweep),
        Command::Publish(records) => measure_records(&records),
        Command::Slow(slow) => measure_slow(&slow),
        Command::Resume(resume) => measure_resume(&resume),
        Command::Beside(beside) => measure_beside(&beside),
        Command::Hostile(hostile) => {
            enough_files(hostile.plan.connections)?;
            hostile::attack(hostile.address, hostile.plan)
        }
        Command::Soak(soak) => {
            enough_files(SOAK_FILES)?;
            soak::run(&soak)
        }
        Command::Table(table) => table::print(&table.file, &table.against),
    }
}

/// One group of channels, published to.
fn publish(common: &Common, scenario: &'static str, load: &Load) -> Result<()> {
    each(common, load.subscribers, |transport| {
        let load = load.clone();
        scenario::publish(common, transport, &[Part { scenario, load }])
    })
}

fn measure_idle(idle: &Idle) -> Result<()> {
    let load = Load {
        channels: idle.channels,
        ..Load::one_channel(idle.subscribers, 0.0, idle.seconds)
    };
    each(&idle.common, idle.subscribers, |transport| {
        scenario::idle::measure(&idle.common, transport, &load, idle.each, idle.churn)
    })
}

fn measure_stream(stream: &Stream) -> Result<()> {
    stream.subscribers.iter().try_for_each(|&count| {
        let load = Load {
            publish: Publish::Stream,
            window: stream.window,
            lead: stream.lead,
            ..Load::one_channel(count, 0.0, stream.seconds)
        };
        publish(&stream.common, "stream", &load)
    })
}

fn measure_sweep(sweep: &Sweep) -> Result<()> {
    let load = Load {
        channels: sweep.channels,
        publish: Publish::Stream,
        window: sweep.window,
        ..Load::one_channel(sweep.subscribers, sweep.rate, sweep.seconds)
    };
    each(&sweep.common, sweep.subscribers, |transport| {
        scenario::sweep::measure(&sweep.common, transport, &load, sweep.p99_ms)
    })
}

fn measure_records(records: &Records) -> Result<()> {
    let load = Load {
        publish: Publish::Stream,
        window: records.window,
        ..Load::one_channel(0, 0.0, records.seconds)
    };
    scenario::records::measure(&records.common, &load)
}

fn measure_slow(slow: &Slow) -> Result<()> {
    let who = scenario::slow::Slow {
        stalled: slow.stalled.min(slow.subscribers),
        bytes_per_second: slow.slow_bytes,
        receive_bytes: slow.receive_bytes,
    };
    let load = Load::one_channel(slow.subscribers, slow.rate, slow.seconds);
    each(&slow.common, slow.subscribers, |transport| {
        scenario::slow::measure(&slow.common, transport, &load, who)
    })
}

fn measure_resume(resume: &Resume) -> Result<()> {
    let load = Load {
        channels: resume.channels,
        ..Load::one_channel(resume.subscribers, 0.0, 1.0)
    };
    each(&resume.common, resume.subscribers, |transport| {
        scenario::resume::measure(
            &resume.common,
            transport,
            &load,
            &resume.ready,
            resume.forgets,
        )
    })
}

fn measure_beside(beside: &Beside) -> Result<()> {
    let load = Load::one_channel(beside.subscribers, beside.rate, beside.seconds);
    each(&beside.common, beside.subscribers, |transport| {
        scenario::beside(&beside.common, transport, &load, beside.small_rate)
    })
}

/// Runs a measure for each transport, if there are files enough for it.
fn each(
    common: &Common,
    subscribers: u32,
    mut measure: impl FnMut(Transport) -> Result<()>,
) -> Result<()> {
    enough_files(subscribers)?;
    common
        .transport
        .iter()
        .try_for_each(|&transport| measure(transport))
}

fn enough_files(connections: u32) -> Result<()> {
    let files = process::raise_open_files();
    ensure!(
        u64::from(connections) + OTHER_FILES <= files,
        "{connections} connections need more than the {files} open files that this process may have (ulimit -Hn); start several drivers"
    );
    Ok(())
}
