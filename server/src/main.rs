//! `tidegate`: arguments → configuration → gateway → exit code.

use std::process::ExitCode;

use clap::Parser;
use tidegate::cli::Arguments;

fn main() -> ExitCode {
    Arguments::parse().run()
}
