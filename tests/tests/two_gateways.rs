//! Two gateways over one log, one of them late; clients are cut at any byte and come back anywhere.
//!
//! Does: publishes random records while clients read a random number of bytes, drop the socket and resume with their tokens
//! on either gateway. Owns: a client that reads raw bytes, so that a cut may lie in any frame. Keeps: the log is the oracle,
//! asked at each snapshot and each heartbeat, so that one lost update fails at the next heartbeat already; the seed is in
//! every failure; nothing waits for a span of time, only for the wire.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets something else than it expects ends there"
)]

use std::{
    cell::Cell,
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail, ensure};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tidegate::{
    model::{Channel, Mode, Offset, Placement, Position, Token},
    source::embedded::Engine,
    streams::Stream,
};
use tidegate_tests::{
    gateway::{Node, SOON, Setup},
    simulation::Dice,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::{Notify, watch},
    time::timeout,
};

/// No test takes longer.
const BOUND: Duration = Duration::from_secs(14);
/// How late the second gateway is.
const LATE: Duration = Duration::from_millis(30);
/// Records at least, and at most while too little has happened.
const RECORDS: std::ops::Range<usize> = 600..6000;
const CHANNELS: [&str; 3] = ["s/a", "s/b", "s/c"];
const ROWS: usize = 20;
/// Bytes of the largest rows, which the first channel has: its first snapshots have several parts.
const LARGE: usize = 8000;

type Rows = BTreeMap<String, Value>;

/// What one test is: the gateways, and what its publisher and its clients tell each other.
struct World {
    nodes: [Node; 2],
    stream: Arc<Stream>,
    /// A client has read something: the publisher goes on.
    read: Notify,
    /// How many records there are, and whether there will be more.
    published: watch::Sender<(usize, bool)>,
    tally: Tally,
}

/// What happened, so that a test knows that it has tested something.
#[derive(Debug, Default)]
struct Tally {
    cuts: Cell<usize>,
    cuts_in_a_frame: Cell<usize>,
    resumed: Cell<usize>,
    snapshots: Cell<usize>,
    parts: Cell<usize>,
    catching_up: Cell<usize>,
    retry_later: Cell<usize>,
    updates: Cell<usize>,
    heartbeats: Cell<usize>,
}

impl Tally {
    fn is_enough(&self) -> bool {
        self.cuts_in_a_frame.get() >= 150 && self.resumed.get() >= 50 && self.catching_up.get() >= 3
    }
}

fn count(cell: &Cell<usize>) {
    cell.set(cell.get() + 1);
}

impl World {
    fn start(lines: &str) -> anyhow::Result<Self> {
        let setup = Setup::new()
            .open()
            .session("heartbeat = \"100ms\"")
            .limits("resume_hold = \"20ms\"\nrecord_bytes = \"16KiB\"")
            .stream("s", &format!("partitions = 2\n{lines}"));
        let engine = Arc::<Engine>::default();
        let nodes = [setup.start_on(&engine)?, setup.start_on(&engine)?];
        nodes[1].hinder("s", false, LATE)?;
        for (channel, bytes) in CHANNELS.into_iter().zip([LARGE, 0, 0]) {
            let data = json!({"pad": "x".repeat(bytes)}).to_string();
            let rows = (0..ROWS).map(|row| (format!("row-{row}"), data.clone()));
            nodes[0].publish_all(channel, rows)?;
        }
        Ok(Self {
            stream: nodes[0].stream("s")?,
            nodes,
            read: Notify::new(),
            published: watch::Sender::new((0, false)),
            tally: Tally::default(),
        })
    }

    /// Writes a record for each thing that a client reads, until all that shall happen has happened often enough.
    async fn publish(&self, mut dice: Dice) -> anyhow::Result<()> {
        let mut n = 0;
        while n < RECORDS.start || !self.tally.is_enough() {
            ensure!(n < RECORDS.end, "too little happens");
            self.read.notified().await;
            let channel = CHANNELS[dice.below(CHANNELS.len())];
            // Some rows are written once: nothing makes good for losing one.
            let once = dice.percent(20);
            let row = match once {
                true => format!("once-{n}"),
                false => format!("row-{}", dice.below(ROWS)),
            };
            let large = channel == CHANNELS[0] && !once;
            let largest = if large { LARGE } else { 60 };
            let data = json!({"n": n, "pad": "x".repeat(dice.below(largest))}).to_string();
            let delete = self.stream.mode == Mode::View && !once && dice.percent(20);
            let data = if delete { "null" } else { &data };
            self.nodes[dice.below(2)].publish(channel, &row, data)?;
            n += 1;
            self.published.send_replace((n, false));
        }
        self.published.send_replace((n, true));
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.published.borrow().1
    }

