//! Many channels of Kafka to clients: `kafka_fan_out [CLIENTS] [CHANNELS] [BYTES] [SECONDS] [MESSAGES A SECOND]…`.
//!
//! The scenario: 10,000 channels, a message a second each, 512 bytes, clients each on one channel. Higher rates of the same follow, up to
//! where a core has no more to give. On this program's last core are the broker, a node that takes the publications and appends
//! them, and the driver; on the first one the node that is measured, which reads the topic and has all clients. A delivery lasts from
//! when its publication was due, by the driver's clock, until the driver reads it: publishing, the broker's answer to the
//! producer and the fetch are in it.

use std::{io::Write, process::Stdio};

use anyhow::{Context, ensure};
use tidegate_tests::{
    binary::{Node, release},
    measure::Cores,
    services::kafka::Kafka,
};
use tokio::process::Command;

/// What the driver's channels begin with.
const STREAM: &str = "bench";
const PARTITIONS: i32 = 8;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse());
    let (clients, channels) = (number(15_000)?, number(10_000)?);
    let (bytes, seconds) = (number(512)?, number(20)?);
    let mut rates: Vec<f64> = arguments
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    if rates.is_empty() {
        rates = vec![1.0, 2.1, 3.0, 4.0];
    }
    let (program, driver) = (release("tidegate")?, release("tidegate-load")?);
    let cores = Cores::of_this_process()?;
    cores.take_last()?;
    let kafka = Kafka::start().await?;
    kafka.create_topic(STREAM, PARTITIONS, &[]).await?;
    let folder = std::env::temp_dir().join(format!("tidegate-fan-out-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let file = folder.join("node.toml");
    std::fs::write(&file, configuration(&kafka))?;
    let config = ["--config", file.to_str().context("a path in UTF-8")?];
    let taking = Node::start_program(&program, "127.0.0.1:0", &config).await?;
    let measured = Node::start_program(&program, "127.0.0.1:0", &config).await?;
    let pid = measured.child.id().context("the node is gone")?;
    cores.give_first(pid)?;
    for a_second in rates {
        let rate = a_second * f64::from(u32::try_from(channels)?);
        writeln!(
            std::io::stdout(),
            "{channels} channels, {a_second} × {bytes} B a second each:"
        )?;
        let driven = Command::new(&driver)
            .args(["run", "--label", "kafka", "--publish", "stream"])
            .args(["--address", &measured.address])
            .args(["--publish-address", &taking.address])
            .args(["--server-pid", &pid.to_string()])
            .args(["--subscribers", &clients.to_string()])
            .args(["--channels", &channels.to_string()])
            .args(["--bytes", &bytes.to_string()])
            .args(["--rate", &rate.to_string(), "--window", "65536"])
            .args(["--seconds", &seconds.to_string(), "--warm-up", "3"])
            .stdin(Stdio::null())
            .status()
            .await?;
        ensure!(driven.success(), "the driver ended with {driven}");
    }
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

fn configuration(kafka: &Kafka) -> String {
    format!(
        "[listen]\nworkers = 1\n[access]\nanonymous = {{ channels = [\"{STREAM}/*\"], can = [\"subscribe\", \"publish\"] }}\n\
         [[streams]]\nname = \"{STREAM}\"\nmode = \"events\"\npartitions = {PARTITIONS}\n\
         source = {{ kind = \"kafka\", brokers = [\"{}\"] }}\n",
        kafka.address()
    )
}
