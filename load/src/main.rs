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
    options::{Command, Common, Load, Options},
    scenario::Part,
    wire::{Publish, Transport},
};

/// Files that the driver needs beside its subscribers: publishers, epoll, timer, standard streams, and some to spare.
const OTHER_FILES: u64 = 32;

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
        Command::Run { common, load } => each(&common, load.subscribers, |transport| {
            scenario::publish(
                &common,
                transport,
                &[Part {
                    scenario: "run",
                    load: load.clone(),
                }],
            )
        }),
        Command::Idle {
            common,
            subscribers,
            channels,
            each: channels_each,
            churn,
            seconds,
        } => {
            let load = Load {
                channels,
                ..Load::one_channel(subscribers, 0.0, seconds)
            };
            each(&common, subscribers, |transport| {
                scenario::idle::measure(&common, transport, &load, channels_each, churn)
            })
        }
        Command::Sweep {
            common,
            subscribers,
            channels,
            rate,
            window,
            p99_ms,
            seconds,
        } => {
            let load = Load {
                channels,
                publish: Publish::Stream,
                window,
                ..Load::one_channel(subscribers, rate, seconds)
            };
            each(&common, subscribers, |transport| {
                scenario::sweep::measure(&common, transport, &load, p99_ms)
            })
        }
        Command::Publish {
            common,
            window,
            seconds,
        } => {
            let load = Load {
                publish: Publish::Stream,
                window,
                ..Load::one_channel(0, 0.0, seconds)
            };
            scenario::records::measure(&common, &load)
        }
        Command::Slow {
            common,
            subscribers,
            stalled,
            rate,
            slow_bytes,
            receive_bytes,
            seconds,
        } => {
            let slow = scenario::slow::Slow {
                stalled: stalled.min(subscribers),
                bytes_per_second: slow_bytes,
                receive_bytes,
            };
            let load = Load::one_channel(subscribers, rate, seconds);
            each(&common, subscribers, |transport| {
                scenario::slow::measure(&common, transport, &load, slow)
            })
        }
        Command::Resume {
            common,
            subscribers,
            channels,
            ready,
            forgets,
        } => {
            let load = Load {
                channels,
                ..Load::one_channel(subscribers, 0.0, 1.0)
            };
            each(&common, subscribers, |transport| {
                scenario::resume::measure(&common, transport, &load, &ready, forgets)
            })
        }
        Command::Fanout {
            common,
            subscribers,
            rate,
            seconds,
            warm_up,
        } => {
            let load = Load {
                warm_up,
                ..Load::one_channel(subscribers, rate, seconds)
            };
            each(&common, subscribers, |transport| {
                scenario::publish(
                    &common,
                    transport,
                    &[Part {
                        scenario: "fanout",
                        load: load.clone(),
                    }],
                )
            })
        }
        Command::Stream {
            common,
            subscribers,
            window,
            lead,
            seconds,
        } => subscribers.into_iter().try_for_each(|count| {
            let load = Load {
                publish: Publish::Stream,
                window,
                lead,
                ..Load::one_channel(count, 0.0, seconds)
            };
            each(&common, count, |transport| {
                scenario::publish(
                    &common,
                    transport,
                    &[Part {
                        scenario: "stream",
                        load: load.clone(),
                    }],
                )
            })
        }),
        Command::Beside {
            common,
            subscribers,
            rate,
            small_rate,
            seconds,
        } => {
            let load = Load::one_channel(subscribers, rate, seconds);
            each(&common, subscribers, |transport| {
                scenario::beside(&common, transport, &load, small_rate)
            })
        }
        Command::Hostile { address, plan } => {
            enough_files(plan.connections)?;
            hostile::attack(address, plan)
        }
        Command::Table { file, against } => table::print(&file, &against),
    }
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
