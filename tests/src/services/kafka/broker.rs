//! One broker: its files and its process.
//!
//! Does: formats and starts it (KRaft, small; each is a controller too), kills it, freezes it. Owns: both. Never knows: topics.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use super::{PASSWORD, STRANGER, USER};
use crate::services::{Process, folder, root};

/// A virtual machine that begins quickly and stays small.
const JAVA: [&str; 5] = [
    "-Xms128m",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
];
/// Any 16 bytes: the cluster's name for itself.
const CLUSTER: &str = "dGlkZWdhdGUtdGVzdHMtMQ";
const LOGGING: &str = "appender.console.type=Console\n\
    appender.console.name=STDOUT\n\
    appender.console.layout.type=PatternLayout\n\
    appender.console.layout.pattern=[%d] %p %m (%c)%n\n\
    rootLogger.level=WARN\n\
    rootLogger.appenderRef.stdout.ref=STDOUT\n";

/// Where a broker listens.
#[derive(Clone, Debug)]
pub(super) struct Ports {
    /// In the clear.
    pub(super) clear: u16,
    /// With TLS and SASL.
    pub(super) secure: u16,
    pub(super) controller: u16,
    /// Doors, and the ports that clients are told instead of them.
    pub(super) doors: Vec<(u16, u16)>,
}

/// A broker.
pub(super) struct Broker {
    pub(super) folder: PathBuf,
    pub(super) ports: Ports,
    process: Option<Process>,
}

impl Broker {
    /// Writes the files of the broker at this place among all; it does not run yet.
    pub(super) fn new(at: usize, all: &[Ports]) -> anyhow::Result<Self> {
        let folder = folder("kafka")?;
        fs::write(folder.join("logging.properties"), LOGGING)?;
        fs::write(
            folder.join("server.properties"),
            properties(&folder, at, all),
        )?;
        certify(&folder)?;
        format(&folder)?;
        Ok(Self {
            folder,
            ports: all[at].clone(),
            process: None,
        })
    }

    pub(super) fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Starts it with the data that it has.
    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        let mut arguments = java(&self.folder);
        arguments.push("kafka.Kafka".into());
        arguments.push(self.folder.join("server.properties").display().to_string());
        self.process = Some(Process::start(&self.folder, "java", &arguments)?);
        Ok(())
    }

    /// Kills it, as a loss of power would. Its data stay.
    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        self.process
            .take()
            .context("the broker does not run")?
            .kill()
    }

    pub(super) fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// What it logged.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

fn java(folder: &Path) -> Vec<String> {
    let jars = root().join("target/services/kafka/jars/*");
    let logging = folder.join("logging.properties");
    let ours = [
        format!("-Dlog4j2.configurationFile={}", logging.display()),
        "-cp".into(),
        jars.display().to_string(),
    ];
    JAVA.map(str::to_owned).into_iter().chain(ours).collect()
}

/// Runs a command to its end.
fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .output()
        .with_context(|| format!("{command:?} can't be run"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {said}");
    Ok(())
}

fn format(folder: &Path) -> anyhow::Result<()> {
    let mut command = Command::new("java");
    command
        .args(java(folder))
        .arg("kafka.tools.StorageTool")
        .args(["format", "-t", CLUSTER, "-c"])
        .arg(folder.join("server.properties"));
    for hash in ["256", "512"] {
        let known = format!("SCRAM-SHA-{hash}=[name={USER},password=\"{PASSWORD}\"]");
        command.args(["--add-scram", &known]);
    }
    run(&mut command)
}

/// An authority, and a certificate of the broker's that it vouches for.
fn certify(folder: &Path) -> anyhow::Result<()> {
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        run(command.args(arguments.split(' ')).current_dir(folder))
    };
    fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1\n")?;
    let new = "-newkey rsa:2048 -nodes";
    openssl(&format!(
        "req -x509 {new} -days 9 -keyout ca.key -out ca.pem -subj /CN=tests"
    ))?;
    openssl(&format!(
        "req -new {new} -keyout key.pem -out request.pem -subj /CN=broker"
    ))?;
    openssl(
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 9 -extfile names -out broker.pem",
    )?;
    let both = [
        fs::read(folder.join("key.pem"))?,
        fs::read(folder.join("broker.pem"))?,
    ];
    Ok(fs::write(folder.join("keystore.pem"), both.concat())?)
}

fn properties(folder: &Path, at: usize, all: &[Ports]) -> String {
    let Ports {
        clear,
        secure,
        controller,
        doors,
    } = &all[at];
    let (mut listeners, mut advertised, mut kinds) = (String::new(), String::new(), String::new());
    for (number, (door, before)) in doors.iter().enumerate() {
        listeners += &format!(",DOOR{number}://127.0.0.1:{door}");
        advertised += &format!(",DOOR{number}://127.0.0.1:{before}");
        kinds += &format!(",DOOR{number}:PLAINTEXT");
    }
    let voters = (1..)
        .zip(all)
        .map(|(id, ports)| format!("{id}@127.0.0.1:{}", ports.controller));
    let voters = voters.collect::<Vec<_>>().join(",");
    let (id, copies, in_sync) = (at + 1, all.len(), all.len().div_ceil(2));
    // Who is silent for so long leads nothing any more.
    let among_others = match copies {
        1 => "",
        _ => "broker.session.timeout.ms=4000\nbroker.heartbeat.interval.ms=500\n",
    };
    let (data, keystore) = (folder.join("data"), folder.join("keystore.pem"));
    let (data, keystore) = (data.display(), keystore.display());
    let module = "org.apache.kafka.common.security";
    format!(
        "process.roles=broker,controller\n\
         node.id={id}\n\
         listeners=PLAINTEXT://127.0.0.1:{clear},SECURE://127.0.0.1:{secure},CONTROLLER://127.0.0.1:{controller}{listeners}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{clear},SECURE://127.0.0.1:{secure}{advertised}\n\
         controller.listener.names=CONTROLLER\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT{kinds}\n\
         controller.quorum.voters={voters}\n\
         min.insync.replicas={in_sync}\n\
         log.dirs={data}\n\
         ssl.keystore.type=PEM\n\
         ssl.keystore.location={keystore}\n\
         sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
         listener.name.secure.plain.sasl.jaas.config={module}.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\" user_{STRANGER}=\"{PASSWORD}\";\n\
         listener.name.secure.scram-sha-256.sasl.jaas.config={module}.scram.ScramLoginModule required;\n\
         listener.name.secure.scram-sha-512.sasl.jaas.config={module}.scram.ScramLoginModule required;\n\
         authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
         super.users=User:ANONYMOUS;User:{USER}\n\
         offsets.topic.replication.factor={copies}\n\
         offsets.topic.num.partitions=1\n\
         transaction.state.log.replication.factor={copies}\n\
         transaction.state.log.min.isr={in_sync}\n\
         transaction.state.log.num.partitions=1\n\
         share.coordinator.state.topic.replication.factor={copies}\n\
         share.coordinator.state.topic.min.isr={in_sync}\n\
         group.initial.rebalance.delay.ms=0\n\
         auto.create.topics.enable=false\n\
         log.cleaner.backoff.ms=200\n\
         log.cleaner.dedupe.buffer.size=8388608\n{among_others}"
    )
}