    /// The channel's records in one partition, in order: offset, row, data.
    fn records(&self, channel: &str, partition: u32) -> Vec<(Offset, String, Option<Value>)> {
        let name = channel.split_once('/').unwrap().1;
        let log = &self.stream.partitions[partition as usize].log;
        let log = log.embedded().unwrap();
        let records = log.read(None, usize::MAX).unwrap().records.into_iter();
        let read = records.filter_map(|record| {
            let [of, row]: [String; 2] = serde_json::from_slice(&record.key).unwrap();
            let value = record.value.map(|v| serde_json::from_slice(&v).unwrap());
            (of == name).then_some((record.offset, row, value))
        });
        read.collect()
    }

    /// The channel's rows in one partition, after all records up to `upto`.
    fn fold(&self, channel: &str, partition: u32, upto: Offset) -> Rows {
        let mut rows = Rows::new();
        for (offset, row, value) in self.records(channel, partition) {
            if offset > upto {
                break;
            }
            match value {
                Some(value) => rows.insert(row, value),
                None => rows.remove(&row),
            };
        }
        rows
    }

    /// Whether a token is as far as the log, in each partition where the channel may be.
    fn is_whole(&self, channel: &str, token: &Token) -> bool {
        let channel: Channel = channel.parse().unwrap();
        self.stream
            .partitions_of(&channel)
            .into_iter()
            .all(|partition| {
                let head = self.stream.partitions[partition as usize].log.embedded();
                let head = head.unwrap().extent().0;
                let position = token.position(partition);
                position.is_some_and(|position| position.offset >= head)
            })
    }
}

/// What a client holds of one channel.
#[derive(Default)]
struct Held {
    rows: BTreeMap<u32, Rows>,
    events: BTreeMap<u32, Vec<(Offset, Value)>>,
    token: Token,
    /// Parts of a snapshot that is not whole yet.
    staged: Option<(u64, Rows)>,
    /// Whether a heartbeat of this connection has proved that nothing is missing any more.
    proved: bool,
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Cut,
    RetryLater,
    Proved,
}

struct Client<'a> {
    world: &'a World,
    dice: Dice,
    held: BTreeMap<&'static str, Held>,
    max_rate: Option<f64>,
    /// Reads only when there is something new, through a small receive buffer.
    slow: bool,
}

impl<'a> Client<'a> {
    fn new(world: &'a World, seed: u64, max_rate: Option<f64>, slow: bool) -> Self {
        Self {
            world,
            dice: Dice::new(seed),
            held: CHANNELS.map(|name| (name, Held::default())).into(),
            max_rate,
            slow,
        }
    }

    /// Is cut as long as there are news, then reads until nothing is missing.
    async fn live(&mut self) -> anyhow::Result<()> {
        loop {
            let address = self.world.nodes[self.dice.below(2)].gateway.address();
            // Most cuts are early, some are late: each power of two is as likely.
            let magnitude = self.dice.below(18);
            let budget = 1 + self.dice.below(1 << magnitude);
            for held in self.held.values_mut() {
                (held.staged, held.proved) = (None, false);
            }
            match self.connection(address, budget).await? {
                End::Cut => count(&self.world.tally.cuts),
                End::RetryLater => count(&self.world.tally.retry_later),
                End::Proved => break,
            }
        }
        for (channel, held) in &self.held {
            self.ends_as_the_log(channel, held)?;
        }
        Ok(())
    }

