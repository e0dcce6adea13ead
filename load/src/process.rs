//! What the kernel says about a process.
//!
//! Does: reads CPU time, resident memory, threads and descriptors of the server or the driver; raises the limit of open files. Owns:
//! nothing. Never knows: runs. Keeps: Linux's /proc only.

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit};

/// A process's consumption at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// CPU time, user and system, all threads, in microseconds. The kernel counts in steps of 10 ms.
    pub(crate) cpu_us: u64,
    /// Resident memory, in bytes.
    pub(crate) resident: u64,
}

impl Usage {
    /// Of the process `pid`; `None` is the driver.
    ///
    /// # Errors
    /// When the process does not exist.
    pub(crate) fn of(pid: Option<u32>) -> Result<Self> {
        let name = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
        let read = |file: &str| {
            let path = format!("/proc/{name}/{file}");
            std::fs::read_to_string(&path).with_context(|| format!("no process behind {path}"))
        };
        let ticks = cpu_ticks(&read("stat")?)
            .with_context(|| format!("/proc/{name}/stat is not as expected"))?;
        let resident_kib = number_of("VmRSS", &read("status")?)
            .with_context(|| format!("no VmRSS in /proc/{name}/status"))?;
        Ok(Self {
            cpu_us: ticks * 1_000_000 / rustix::param::clock_ticks_per_second().max(1),
            resident: resident_kib * 1024,
        })
    }
}

/// utime + stime: the 14th and 15th field. The second, the name, may hold anything, so fields count from its end.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn number_of(name: &str, status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// What a process holds at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Holdings {
    /// Resident memory, in bytes.
    pub(crate) resident: u64,
    /// Threads.
    pub(crate) threads: u64,
    /// Open descriptors.
    pub(crate) descriptors: u64,
}

impl Holdings {
    /// Of the process `pid`.
    ///
    /// # Errors
    /// When the process does not exist, or is another user's.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let status =
            std::fs::read_to_string(&path).with_context(|| format!("no process behind {path}"))?;
        let number =
            |name| number_of(name, &status).with_context(|| format!("no {name} in {path}"));
        Ok(Self {
            resident: number("VmRSS")? * 1024,
            threads: number("Threads")?,
            descriptors: descriptors(pid)?,
        })
    }
}

/// Open descriptors of the process `pid`.
///
/// # Errors
/// As [`Holdings::of`].
pub(crate) fn descriptors(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/fd");
    let open = std::fs::read_dir(&path).with_context(|| format!("can't look into {path}"))?;
    Ok(open.count() as u64)
}

/// Raises the limit of open files as far as it goes; returns it.
pub(crate) fn raise_open_files() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_brackets_does_not_shift_the_fields() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 1100 22 0 0 20 0";
        assert_eq!(cpu_ticks(stat), Some(1122));
        assert_eq!(cpu_ticks("7 (x) S 1"), None);
        let status = "Name:\tx\nVmRSS:\t  4321 kB\nThreads:\t3\n";
        assert_eq!(number_of("VmRSS", status), Some(4321));
        assert_eq!(number_of("Threads", status), Some(3));
    }

    #[test]
    fn the_driver_can_measure_itself() {
        assert!(Usage::of(None).unwrap().resident > 0);
        let holdings = Holdings::of(std::process::id()).unwrap();
        assert!(
            holdings.threads > 0 && holdings.descriptors > 2,
            "{holdings:?}"
        );
    }
}
