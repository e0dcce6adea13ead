//! The fleet's processes: started from a file, killed, frozen, drained, restarted at the same addresses.
//!
//! Does: that, and keeps what they log. Owns: the processes, and a folder for each. Never knows: clients, the log.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use nix::{
    sys::signal::Signal,
    unistd::{SysconfVar, sysconf},
};
use tokio::time::{Instant, sleep};

use crate::{
    http,
    services::{Process, folder, free_ports},
};

use super::scene::Ms;

/// How long a start or an end may take.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

/// What every node of a fleet is told, but for its addresses and streams.
const COMMON: &str = "[access]\nanonymous = { channels = [\"*\"], can = [\"subscribe\"] }\n\
    [session]\ndrain = { window = \"500ms\", deadline = \"5s\" }\n";

/// A node.
pub(super) struct Node {
    pub(super) address: SocketAddr,
    admin: SocketAddr,
    folder: PathBuf,
    program: PathBuf,
    role: &'static str,
    process: Option<Process>,
}

/// What a process has used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    /// Time of processors, since it began.
    pub(super) busy_ms: Ms,
    /// Memory that it holds.
    pub(super) resident_kib: u64,
}

/// What serves clients.
pub(super) const GATEWAY: &str = "serve";
/// What folds streams into the cache.
pub(super) const MATERIALIZER: &str = "materialize";

impl Node {
    /// Writes the file of a process with these sections and streams; it does not run yet.
    pub(super) fn new(
        program: &Path,
        role: &'static str,
        (sections, streams): (&str, &str),
    ) -> anyhow::Result<Self> {
        let [public, private] = free_ports()?;
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let node = Self {
            address: at(public),
            admin: at(private),
            folder: folder("fleet")?,
            program: program.to_owned(),
            role,
            process: None,
        };
        let (address, admin) = (node.address, node.admin);
        let text = format!(
            "[listen]\naddress = \"{address}\"\nworkers = 2\n[admin]\naddress = \"{admin}\"\n{COMMON}{sections}\n{streams}"
        );
        fs::write(node.folder.join("tidegate.toml"), text)?;
        Ok(node)
    }

    /// Starts it, and waits until it is ready.
    pub(super) async fn start(&mut self) -> anyhow::Result<()> {
        // None of the variables that tests are told by.
        let ours = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
        let mut arguments: Vec<String> = ours
            .filter(|name| name.starts_with("TIDEGATE_"))
            .flat_map(|name| ["-u".to_owned(), name])
            .collect();
        arguments.push("TIDEGATE_LOG=info".to_owned());
        arguments.push(self.program.display().to_string());
        arguments.extend([self.role.to_owned(), "--config".to_owned()]);
        arguments.push(self.folder.join("tidegate.toml").display().to_string());
        self.process = Some(Process::start(&self.folder, "env", &arguments)?);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if http::get(self.admin, "/ready").await.is_ok() {
                return Ok(());
            }
            sleep(LOOK).await;
        }
        bail!("a node is not ready within {PATIENCE:?}: {}", self.log())
    }

    /// Kills it, as a crash would.
    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("the node does not run")?.kill()
    }

    /// Lets it drain, and waits until it has left.
    pub(super) async fn drain(&mut self) -> anyhow::Result<()> {
        http::post(self.admin, "/drain", &[]).await?;
        let deadline = Instant::now() + PATIENCE;
        while http::get(self.admin, "/live").await.is_ok() {
            if Instant::now() > deadline {
                bail!(
                    "a node does not end within {PATIENCE:?} of its drain: {}",
                    self.log()
                );
            }
            sleep(LOOK).await;
        }
        self.kill()
    }

    /// Stops it from doing anything, while its connections stay.
    pub(super) fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub(super) fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// What an operator does to its reading of a stream: `pause`, `resume`, `delay?ms=300`.
    pub(super) async fn hinder(&self, stream: &str, how: &str) -> anyhow::Result<()> {
        let answer = http::post(self.admin, &format!("/streams/{stream}/{how}"), &[]).await?;
        anyhow::ensure!(answer.status == 200, "{how}: {}", answer.body);
        Ok(())
    }

    /// Whether it says that it is ready.
    pub(super) async fn is_ready(&self) -> bool {
        let answer = http::get(self.admin, "/ready").await;
        answer.is_ok_and(|answer| answer.status == 200)
    }

    /// The partitions that a materializer has been given, by stream.
    pub(super) async fn given(&self) -> anyhow::Result<Vec<(String, u64)>> {
        let answer = http::get(self.admin, "/inspect/materializer").await?;
        let answer = answer.json()?;
        let mut all = Vec::new();
        for stream in answer["streams"].as_array().context("streams")? {
            let name = stream["stream"].as_str().context("a stream's name")?;
            let given = stream["given"].as_array().context("what is given")?;
            let numbers = given.iter().filter_map(serde_json::Value::as_u64);
            all.extend(numbers.map(|number| (name.to_owned(), number)));
        }
        Ok(all)
    }

    /// Up to where it has applied each partition of a stream, by its number.
    pub(super) async fn applied(&self, stream: &str) -> anyhow::Result<Vec<u64>> {
        let path = format!("/inspect/partitions?stream={stream}");
        let answer = http::get(self.admin, &path).await?.json()?;
        let partitions = answer["partitions"].as_array().context("partitions")?;
        let applied = |partition: &serde_json::Value| {
            let number = partition["partition"].as_u64()?;
            Some((number, partition["tail"]["applied"].as_u64()?))
        };
        let all: Option<BTreeMap<_, _>> = partitions.iter().map(applied).collect();
        Ok(all.context("what is applied")?.into_values().collect())
    }

    /// What it has used so far.
    pub(super) fn usage(&self) -> anyhow::Result<Usage> {
        let process = self.process.as_ref().context("the node does not run")?;
        let folder = PathBuf::from(format!("/proc/{}", process.pid()));
        let stat = fs::read_to_string(folder.join("stat"))?;
        // Behind the name, which may hold anything, come the state and eleven more, then the ticks of both kinds.
        let (_, behind) = stat.rsplit_once(')').context("a process's name")?;
        let ticks = behind.split_whitespace().skip(11).take(2);
        let ticks: Ms = ticks.filter_map(|word| word.parse::<Ms>().ok()).sum();
        let a_second = sysconf(SysconfVar::CLK_TCK)?.context("ticks of a second")?;
        let status = fs::read_to_string(folder.join("status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let words = resident.and_then(|rest| rest.split_whitespace().next());
        Ok(Usage {
            busy_ms: ticks * 1000 / a_second,
            resident_kib: words.context("a process's memory")?.parse()?,
        })
    }

    /// What it logged.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}