    /// One connection, from the handshake to wherever it ends: behind `budget` bytes, while records are still published.
    async fn connection(&mut self, address: SocketAddr, budget: usize) -> anyhow::Result<End> {
        let mut socket = self.connect(address).await?;
        let (mut bytes, mut heard) = (Vec::new(), 0);
        let mut greeted = false;
        let mut buffer = [0; 4096];
        loop {
            if heard >= budget && !self.world.is_over() {
                if !bytes.is_empty() {
                    count(&self.world.tally.cuts_in_a_frame);
                }
                return Ok(End::Cut);
            }
            if self.slow {
                self.await_news().await?;
            }
            let room = match self.world.is_over() {
                false => buffer.len().min(budget - heard),
                true => buffer.len(),
            };
            let read = timeout(SOON, socket.read(&mut buffer[..room])).await;
            let read = read.context("nothing comes")??;
            ensure!(read > 0, "the gateway closed the connection");
            heard += read;
            bytes.extend_from_slice(&buffer[..read]);
            self.world.read.notify_one();
            if !greeted {
                let Some(end) = bytes.windows(4).position(|at| at == b"\r\n\r\n") else {
                    continue;
                };
                ensure!(bytes.starts_with(b"HTTP/1.1 101 "), "the handshake");
                bytes.drain(..end + 4);
                greeted = true;
            }
            while let Some(message) = take_frame(&mut bytes)? {
                if let Some(end) = self.hear(&message).context(message.to_string())? {
                    return Ok(end);
                }
            }
        }
    }

    async fn await_news(&self) -> anyhow::Result<()> {
        let mut published = self.world.published.subscribe();
        let until = published.borrow().0 + 3;
        let news = published.wait_for(|(n, over)| *over || *n >= until);
        timeout(SOON, news).await.context("no news")??;
        Ok(())
    }

