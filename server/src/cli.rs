//! The command line: arguments → what they ask for → exit code.
//!
//! Does: names the commands and their arguments, and says how each ended: 0 when all that was asked for was done, 1 when
//! not (with the reason on standard error), 2 when the arguments mean nothing. Owns: standard output and standard error;
//! what was asked for goes to the one, whatever else there is to say to the other. Never knows: the environment
//! (`config.rs` reads it), the rooms behind the gateway's door.
//! Keeps: nothing that came over a network reaches a terminal with its control characters.

mod cache;
mod materialize;
mod publish;
mod remote;
mod serve;
mod token;
mod watch;

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::config::{self, Config};

/// A real-time push gateway: live, keyed state from streams to browsers over WebSocket and SSE.
#[derive(Parser, Debug)]
#[command(name = "tidegate", version, about)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Runs a node
    Serve(serve::Serve),
    /// Folds streams of Kafka into the cache, and serves nobody
    Materialize(materialize::Materialize),
    /// Publishes records from standard input, a JSON object a line
    Publish(publish::Publish),
    /// Shows a channel live
    Watch(watch::Watch),
    /// Makes a token for development
    Token(token::Token),
    /// Looks at what Redis holds of a stream, or lets it be folded anew
    Cache {
        #[command(subcommand)]
        command: cache::Cache,
    },
    /// Looks at configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

#[derive(Subcommand, Debug)]
enum ConfigCommand {
    /// Says what is wrong with a file, all at once
    Check {
        /// The file
        file: PathBuf,
    },
    /// Prints the documented defaults
    Default,
}

impl Arguments {
    /// Does what they ask for, to its end.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let result = match self.command {
            Command::Serve(serve) => serve.run(),
            Command::Materialize(materialize) => materialize.run(),
            Command::Publish(publish) => publish.run(),
            Command::Watch(watch) => watch.run(),
            Command::Token(token) => token.run(),
            Command::Cache { command } => command.run(),
            Command::Config {
                command: ConfigCommand::Check { file },
            } => check(&file),
            Command::Config {
                command: ConfigCommand::Default,
            } => {
                say(Config::default_text().trim_end());
                Ok(())
            }
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(message) => {
                complain(&message);
                ExitCode::FAILURE
            }
        }
    }
}

fn check(file: &Path) -> Result<(), String> {
    let config = Config::load(Some(file), config::environment()).map_err(text)?;
    for warning in config.warnings() {
        complain(&format!("warning: {warning}"));
    }
    say(&format!("{} is good", file.display()));
    Ok(())
}

/// Runs a command's future on this thread.
fn block_on(future: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("can't start the runtime: {error}"))?;
    let result = runtime.block_on(future);
    // What still waits, such as a thread that is being joined after a second signal, is not waited for.
    runtime.shutdown_background();
    result
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// A text from outside, for a terminal: one line, no control characters, bounded.
fn plain(text: &str, chars_max: usize) -> String {
    let visible = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut plain: String = text.chars().take(chars_max).map(visible).collect();
    if text.chars().nth(chars_max).is_some() {
        plain.pop();
        plain.push('…');
    }
    plain
}

#[allow(
    clippy::print_stdout,
    reason = "what was asked for goes to standard output"
)]
fn say(text: &str) {
    println!("{text}");
}

#[allow(
    clippy::print_stderr,
    reason = "what went wrong goes to standard error"
)]
fn complain(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn nothing_from_outside_steers_a_terminal() {
        assert_eq!(plain("a\x1b[2Jb\n", 80), "a\u{fffd}[2Jb\u{fffd}");
        assert_eq!(plain("abcdef", 4), "abc…");
        assert_eq!(plain("abcd", 4), "abcd");
    }
}
