//! What programs that measure have in common: cores, CPU time, rates.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context, ensure};
use nix::sys::resource::{UsageWho, getrusage};

/// The cores that this process had when it was asked first.
#[derive(Debug)]
pub struct Cores(Vec<usize>);

impl Cores {
    /// Those of this process.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn of_this_process() -> anyhow::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let mut cores = Vec::new();
        for part in line.context("no list of cores")?.trim().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            cores.extend(first.parse::<usize>()?..=last.parse()?);
        }
        ensure!(!cores.is_empty(), "no core");
        Ok(Self(cores))
    }

    /// From now on this process, and what it starts, runs on the first of them: the one that is measured.
    ///
    /// # Errors
    /// When it may not.
    pub fn take_first(&self) -> anyhow::Result<()> {
        pin(self.0[0], std::process::id())
    }

    /// … or on the last of them, where everybody else is; the same one, where there is only one.
    ///
    /// # Errors
    /// When it may not.
    pub fn take_last(&self) -> anyhow::Result<()> {
        pin(self.0[self.0.len() - 1], std::process::id())
    }

    /// Another process runs on the first of them.
    ///
    /// # Errors
    /// When it may not.
    pub fn give_first(&self, pid: u32) -> anyhow::Result<()> {
        pin(self.0[0], pid)
    }
}

fn pin(core: usize, pid: u32) -> anyhow::Result<()> {
    let output = Command::new("taskset")
        .args(["-a", "-c", "-p", &core.to_string(), &pid.to_string()])
        .output()
        .context("taskset can't be run")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// CPU time of this process so far.
///
/// # Errors
/// When the kernel does not say.
pub fn cpu() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("the CPU time")?;
    let of = |time: nix::sys::time::TimeVal| {
        Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()).cast_unsigned())
    };
    Ok(of(usage.user_time()) + of(usage.system_time()))
}

/// So many in this time are so many a second.
#[must_use]
pub fn rate(count: usize, time: Duration) -> u128 {
    Duration::from_secs(1).as_nanos() * count as u128 / time.as_nanos().max(1)
}
