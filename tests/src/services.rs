//! Real services that tests start: what Tidegate meets outside, with the bad days that it has there.
//!
//! Does: has `tools/setup.sh` install what is missing, starts a service on free ports of the loopback, waits until it answers a
//! client, freezes, kills and restarts it. Owns: the processes that it started; none outlives the test program, however that
//! ends. Keeps: a service that can't be had fails the test, and says why.

pub mod kafka;
pub mod redis;

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Has a part of `tools/setup.sh` installed; quick where it is there already.
fn set_up(part: &str) -> anyhow::Result<()> {
    let output = Command::new(root().join("tools/setup.sh"))
        .args(["run", part])
        .stdin(Stdio::null())
        .output()
        .context("tools/setup.sh can't be run")?;
    ensure!(
        output.status.success(),
        "tools/setup.sh {part} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// A folder of its own for the files of one service.
pub(crate) fn folder(service: &str) -> anyhow::Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("tidegate-{service}-{}-{count}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Ports of the loopback that nobody listens on.
pub(crate) fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    let mut ports = [0; N];
    ports.copy_from_slice(&some_ports(N)?);
    Ok(ports)
}

/// So many of them.
fn some_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    // All are held until each is known, so that they differ.
    let held = (0..count).map(|_| TcpListener::bind(("127.0.0.1", 0)));
    let held: Vec<_> = held.collect::<Result<_, _>>()?;
    let ports = held.iter().map(|listener| listener.local_addr());
    Ok(ports
        .map(|at| at.map(|at| at.port()))
        .collect::<Result<_, _>>()?)
}

/// What runs a service: it says the service's pid, and ends it when it is told to, or when nobody is left to tell it, even if
/// the test program was killed; then the service's folder goes too.
const KEEPER: &str = r#"
trap '' INT
folder=$1; shift
"$@" </dev/null >>"$folder/log" 2>&1 &
echo $!
if read -r _; then kept=1; fi
kill -9 $! 2>/dev/null
wait
[ "$kept" ] || rm -rf "$folder"
"#;

/// A process of a service.
#[derive(Debug)]
pub(crate) struct Process {
    keeper: Child,
    pid: Pid,
}

impl Process {
    /// Starts a command whose output goes to the file `log` of its folder.
    pub(crate) fn start(
        folder: &Path,
        program: &str,
        arguments: &[String],
    ) -> anyhow::Result<Self> {
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(folder)
            .arg(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = keeper.stdout.take().context("the pipe of a keeper")?;
        BufReader::new(output).read_line(&mut line)?;
        let pid = line.trim().parse().context("the pid of a service")?;
        Ok(Self {
            keeper,
            pid: Pid::from_raw(pid),
        })
    }

    /// Its number.
    pub(crate) const fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a signal; who is gone takes none, and need not.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid, signal).unwrap_or_default();
    }

    /// Kills it, and waits until it is gone. Its files stay.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        let mut keeper = self.keeper.stdin.take().context("the pipe of a keeper")?;
        keeper.write_all(b"keep\n")?;
        self.keeper.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // The keeper ends once the service has.
        drop(self.keeper.wait());
    }
}
