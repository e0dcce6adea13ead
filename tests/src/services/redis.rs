//! Redis: one server, a replica of it, one with TLS and an ACL, one that sentinels watch, or a cluster.

mod cluster;
mod sentinel;

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

pub use self::{
    cluster::Cluster,
    sentinel::{Sentinel, Watched},
};

/// The longest that a server may take for one thing.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Installs Redis once, if it is not there.
fn installed() -> anyhow::Result<()> {
    static INSTALLED: OnceLock<Result<(), String>> = OnceLock::new();
    let done = INSTALLED.get_or_init(|| {
        let there = |name: &str| {
            let mut command = Command::new(name);
            command
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        if there("redis-server") && there("redis-cli") {
            return Ok(());
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tools/setup.sh");
        let output = Command::new(script).arg("redis").output();
        match output {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(format!(
                "redis-server is missing, and tools/setup.sh redis could not install it: {}",
                String::from_utf8_lossy(&output.stderr)
            )),
            Err(error) => Err(format!("tools/setup.sh can't be run: {error}")),
        }
    });
    done.clone().map_err(anyhow::Error::msg)
}

/// A port that was free a moment ago.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A folder of its own, gone with whoever has it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("tidegate-redis-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

/// A running server. It ends with its owner.
pub struct Redis {
    child: Option<Child>,
    port: u16,
    options: Vec<String>,
    /// The administrator's password, where the server speaks TLS and has an ACL.
    guarded: bool,
    folder: Folder,
}

/// What a server held at a time.
pub struct Backup(Vec<u8>);

impl Redis {
    /// Starts a server with options such as `["--maxmemory", "8mb"]`, and waits until it answers.
    ///
    /// # Errors
    /// When Redis is not there and can't be installed, or the server does not come up; with what it said.
    pub async fn start(options: &[&str]) -> anyhow::Result<Self> {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Self::in_folder(Folder::new()?, options, false).await
    }

    /// Starts a replica of a server, and waits until it has all that the server has.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub async fn replica_of(primary: &Self) -> anyhow::Result<Self> {
        let port = primary.port.to_string();
        let replica = Self::start(&["--replicaof", "127.0.0.1", &port]).await?;
        replica
            .until(&["info", "replication"], "master_link_status:up")
            .await?;
        Ok(replica)
    }

    /// Starts a server that speaks only TLS and knows one user beside its administrator: `name on >password rules…`.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub async fn with_tls_and_user(user: &str) -> anyhow::Result<Self> {
        let folder = Folder::new()?;
        certify(&folder.0)?;
        let acl = format!("user default off\nuser admin on >admin ~* &* +@all\nuser {user}\n");
        fs::write(folder.0.join("users.acl"), acl)?;
        let path = |name: &str| folder.0.join(name).display().to_string();
        let options = [
            ("--tls-cert-file", path("s.crt")),
            ("--tls-key-file", path("s.key")),
            ("--tls-ca-cert-file", path("ca.crt")),
            ("--tls-auth-clients", "no".to_owned()),
            ("--aclfile", path("users.acl")),
        ];
        let options = options
            .map(|(name, value)| [name.to_owned(), value])
            .concat();
        Self::in_folder(folder, options, true).await
    }

    async fn in_folder(
        folder: Folder,
        options: Vec<String>,
        guarded: bool,
    ) -> anyhow::Result<Self> {
        installed()?;
        let mut server = Self {
            child: None,
            port: 0,
            options,
            guarded,
            folder,
        };
        // Another process may take the port in between: then another one.
        for _ in 0..3 {
            server.port = free_port()?;
            if server.launch().await? {
                return Ok(server);
            }
            ensure!(
                server.said().contains("Address already in use"),
                "redis-server ended: {}",
                server.said()
            );
        }
        bail!("no port stays free")
    }

    /// Starts the process on its port; false when it ended at once.
    async fn launch(&mut self) -> anyhow::Result<bool> {
        let said = fs::File::create(self.folder.0.join("said"))?;
        let port = self.port.to_string();
        let (plain, tls) = if self.guarded {
            ("0", port.as_str())
        } else {
            (port.as_str(), "0")
        };
        let mut command = Command::new("redis-server");
        // A file of options, if there is one, comes first.
        let (file, options) = match self.options.split_first() {
            Some((first, rest)) if !first.starts_with("--") => (Some(first), rest),
            _ => (None, &self.options[..]),
        };
        command.args(file).args(["--bind", "127.0.0.1"]);
        command.args(["--port", plain, "--tls-port", tls]);
        command.args(["--enable-debug-command", "yes", "--save", ""]);
        command.arg("--dir").arg(&self.folder.0).args(options);
        command
            .stdin(Stdio::null())
            .stderr(said.try_clone()?)
            .stdout(said);
        self.child = Some(command.spawn().context("redis-server can't be started")?);
        let until = Instant::now() + PATIENCE;
        loop {
            if self
                .cli(&["ping"])
                .await
                .is_ok_and(|answer| answer == "PONG")
            {
                return Ok(true);
            }
            let child = self.child.as_mut().context("it was just started")?;
            if child.try_wait()?.is_some() {
                self.child = None;
                return Ok(false);
            }
            ensure!(
                Instant::now() < until,
                "redis-server does not answer: {}",
                self.said()
            );
            sleep(LOOK_EVERY).await;
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.0.join("said")).unwrap_or_default()
    }

    /// Where it is, for those who need no password.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.guarded { "rediss" } else { "redis" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// Whether it runs.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The certificate of the authority that it has its own from, where it speaks TLS.
    ///
    /// # Errors
    /// When it does not.
    pub fn ca(&self) -> anyhow::Result<Vec<u8>> {
        Ok(fs::read(self.folder.0.join("ca.crt"))?)
    }

    /// What `redis-cli` answers to a command, as the administrator.
    ///
    /// # Errors
    /// When it can't be asked, or answers by an error.
    pub async fn cli(&self, command: &[&str]) -> anyhow::Result<String> {
        let mut cli = tokio::process::Command::new("redis-cli");
        cli.args(["-e", "-p", &self.port.to_string()])
            .kill_on_drop(true);
        if self.guarded {
            cli.arg("--cacert").arg(self.folder.0.join("ca.crt"));
            cli.args([
                "--tls",
                "--user",
                "admin",
                "--pass",
                "admin",
                "--no-auth-warning",
            ]);
        }
        let output =
            tokio::time::timeout(PATIENCE, cli.args(command).stdin(Stdio::null()).output());
        let output = output.await.context("redis-cli does not end")??;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        ensure!(
            output.status.success(),
            "{text} {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(text)
    }

    /// Waits until the answer to a command has this in it.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn until(&self, command: &[&str], part: &str) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let answer = self.cli(command).await?;
            if answer.contains(part) {
                return Ok(());
            }
            ensure!(
                Instant::now() < until,
                "{command:?} never says {part}: {answer}"
            );
            sleep(LOOK_EVERY).await;
        }
    }

    /// The same, whatever errors it answers by meanwhile.
    ///
    /// # Errors
    /// When it does not come to that.
    pub(super) async fn until_said(&self, command: &[&str], part: &str) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let answer = self.cli(command).await;
            if answer.as_ref().is_ok_and(|answer| answer.contains(part)) {
                return Ok(());
            }
            ensure!(
                Instant::now() < until,
                "{command:?} never says {part}: {answer:?}"
            );
            sleep(LOOK_EVERY).await;
        }
    }

    /// Ends it at once, as a failing machine would.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("it is not running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Starts it again where it was, after [`Redis::kill`]. It has what it had written to disk.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        ensure!(self.child.is_none(), "it is running");
        ensure!(self.launch().await?, "redis-server ended: {}", self.said());
        Ok(())
    }

    /// Stops it from running, with its connections open, until [`Redis::thaw`].
    ///
    /// # Errors
    /// When it is not running.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it is not running.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let child = self.child.as_ref().context("it is not running")?;
        Ok(kill(Pid::from_raw(i32::try_from(child.id())?), signal)?)
    }

    fn dump(&self) -> PathBuf {
        self.folder.0.join("dump.rdb")
    }

    /// All that it holds now.
    ///
    /// # Errors
    /// When it can't write it.
    pub async fn back_up(&self) -> anyhow::Result<Backup> {
        self.cli(&["save"]).await?;
        let backup = Backup(fs::read(self.dump())?);
        fs::remove_file(self.dump())?;
        Ok(backup)
    }

    /// Ends it, and starts it again with what it held then.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn go_back_to(&mut self, backup: &Backup) -> anyhow::Result<()> {
        self.kill()?;
        fs::write(self.dump(), &backup.0)?;
        self.restart().await
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().unwrap_or_default();
            child.wait().map(drop).unwrap_or_default();
        }
    }
}

/// An authority, and a server's certificate by it.
fn certify(folder: &Path) -> anyhow::Result<()> {
    fs::write(
        folder.join("names"),
        "subjectAltName=IP:127.0.0.1,DNS:localhost\n",
    )?;
    let steps = [
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=test-authority",
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout s.key -out s.csr -subj /CN=localhost",
        "x509 -req -in s.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out s.crt -days 2 -extfile names",
    ];
    for step in steps {
        let mut command = Command::new("openssl");
        let output = command.args(step.split(' ')).current_dir(folder).output();
        let output = output.context("openssl can't be run")?;
        ensure!(
            output.status.success(),
            "openssl: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
