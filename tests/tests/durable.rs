//! A data directory from outside: the program killed again and again under load, and a disk that fills up beneath a node.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tidegate::{
    model::Epoch,
    source::{
        durable::{DataDir, Disk, Files, SyncPolicy},
        embedded::Engine,
    },
};
use tidegate_tests::{
    binary::{self, Node},
    gateway::{API_KEY, Setup},
    http,
    websocket::{Client, Connect},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

/// Times that the program is killed.
const ROUNDS: u64 = 8;
/// Lines that wait for an answer, at most.
const WINDOW: usize = 150;

const CONFIG: &str = r#"
[access]
anonymous = { channels = ["*"], can = ["subscribe", "publish"] }
[session]
drain = { window = "0s", deadline = "5s" }
[limits]
replay_records = 1000000
[[streams]]
name = "events"
mode = "events"
source = { kind = "embedded", retention = { records = 1000000 } }
[[streams]]
name = "view"
source = { kind = "embedded", retention = { records = 40 } }
"#;

/// A directory that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        let path =
            std::env::temp_dir().join(format!("tidegate-data-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&path));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Numbers that look random, the same in each run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % bound
    }
}

/// Who publishes numbers, in order, each under its own id, and again what was not acknowledged.
#[derive(Default)]
struct Publisher {
    /// Numbers that the log has, and where.
    acknowledged: BTreeMap<u64, String>,
    next: u64,
}

impl Publisher {
    /// Numbers in the order of sending: first those that got no answer.
    fn numbers(&self) -> impl Iterator<Item = u64> + use<> {
        let missing: Vec<u64> = (0..self.next)
            .filter(|number| !self.acknowledged.contains_key(number))
            .collect();
        missing.into_iter().chain(self.next..)
    }

    fn sent(&mut self, number: u64) {
        self.next = self.next.max(number + 1);
    }

    /// The newest position that is known.
    fn newest(&self) -> Option<&String> {
        self.acknowledged
            .values()
            .max_by_key(|position| offset(position))
    }
}

fn offset(position: &str) -> u64 {
    position
        .split_once(':')
        .and_then(|(_, offset)| offset.parse().ok())
        .unwrap_or(0)
}

/// A publish of lines, both ways at once.
struct Lined {
    write: OwnedWriteHalf,
    read: Lines<BufReader<OwnedReadHalf>>,
}

impl Lined {
    async fn open(at: SocketAddr, stream: &str) -> Result<Self> {
        let (read, mut write) = TcpStream::connect(at).await?.into_split();
        let head = format!(
            "POST /v1/publish/{stream} HTTP/1.1\r\nhost: {at}\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        write.write_all(head.as_bytes()).await?;
        Ok(Self {
            write,
            read: BufReader::new(read).lines(),
        })
    }

    async fn send(&mut self, lines: &str) -> io::Result<()> {
        let chunk = format!("{:x}\r\n{lines}\r\n", lines.len());
        self.write.write_all(chunk.as_bytes()).await
    }

    /// The next answer; none at the end of the connection, however it ends.
    async fn answer(&mut self) -> Result<Option<Value>> {
        loop {
            let line = timeout(binary::PATIENCE, self.read.next_line())
                .await
                .context("no answer")?;
            match line {
                Ok(Some(line)) if line.starts_with('{') => {
                    return Ok(Some(serde_json::from_str(&line)?));
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Ok(None),
            }
        }
    }
}

/// Publishes events until so many of this round are acknowledged; then the program is killed, with others on their way.
async fn publish_until_killed(
    node: &mut Node,
    publisher: &mut Publisher,
    kill_after: usize,
) -> Result<()> {
    let mut lined = Lined::open(node.address.parse()?, "events").await?;
    let (mut sent, mut answered) = (Vec::new(), 0);
    let mut numbers = publisher.numbers();
    loop {
        let burst: Vec<u64> = numbers.by_ref().take(30).collect();
        let line = |number: &u64| {
            format!("{{\"channel\":\"c\",\"data\":{number},\"id\":\"e{number}\"}}\n")
        };
        if lined
            .send(&burst.iter().map(line).collect::<String>())
            .await
            .is_err()
        {
            break;
        }
        burst.iter().for_each(|&number| publisher.sent(number));
        sent.extend(burst);
        while sent.len() - answered > WINDOW {
            let Some(answer) = lined.answer().await? else {
                break;
            };
            let position = answer["position"]
                .as_str()
                .with_context(|| format!("refused: {answer}"))?;
            publisher
                .acknowledged
                .insert(sent[answered], position.to_owned());
            answered += 1;
            if answered == kill_after {
                node.child.start_kill()?;
            }
        }
        if answered >= kill_after {
            break;
        }
    }
    // What it said before it was killed counts.
    while let Some(answer) = lined.answer().await? {
        let position = answer["position"]
            .as_str()
            .with_context(|| format!("refused: {answer}"))?;
        publisher
            .acknowledged
            .insert(sent[answered], position.to_owned());
        answered += 1;
    }
    Ok(())
}

/// Publishes rows one by one until nobody answers any more.
async fn publish_rows(at: SocketAddr, publisher: &mut Publisher) -> Result<()> {
    for number in publisher.numbers() {
        publisher.sent(number);
        let body = format!(
            "{{\"channel\":\"c\",\"row\":\"{}\",\"data\":{number},\"id\":\"v{number}\"}}",
            number % 7
        );
        let json = [("content-type", "application/json")];
        let Ok(answer) = http::send(at, "POST", "/v1/publish/view", &json, &body).await else {
            return Ok(());
        };
        ensure!(answer.status == 200, "{answer:?}");
        let position = answer.json()?["position"]
            .as_str()
            .context("a position")?
            .to_owned();
        publisher.acknowledged.insert(number, position);
    }
    Ok(())
}

async fn connect(node: &Node) -> Result<Client> {
    let (mut client, _) = Connect::new().open_at(node.address.parse()?).await?;
    client.find(|message| message["op"] == "hello").await?;
    Ok(client)
}

async fn outcome(node: &Node, channel: &str, from: &str) -> Result<(Client, Value)> {
    let mut client = connect(node).await?;
    client
        .send(&json!({"id": 1, "op": "subscribe", "channel": channel, "from": from}))
        .await?;
    let held = |message: &Value| message["id"] == 1 && message["ok"]["outcome"] == "catching_up";
    let first = client.find(|message| message["id"] == 1).await?;
    let told = if held(&first) {
        client.find(|message| message["op"] == "outcome").await?
    } else {
        first["ok"].clone()
    };
    Ok((client, told["outcome"].clone()))
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_under_load_nothing_acknowledged_is_lost() -> Result<()> {
    let folder = Folder::new("killed")?;
    let config = folder.path("config.toml");
    std::fs::write(&config, CONFIG)?;
    let data = folder.path("data");
    let arguments = ["--config", config.as_str(), "--data-dir", data.as_str()];
    let (mut events, mut rows) = (Publisher::default(), Publisher::default());
    let mut chance = Chance(7);
    for round in 0..ROUNDS {
        let mut node = Node::start(&arguments)
            .await
            .with_context(|| format!("round {round}"))?;
        for (channel, publisher) in [("events/c", &events), ("view/c", &rows)] {
            if let Some(newest) = publisher.newest() {
                let (_, outcome) = outcome(&node, channel, newest).await?;
                ensure!(
                    outcome == "resumed",
                    "round {round}, {channel} from {newest}: {outcome}"
                );
            }
        }
        let at = node.address.parse()?;
        let kill_after = 500 + usize::try_from(chance.below(4000))?;
        let (killed, ended) = tokio::join!(
            publish_until_killed(&mut node, &mut events, kill_after),
            publish_rows(at, &mut rows)
        );
        killed
            .and(ended)
            .with_context(|| format!("round {round}"))?;
        node.ended().await?;
    }
    let node = Node::start(&arguments).await?;
    check_events(&node, &events).await?;
    check_rows(&node, &rows).await
}

/// Every number that was acknowledged is where the log said, once, in one epoch.
async fn check_events(node: &Node, events: &Publisher) -> Result<()> {
    ensure!(
        events.acknowledged.len() > 100,
        "hardly anything was published"
    );
    let mut lined = Lined::open(node.address.parse()?, "events").await?;
    lined.send("{\"channel\":\"c\",\"data\":\"end\"}\n").await?;
    let end = lined.answer().await?.context("an answer")?["position"].clone();
    let (mut client, outcome) = outcome(node, "events/c", "earliest").await?;
    ensure!(outcome == "started", "{outcome}");
    let mut found = BTreeMap::new();
    loop {
        let update = client.find(|message| message["op"] == "update").await?;
        if update["position"] == end {
            break;
        }
        let (number, position) = (
            update["data"].as_u64().context("a number")?,
            update["position"].as_str().context("a position")?,
        );
        let twice = found.insert(number, position.to_owned());
        ensure!(
            twice.is_none(),
            "{number} is at {twice:?} and at {position}"
        );
    }
    for (number, position) in &events.acknowledged {
        ensure!(
            found.get(number) == Some(position),
            "{number} was acknowledged at {position}, and is at {:?}",
            found.get(number)
        );
    }
    let epochs: std::collections::BTreeSet<_> = found
        .values()
        .filter_map(|position| position.split(':').next())
        .collect();
    ensure!(epochs.len() == 1, "{epochs:?}");
    Ok(())
}

/// Every row has the newest value that was acknowledged, or one that was sent behind it; although retention let go of most.
async fn check_rows(node: &Node, rows: &Publisher) -> Result<()> {
    let view = http::get(node.address.parse()?, "/v1/view/view/c")
        .await?
        .json()?;
    let last = rows.newest().map_or(0, |position| offset(position));
    ensure!(
        last > 80,
        "{last} records are too few for retention to let go of some"
    );
    for row in 0..7 {
        let newest = rows
            .acknowledged
            .keys()
            .rev()
            .find(|&number| number % 7 == row)
            .context("a number")?;
        let is = view["rows"][row.to_string()]["data"]
            .as_u64()
            .context("a number")?;
        ensure!(
            is % 7 == row && is >= *newest && is < rows.next,
            "row {row} is {is}, {newest} was acknowledged"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_that_publishing_created_comes_back_and_the_directory_has_one_user() -> Result<()>
{
    let folder = Folder::new("created")?;
    let config = folder.path("config.toml");
    std::fs::write(
        &config,
        "[access]\nanonymous = { channels = [\"*\"], can = [\"subscribe\", \"publish\"] }\n[session]\ndrain = { window = \"0s\", deadline = \"5s\" }\n",
    )?;
    let data = folder.path("data");
    let arguments = ["--config", config.as_str(), "--data-dir", data.as_str()];
    let node = Node::start(&arguments).await?;
    let json = [("content-type", "application/json")];
    let record = r#"{"channel":"c","row":"r","data":{"is":"here"}}"#;
    let published = http::send(
        node.address.parse()?,
        "POST",
        "/v1/publish/boards",
        &json,
        record,
    )
    .await?
    .json()?;
    let second = Node::start(&arguments)
        .await
        .err()
        .context("a second node started")?
        .to_string();
    ensure!(
        second.contains("another process uses the data directory"),
        "{second}"
    );
    node.signal("TERM").await?;
    let (status, said) = node.ended().await?;
    ensure!(status.success(), "{said}");
    ensure!(
        !Path::new(&data).join("running").exists(),
        "it ended in order"
    );

    let node = Node::start(&arguments).await?;
    let view = http::get(node.address.parse()?, "/v1/view/boards/c")
        .await?
        .json()?;
    assert_eq!(
        (&view["position"], &view["rows"]["r"]["data"]),
        (&published["position"], &json!({"is": "here"}))
    );
    Ok(())
}

/// A disk that is full when it is told to be.
#[derive(Debug, Default)]
struct Filling(AtomicBool);

impl Disk for Filling {
    fn write(&self, file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
        if self.0.load(SeqCst) {
            Files.write(file, at, &bytes[..bytes.len() / 3])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        Files.write(file, at, bytes)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_publishers_are_told_to_come_back_and_the_node_goes_on() -> Result<()> {
    let folder = Folder::new("full")?;
    let disk = Arc::<Filling>::default();
    let epoch = || Epoch::new("e1").expect("an epoch");
    let data = DataDir::open(
        &folder.0.join("data"),
        SyncPolicy::Commit,
        disk.clone(),
        epoch,
    )?;
    let engine = Arc::new(Engine::on(data));
    let node = Setup::new().open().view("s").start_on(&engine)?;
    let at = node.gateway.address();
    let bearer = format!("Bearer {API_KEY}");
    let publish = async |kind: &str, body: &str| {
        let headers = [("authorization", bearer.as_str()), ("content-type", kind)];
        http::send(at, "POST", "/v1/publish/s", &headers, body).await
    };
    let record = |row: u32| format!("{{\"channel\":\"c\",\"row\":\"{row}\",\"data\":{row}}}");
    ensure!(
        publish("application/json", &record(1)).await?.status == 200,
        "with room"
    );
    disk.0.store(true, SeqCst);
    let refused = publish("application/json", &record(2)).await?;
    ensure!(
        refused.status == 503
            && refused.json()?["code"] == "not_stored"
            && refused.header("retry-after").is_some(),
        "{refused:?}"
    );
    let lines = publish(
        "application/x-ndjson",
        &format!("{}\n{}\n", record(2), record(3)),
    )
    .await?;
    ensure!(
        lines.body.matches("\"code\":\"not_stored\"").count() == 2,
        "{lines:?}"
    );
    // Over a WebSocket the answer comes when it is known.
    let mut client = Connect::new().bearer(API_KEY).hello(&node).await?;
    let op = json!({"id": 1, "op": "publish", "stream": "s", "record": {"channel": "c", "row": "2", "data": 2}});
    client.send(&op).await?;
    let answer = client.find(|message| message["id"] == 1).await?;
    ensure!(answer["error"]["code"] == "not_stored", "{answer}");
    // What is there is served, and is live: the log answers.
    let view = http::get(at, "/v1/view/s/c").await?.json()?;
    ensure!(
        view["rows"].as_object().map(serde_json::Map::len) == Some(1)
            && view["freshness"]["state"] == "live",
        "{view}"
    );

    disk.0.store(false, SeqCst);
    client.send(&op).await?;
    let answer = client.find(|message| message["id"] == 1).await?;
    ensure!(
        answer["ok"]["position"]
            .as_str()
            .is_some_and(|position| offset(position) == 2),
        "{answer}"
    );
    node.drain().await?;
    engine.close();
    Ok(())
}
