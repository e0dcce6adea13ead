//! The program as a process of its own.
//!
//! Does: has Cargo build it and asks where it is, starts it on free ports, reads what it says, sends it signals, ends it.
//! Owns: the processes that it started; none outlives its [`Node`]. Never knows: what the tests are about.

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Output, Stdio},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// The longest that any process here may take for one thing.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Where the program is, built from the sources beside this crate in the tests' own target directory.
///
/// # Panics
/// When Cargo cannot build it.
#[must_use]
pub fn tidegate() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        build("tidegate", &PACKAGES)
            .unwrap_or_else(|error| panic!("tidegate can't be built: {error:#}"))
    })
}

/// The program with the Cargo feature `seeded-bugs`, beside the one that is as it should be.
///
/// # Errors
/// When Cargo cannot build it.
#[cfg(feature = "services")]
pub async fn tidegate_with_bugs() -> anyhow::Result<PathBuf> {
    let make = || {
        let with = [&PACKAGES[..], &["--features", "tidegate/seeded-bugs"]].concat();
        let built = build("tidegate", &with)?;
        let aside = built.with_file_name("tidegate-with-bugs");
        std::fs::copy(&built, &aside)?;
        // Whoever asks for the program by its path gets it without bugs again.
        build("tidegate", &PACKAGES)?;
        anyhow::Ok(aside)
    };
    tokio::task::spawn_blocking(make).await?
}

/// A program of this workspace as a release has it, for programs that measure: the gateway, or the load driver.
///
/// # Errors
/// When Cargo cannot build it.
pub fn release(program: &str) -> anyhow::Result<PathBuf> {
    let packages = ["-p", "tidegate", "-p", "tidegate-load"];
    let with = ["--release", "--features", "tidegate/kafka"];
    build(program, &[&packages[..], &with].concat())
}

/// Both are named, so that shared dependencies have the features that these tests were built with, and are not built again.
const PACKAGES: [&str; 4] = ["-p", "tidegate", "-p", "tidegate-tests"];

/// Asks Cargo for the path of a program: wherever the target directory is, whatever configures it.
fn build(program: &str, how: &[&str]) -> anyhow::Result<PathBuf> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let mut command = std::process::Command::new(env!("CARGO"));
    // What Cargo tells the tests of their own package, build scripts of others take for a change: they would run again, and all
    // that hangs on them would be built again, each time that somebody else asks.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    let output = command
        .args([
            "build",
            "--quiet",
            "--locked",
            "--bins",
            "--manifest-path",
            manifest,
        ])
        .args(how)
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cargo can't be run")?;
    if !output.status.success() {
        bail!("cargo build ended with {}", output.status);
    }
    let made = |line: &[u8]| -> Option<PathBuf> {
        let message: serde_json::Value = serde_json::from_slice(line).ok()?;
        let is_ours = message["target"]["name"] == program;
        message["executable"]
            .as_str()
            .filter(|_| is_ours)
            .map(PathBuf::from)
    };
    let mut lines = output.stdout.split(|&byte| byte == b'\n');
    lines.find_map(made).context("cargo named no executable")
}

/// A command of the program, with none of the environment's variables of ours.
#[must_use]
pub fn command(arguments: &[&str]) -> Command {
    command_of(tidegate(), arguments)
}

fn command_of(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDEGATE_") {
            command.env_remove(name);
        }
    }
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs a command to its end, with this as its standard input.
///
/// # Errors
/// When it can't be started, or takes longer than [`PATIENCE`].
pub async fn run(mut command: Command, input: &[u8]) -> anyhow::Result<Output> {
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let feed = async {
        // A command may end without reading its input.
        stdin.write_all(input).await.unwrap_or_default();
        drop(stdin);
    };
    let ended = async { tokio::join!(feed, child.wait_with_output()).1 };
    Ok(timeout(PATIENCE, ended).await.context("it did not end")??)
}

/// A running `tidegate serve`.
pub struct Node {
    /// The process.
    pub child: Child,
    /// Where clients connect, as `127.0.0.1:PORT`.
    pub address: String,
    /// Where operators connect.
    pub admin: String,
    said: Lines<BufReader<ChildStdout>>,
}

impl Node {
    /// Starts `tidegate serve` on free ports and waits until it listens.
    ///
    /// # Errors
    /// When it ends instead, with what it complained of.
    pub async fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        Self::start_at("127.0.0.1:0", arguments).await
    }

    /// Starts `tidegate serve` at this address, with a free port for operators, and waits until it listens.
    ///
    /// # Errors
    /// When it ends instead, with what it complained of.
    pub async fn start_at(address: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        Self::start_program(tidegate(), address, arguments).await
    }

    /// The same of a program that was built otherwise.
    ///
    /// # Errors
    /// When it ends instead, with what it complained of.
    pub async fn start_program(
        program: &Path,
        address: &str,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let mut all = vec!["serve", "--listen", address, "--admin", "127.0.0.1:0"];
        all.extend_from_slice(arguments);
        let mut child = command_of(program, &all).spawn()?;
        let stdout = child.stdout.take().context("no standard output")?;
        let mut said = BufReader::new(stdout).lines();
        let first = timeout(PATIENCE, said.next_line())
            .await
            .context("it says nothing")??;
        let addresses = first
            .as_deref()
            .and_then(|line| line.strip_prefix("listening on http://"))
            .and_then(|line| line.split_once("  (operators: http://"))
            .map(|(address, admin)| (address.to_owned(), admin.trim_end_matches(')').to_owned()));
        let Some((address, admin)) = addresses else {
            bail!("it does not listen: {}", complaints(&mut child).await?);
        };
        Ok(Self {
            child,
            address,
            admin,
            said,
        })
    }

    /// Its address as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next line that it says.
    ///
    /// # Errors
    /// When there is none.
    pub async fn line(&mut self) -> anyhow::Result<String> {
        let line = timeout(PATIENCE, self.said.next_line()).await??;
        line.context("it says no more")
    }

    /// Sends it a signal by its name, such as `TERM`.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn signal(&self, name: &str) -> anyhow::Result<()> {
        signal(&self.child, name).await
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it takes longer than [`PATIENCE`].
    pub async fn ended(mut self) -> anyhow::Result<(ExitStatus, String)> {
        let status = timeout(PATIENCE, self.child.wait())
            .await
            .context("it does not end")??;
        Ok((status, complaints(&mut self.child).await?))
    }
}

/// Sends a process a signal by its name.
///
/// # Errors
/// When it is gone.
pub async fn signal(child: &Child, name: &str) -> anyhow::Result<()> {
    let id = child.id().context("it has ended")?;
    let mut kill = Command::new("kill");
    let status = kill
        .arg(format!("-{name}"))
        .arg(id.to_string())
        .status()
        .await?;
    if status.success() {
        Ok(())
    } else {
        bail!("kill ended with {status}")
    }
}

async fn complaints(child: &mut Child) -> anyhow::Result<String> {
    let mut text = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        timeout(PATIENCE, stderr.read_to_string(&mut text)).await??;
    }
    Ok(text)
}