    /// Sends the handshake and all requests at once.
    async fn connect(&self, address: SocketAddr) -> anyhow::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if self.slow {
            socket.set_recv_buffer_size(2048)?;
        }
        let mut socket = timeout(SOON, socket.connect(address)).await??;
        let mut requests = Vec::new();
        for (id, (channel, held)) in self.held.iter().enumerate() {
            let mut request = json!({"id": id, "op": "subscribe", "channel": channel});
            if !held.token.positions().is_empty() {
                request["from"] = held.token.to_string().into();
            } else if self.world.stream.mode == Mode::Events {
                request["from"] = "earliest".into();
            }
            if let Some(rate) = self.max_rate {
                request["max_rate"] = rate.into();
            }
            requests.push(request);
        }
        let head = "GET /v1/ws HTTP/1.1\r\nhost: gateway.test\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
                    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let text = Value::from(requests).to_string();
        let mut out = head.as_bytes().to_vec();
        // A text message, masked with zeros.
        out.extend([0x81, 0x80 | 126]);
        out.extend(u16::try_from(text.len())?.to_be_bytes());
        out.extend([0; 4]);
        out.extend(text.as_bytes());
        timeout(SOON, socket.write_all(&out)).await??;
        Ok(socket)
    }

    fn hear(&mut self, message: &Value) -> anyhow::Result<Option<End>> {
        if let Some(error) = message.get("error") {
            ensure!(error["code"] == "retry_later", "refused");
            return Ok(Some(End::RetryLater));
        }
        let tally = &self.world.tally;
        match message["op"].as_str() {
            None => self.outcome(message["ok"]["outcome"].as_str()),
            Some("outcome") => self.outcome(message["outcome"].as_str()),
            Some("hello" | "freshness") => Ok(None),
            Some("snapshot") => self.snapshot(message).map(|()| None),
            Some("update") => {
                count(&tally.updates);
                self.update(message).map(|()| None)
            }
            Some("heartbeat") => {
                count(&tally.heartbeats);
                self.heartbeat(message)
            }
            // A gap, too: the outbox and the log have room for all there is.
            Some(_) => bail!("unexpected"),
        }
    }

    fn outcome(&self, outcome: Option<&str>) -> anyhow::Result<Option<End>> {
        let tally = &self.world.tally;
        let mode = self.world.stream.mode;
        match (outcome, mode) {
            (Some("resumed"), _) => count(&tally.resumed),
            (Some("catching_up"), _) => count(&tally.catching_up),
            (Some("snapshot"), Mode::View) | (Some("started"), Mode::Events) => {}
            _ => bail!("no such outcome"),
        }
        Ok(None)
    }

    fn held(&mut self, message: &Value) -> anyhow::Result<&mut Held> {
        let channel = message["channel"].as_str().context("a channel")?;
        self.held.get_mut(channel).context("another channel")
    }

    fn snapshot(&mut self, message: &Value) -> anyhow::Result<()> {
        let world = self.world;
        ensure!(world.stream.mode == Mode::View, "a snapshot of events");
        count(&world.tally.parts);
        let held = self.held(message)?;
        let part = message["part"].as_u64().context("a part")?;
        let (next, mut rows) = match (part, held.staged.take()) {
            (0, _) => (0, Rows::new()),
            (_, staged) => staged.context("no part 0")?,
        };
        ensure!(part == next, "part {part} instead of {next}");
        for (row, value) in message["rows"].as_object().context("rows")? {
            let twice = rows.insert(row.clone(), value["data"].clone());
            ensure!(twice.is_none(), "{row} comes twice");
        }
        if message["more"] == true {
            held.staged = Some((part + 1, rows));
            return Ok(());
        }
        count(&world.tally.snapshots);
        let position = position(message)?;
        let channel = message["channel"].as_str().unwrap();
        let folded = world.fold(channel, position.partition, position.offset);
        ensure!(rows == folded, "not the log's fold: {folded:?}");
        held.rows.insert(position.partition, rows);
        held.token.advance(position);
        Ok(())
    }

    fn update(&mut self, message: &Value) -> anyhow::Result<()> {
        let mode = self.world.stream.mode;
        let held = self.held(message)?;
        let position = position(message)?;
        let (partition, offset) = (position.partition, position.offset);
        let before = held.token.position(partition);
        ensure!(
            before.is_none_or(|before| before.offset < offset),
            "back from {before:?}"
        );
        held.token.advance(position);
        if mode == Mode::Events {
            let events = held.events.entry(partition).or_default();
            events.push((offset, message["data"].clone()));
            return Ok(());
        }
        ensure!(held.staged.is_none(), "in the middle of a snapshot");
        let row = message["row"].as_str().context("a row")?.to_owned();
        let rows = held.rows.entry(partition).or_default();
        if message["deleted"] == true {
            rows.remove(&row);
        } else {
            rows.insert(row, message["data"].clone());
        }
        Ok(())
    }

    /// What a heartbeat says to be complete is.
    fn heartbeat(&mut self, message: &Value) -> anyhow::Result<Option<End>> {
        let world = self.world;
        let channel = message["channel"].as_str().context("a channel")?;
        let held = self.held(message)?;
        ensure!(held.staged.is_none(), "in the middle of a snapshot");
        let token: Token = message["position"].as_str().context("a token")?.parse()?;
        for position in token.positions() {
            let before = held.token.position(position.partition);
            ensure!(
                before.is_none_or(|before| before.offset <= position.offset),
                "back from {before:?}"
            );
            held.token.advance(position.clone());
            agrees(world, channel, held, position)?;
        }
        let proof = message["proved_at_ms"].is_u64();
        held.proved = proof && world.is_over() && world.is_whole(channel, &token);
        let all = self.held.values().all(|held| held.proved);
        Ok(all.then_some(End::Proved))
    }

    /// What this client holds is what the log says at its end.
    fn ends_as_the_log(&self, channel: &str, held: &Held) -> anyhow::Result<()> {
        let name: Channel = channel.parse()?;
        for partition in self.world.stream.partitions_of(&name) {
            let (view, head) = self.world.stream.partitions[partition as usize]
                .log
                .embedded()
                .unwrap()
                .view(channel);
            let position = held.token.position(partition).context("no position")?;
            ensure!(position.offset == head, "{channel}: {position}, not {head}");
            agrees(self.world, channel, held, position)?;
            if self.world.stream.mode == Mode::View {
                let rows = view.rows.iter().map(|(id, row)| {
                    let data = serde_json::from_slice(&row.data).unwrap();
                    (id.as_str().to_owned(), data)
                });
                let rows: Rows = rows.collect();
                let ours = held.rows.get(&partition).cloned().unwrap_or_default();
                ensure!(rows == ours, "{channel}: {ours:?} instead of {rows:?}");
            }
        }
        Ok(())
    }
}

/// That what is held in one partition is what the log says there up to this position.
fn agrees(world: &World, channel: &str, held: &Held, at: &Position) -> anyhow::Result<()> {
    if world.stream.mode == Mode::View {
        let rows = held.rows.get(&at.partition).cloned().unwrap_or_default();
        let folded = world.fold(channel, at.partition, at.offset);
        ensure!(rows == folded, "{at}: {rows:?} instead of {folded:?}");
        return Ok(());
    }
    let mut logged = world.records(channel, at.partition);
    logged.retain(|(offset, ..)| *offset <= at.offset);
    let logged = logged
        .into_iter()
        .filter_map(|(offset, _, data)| Some((offset, data?)));
    let logged: Vec<_> = logged.collect();
    let events = held.events.get(&at.partition).cloned().unwrap_or_default();
    ensure!(events == logged, "{at}: {events:?} instead of {logged:?}");
    Ok(())
}

fn position(message: &Value) -> anyhow::Result<Position> {
    let text = message["position"].as_str().context("a position")?;
    Ok(text.parse()?)
}

/// The next whole frame of a server (RFC 6455, section 5.2), which must be a text message.
fn take_frame(bytes: &mut Vec<u8>) -> anyhow::Result<Option<Value>> {
    let (head, len) = match *bytes.as_slice() {
        [_, 127, a, b, c, d, e, f, g, h, ..] => {
            let len = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
            (10, usize::try_from(len)?)
        }
        [_, 126, a, b, ..] => (4, usize::from(u16::from_be_bytes([a, b]))),
        [_, len @ 0..=125, ..] => (2, usize::from(len)),
        [_, 128..=255, ..] => bail!("a masked frame of a server"),
        _ => return Ok(None),
    };
    if bytes.len() < head + len {
        return Ok(None);
    }
    let frame: Vec<u8> = bytes.drain(..head + len).collect();
    let text = String::from_utf8_lossy(&frame[head..]);
    ensure!(frame[0] == 0x81, "frame {:#x}: {text}", frame[0]);
    Ok(Some(serde_json::from_str(&text)?))
}

/// A publisher and five clients, until all of them are where the log is.
async fn cut_everywhere(world: &World, seed: u64, rates: [Option<f64>; 5]) -> anyhow::Result<()> {
    let mut clients: Vec<Client<'_>> = (1u64..)
        .zip(rates)
        .map(|(n, rate)| Client::new(world, seed ^ (n << 32), rate, n == 5))
        .collect();
    let clients = try_join_all(clients.iter_mut().map(Client::live));
    let all = async { tokio::try_join!(world.publish(Dice::new(seed)), clients) };
    timeout(BOUND, all).await.context("not done in time")??;
    Ok(())
}

async fn run(lines: &str, placement: Placement, rates: [Option<f64>; 5]) -> anyhow::Result<()> {
    // Another one each time, or `TIDEGATE_SEED`: what is drawn is the seed's, how the threads run is not.
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let mut wanted = tidegate::config::environment().filter(|(name, _)| name == "TIDEGATE_SEED");
    let seed = match wanted.next() {
        Some((_, seed)) => seed.parse()?,
        None => since.as_secs(),
    };
    let world = World::start(lines)?;
    assert_eq!(world.stream.placement, placement);
    let done = cut_everywhere(&world, seed, rates).await;
    let story = format!("TIDEGATE_SEED={seed}: {:?}", world.tally);
    done.with_context(|| story.clone())?;
    let tally = &world.tally;
    if world.stream.mode == Mode::View {
        assert!(tally.parts.get() > tally.snapshots.get(), "{story}");
    }
    for node in world.nodes {
        node.drain().await?;
    }
    Ok(())
}

const RATES: [Option<f64>; 5] = [None, Some(5.0), Some(20.0), None, None];

#[tokio::test]
async fn a_spread_view_cut_anywhere_and_resumed_on_either_gateway_is_the_log() -> anyhow::Result<()>
{
    // A short tail: some tokens are too old, and begin with a snapshot again.
    let lines = "mode = \"view\"\nplacement = \"spread\"\ntail = { bytes = \"128KiB\" }";
    run(lines, Placement::Spread, RATES).await
}

#[tokio::test]
async fn a_view_cut_anywhere_and_resumed_on_either_gateway_is_the_log() -> anyhow::Result<()> {
    run("mode = \"view\"", Placement::ByChannel, RATES).await
}

#[tokio::test]
async fn events_cut_anywhere_and_resumed_on_either_gateway_come_exactly_once() -> anyhow::Result<()>
{
    run("mode = \"events\"", Placement::ByChannel, [None; 5]).await
}
