//! A client as the protocol's page describes it, checked against the truth at every message.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    rc::Rc,
    sync::Arc,
};

use serde_json::Value;
use tidegate::{
    model::{Channel, Mode, Moment, Position, Token},
    source::embedded::EmbeddedLog,
};

use super::{
    Dice, Scene, TICK,
    compaction::Cleaned,
    node::{LIVE_FOR, LOOK_EVERY, Node},
    oracle::{Fact, GRAVE, Truth},
    pipe::Pipe,
};

type Rows = BTreeMap<String, String>;

/// What a client holds of one channel.
#[derive(Debug, Default)]
struct Held {
    /// Rows by partition.
    rows: BTreeMap<u32, Rows>,
    token: Token,
    staging: Option<Rows>,
    /// Live until this tick.
    live_until: u64,
    /// Numbers of events that came, and those that need not come.
    events: BTreeSet<u64>,
    excused: BTreeSet<u64>,
    joined: bool,
    /// It began without a token: what came before was never asked for.
    fresh: bool,
    /// The last news of it are that deletes of old are missing.
    incomplete: bool,
}

pub(super) struct Client {
    number: usize,
    mode: Mode,
    max_rate: Option<f64>,
    scene: Scene,
    held: BTreeMap<Channel, Held>,
    connection: Option<Rc<RefCell<Pipe>>>,
    node: usize,
    pub(super) slow: bool,
    unparsed: Vec<u8>,
    requests: BTreeMap<u64, Channel>,
}

impl Client {
    pub(super) fn new(number: usize, channels: Vec<Channel>, scene: &Scene) -> Self {
        Self {
            number,
            mode: scene.mode,
            max_rate: scene.max_rate.filter(|_| number.is_multiple_of(2)),
            scene: scene.clone(),
            held: channels
                .into_iter()
                .map(|channel| (channel, Held::default()))
                .collect(),
            connection: None,
            node: 0,
            slow: false,
            unparsed: Vec::new(),
            requests: BTreeMap::new(),
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    pub(super) fn is_on(&self, node: usize) -> bool {
        self.connection.is_some() && self.node == node
    }

    pub(super) fn tokens(&self) -> String {
        self.held
            .iter()
            .map(|(channel, held)| format!("{channel}@{} ", held.token))
            .collect()
    }

    pub(super) fn cut(&mut self) {
        if let Some(pipe) = self.connection.take() {
            pipe.borrow_mut().cut();
        }
        self.unparsed.clear();
        for held in self.held.values_mut() {
            (held.staging, held.live_until, held.joined) = (None, 0, false);
        }
    }

    /// The path is wide again.
    pub(super) fn widen(&mut self) {
        self.slow = false;
        if let Some(pipe) = &self.connection {
            pipe.borrow_mut().window = 1 << 20;
        }
    }

    /// Connects and subscribes to everything, with the tokens that it has.
    pub(super) fn connect(
        &mut self,
        node: &mut Node,
        slow: bool,
        now: Moment,
        dice: &mut Dice,
    ) -> String {
        let window = if slow { 1 + dice.below(150) } else { 1 << 20 };
        let pipe = Rc::new(RefCell::new(Pipe {
            window,
            piece: if dice.below(4) == 0 {
                1 + dice.below(60)
            } else {
                usize::MAX
            },
            ..Pipe::default()
        }));
        self.requests.clear();
        for (id, (channel, held)) in (1u64..).zip(&mut self.held) {
            held.fresh = held.token.positions().is_empty();
            let mut message =
                format!("{{\"id\":{id},\"op\":\"subscribe\",\"channel\":\"{channel}\"");
            if !held.token.positions().is_empty() {
                write!(message, ",\"from\":\"{}\"", held.token).unwrap_or_default();
            }
            if let Some(rate) = self.max_rate {
                write!(message, ",\"max_rate\":{rate}").unwrap_or_default();
            }
            message.push('}');
            pipe.borrow_mut()
                .say(&masked(message.as_bytes(), dice.next().to_le_bytes()));
            self.requests.insert(id, channel.clone());
        }
        (self.slow, self.node) = (slow, node.number);
        node.adopt(&pipe, now);
        self.connection = Some(pipe);
        format!(
            "client {} connects to node {} (window {window}) with {}",
            self.number,
            node.number,
            self.tokens()
        )
    }

    /// Takes at most `most` bytes from the socket, and what they complete.
    pub(super) fn take(
        &mut self,
        truth: &Truth,
        tick: u64,
        most: usize,
        story: &mut String,
    ) -> Result<(), String> {
        let Some(pipe) = self.connection.clone() else {
            return Ok(());
        };
        let bytes = pipe.borrow_mut().take(most);
        self.unparsed.extend(bytes);
        while let Some((payload, text)) = next_frame(&mut self.unparsed)? {
            if !text {
                continue;
            }
            writeln!(
                story,
                "t={tick}   client {} < {}",
                self.number,
                String::from_utf8_lossy(&payload[..payload.len().min(200)])
            )
            .unwrap_or_default();
            let message: Value =
                serde_json::from_slice(&payload).map_err(|error| format!("not JSON: {error}"))?;
            self.on_message(&message, truth).map_err(|violation| {
                format!("client {}: {violation} at t={tick}: {message}", self.number)
            })?;
        }
        if pipe.borrow().ended && pipe.borrow().to_client.is_empty() {
            self.cut();
        }
        Ok(())
    }

    fn on_message(&mut self, message: &Value, truth: &Truth) -> Result<(), String> {
        if message.get("op").is_none() {
            return self.on_reply(message);
        }
        let op = message["op"].as_str().unwrap_or("");
        if op == "hello" || op == "bye" {
            return Ok(());
        }
        let channel: Channel = message["channel"]
            .as_str()
            .unwrap_or("")
            .parse()
            .map_err(|_| "no channel")?;
        let mode = self.mode;
        let held = self
            .held
            .get_mut(&channel)
            .ok_or("a channel that was not asked for")?;
        if op == "outcome" {
            held.joined = message.get("error").is_none() && message["outcome"] != "catching_up";
            if message.get("error").is_some() {
                self.cut();
            }
            return Ok(());
        }
        if !held.joined && op != "freshness" {
            return Err(format!("{op} before the outcome"));
        }
        match op {
            "snapshot" => held.snapshot(&channel, message, truth),
            "update" if mode == Mode::Events => held.event(&channel, message, truth),
            "update" => held.update(message, truth),
            "gap" => held.gap(&channel, message, truth),
            "heartbeat" => held.heartbeat(&channel, message, truth, mode),
            "freshness" => {
                held.live_until = 0;
                held.incomplete = message["reason"] == "incomplete_history";
                Ok(())
            }
            other => Err(format!("unknown op {other}")),
        }
    }

    fn on_reply(&mut self, message: &Value) -> Result<(), String> {
        let id = message["id"].as_u64().ok_or("a reply without id")?;
        let channel = self.requests.remove(&id).ok_or("a reply to nothing")?;
        if let Some(error) = message.get("error") {
            if error["code"] == "retry_later" || error["code"] == "overloaded" {
                self.cut();
                return Ok(());
            }
            return Err("refused".into());
        }
        if let Some(held) = self.held.get_mut(&channel) {
            held.joined = message["ok"]["outcome"] != "catching_up";
        }
        Ok(())
    }

    /// Nothing is shown as live that lacks a change older than the lease.
    pub(super) fn check_honesty(
        &self,
        truth: &Truth,
        partitions: u32,
        tick: u64,
    ) -> Result<(), String> {
        let lease = ticks(LIVE_FOR);
        for (channel, held) in &self.held {
            if held.live_until < tick {
                continue;
            }
            for home in self.scene.homes(channel, partitions) {
                // Partitions that were added are seen at the next look.
                let old = |fact: &&Fact| fact.tick + lease + 1 + LOOK_EVERY < tick;
                let lacks = truth.facts(truth.current(), home, channel).find(old);
                if let (None, Some(fact)) = (held.token.position(home), lacks) {
                    return Err(format!(
                        "client {}: {channel} is shown live and lacks {} of t={} in partition {home}",
                        self.number, fact.offset, fact.tick
                    ));
                }
            }
            for position in held.token.positions() {
                let life = Truth::life_of(position.epoch.as_str());
                if truth
                    .ended(life)
                    .is_some_and(|ended| ended + lease + 1 < tick)
                {
                    return Err(format!(
                        "client {}: {channel} is shown live in an epoch that is over",
                        self.number
                    ));
                }
                let lacks = truth
                    .facts(life, position.partition, channel)
                    .rev()
                    .take_while(|fact| fact.offset > position.offset.number());
                if let Some(old) = lacks.into_iter().find(|fact| fact.tick + lease + 1 < tick) {
                    return Err(format!(
                        "client {}: {channel} is shown live at {position} and lacks {} of t={}",
                        self.number, old.offset, old.tick
                    ));
                }
            }
        }
        Ok(())
    }

    /// When all is calm everything is there, and live.
    pub(super) fn at_rest(
        &self,
        truth: &Truth,
        logs: &[(Arc<EmbeddedLog>, Cleaned)],
        tick: u64,
    ) -> Result<(), String> {
        for (channel, held) in &self.held {
            let fail = |what: &str| {
                Err(format!(
                    "at rest, client {}: {channel} {what}: {} live until {}",
                    self.number, held.token, held.live_until
                ))
            };
            if held.live_until < tick {
                if held.incomplete && held.is_of_incomplete_fold() {
                    continue;
                }
                return fail("is not live");
            }
            let homes = self.scene.homes(channel, self.scene.most());
            let named = held.token.positions().iter();
            if !named.map(|position| position.partition).eq(homes) {
                return fail("is live without all of its partitions");
            }
            if self.mode == Mode::View && held.view() != truth.view(channel) {
                return fail("is not the view of all its partitions");
            }
            for position in held.token.positions() {
                if is_incomplete(position) {
                    continue;
                }
                let life = Truth::life_of(position.epoch.as_str());
                if life != truth.current() {
                    return fail("is in an epoch that is over");
                }
                let head = logs[position.partition as usize].0.extent().0.number();
                if self.mode == Mode::Events {
                    let missing = truth.facts(life, position.partition, channel).find(|fact| {
                        !held.events.contains(&fact.number) && !held.excused.contains(&fact.number)
                    });
                    if let Some(missing) = missing {
                        return fail(&format!("lost event {} in silence", missing.number));
                    }
                } else if held
                    .rows
                    .get(&position.partition)
                    .cloned()
                    .unwrap_or_default()
                    != truth.fold(life, position.partition, channel, head)
                {
                    return fail("is not the view of the log");
                }
            }
        }
        Ok(())
    }

    /// Channels of which it knows that deletes of old are missing.
    pub(super) fn incomplete(&self) -> u64 {
        let held = self.held.values();
        held.filter(|held| held.incomplete && held.is_of_incomplete_fold())
            .count() as u64
    }
}

impl Held {
    /// Of each row what the newest partition says of it that has said anything: the rule of the protocol's page.
    fn view(&self) -> Rows {
        let mut view = Rows::new();
        for rows in self.rows.values() {
            view.extend(rows.iter().map(|(row, data)| (row.clone(), data.clone())));
        }
        view.retain(|_, data| data != GRAVE);
        view
    }

    fn is_of_incomplete_fold(&self) -> bool {
        let mut positions = self.token.positions().iter();
        positions.any(is_incomplete)
    }

    fn advance(&mut self, position: Position) -> Result<(), String> {
        if let Some(old) = self.token.position(position.partition) {
            let (before, after) = (
                Truth::life_of(old.epoch.as_str()),
                Truth::life_of(position.epoch.as_str()),
            );
            if after < before || after == before && position.offset <= old.offset {
                return Err(format!("goes back from {old} to {position}"));
            }
            if after != before {
                return Err(format!(
                    "another epoch without a snapshot or gap: {old} to {position}"
                ));
            }
        }
        self.token.advance(position);
        Ok(())
    }

    fn snapshot(
        &mut self,
        channel: &Channel,
        message: &Value,
        truth: &Truth,
    ) -> Result<(), String> {
        let part = message["part"].as_u64().ok_or("a part without number")?;
        if part == 0 {
            self.staging = Some(Rows::new());
        }
        let staging = self
            .staging
            .as_mut()
            .ok_or("a later part without the first")?;
        let rows = message["rows"].as_object().ok_or("no rows")?;
        staging.extend(rows.iter().map(|(row, cell)| {
            let deleted = cell["deleted"] == true;
            let data = cell["data"].to_string();
            (row.clone(), if deleted { GRAVE.into() } else { data })
        }));
        if message.get("more").is_some() {
            return Ok(());
        }
        let at: Position = text(message, "position")
            .parse()
            .map_err(|_| "no position")?;
        if let Some(old) = self.token.position(at.partition) {
            let (before, after) = (
                Truth::life_of(old.epoch.as_str()),
                Truth::life_of(at.epoch.as_str()),
            );
            if after < before || after == before && at.offset < old.offset {
                return Err(format!("a snapshot goes back from {old}"));
            }
        }
        let mut rows = self.staging.take().unwrap_or_default();
        let mut expected = truth.fold(
            Truth::life_of(at.epoch.as_str()),
            at.partition,
            channel,
            at.offset.number(),
        );
        let sent = rows.clone();
        if is_incomplete(&at) {
            rows.retain(|_, data| data != GRAVE);
            expected.retain(|_, data| data != GRAVE);
        }
        if canonical(&rows) != canonical(&expected) {
            return Err(format!(
                "a snapshot is not the view at {at}: {rows:?} for {expected:?}"
            ));
        }
        let shown = if is_incomplete(&at) { sent } else { expected };
        self.rows.insert(at.partition, shown);
        self.token.advance(at);
        Ok(())
    }

    fn update(&mut self, message: &Value, truth: &Truth) -> Result<(), String> {
        if self.staging.is_some() {
            return Err("an update between the parts of a snapshot".into());
        }
        let at: Position = text(message, "position")
            .parse()
            .map_err(|_| "no position")?;
        let rows = self.rows.entry(at.partition).or_default();
        let row = text(message, "row").to_owned();
        match message.get("data") {
            Some(data) => drop(rows.insert(row, data.to_string())),
            None if truth.is_later(at.partition) => drop(rows.insert(row, GRAVE.into())),
            None => drop(rows.remove(&row)),
        }
        self.advance(at)
    }

    fn event(&mut self, channel: &Channel, message: &Value, truth: &Truth) -> Result<(), String> {
        let at: Position = text(message, "position")
            .parse()
            .map_err(|_| "no position")?;
        let number = message["data"]["n"].as_u64().ok_or("no number")?;
        if !self.events.insert(number) {
            return Err(format!("event {number} twice"));
        }
        let asked = truth.is_later(at.partition) && !self.fresh;
        if self.token.position(at.partition).is_none() && !asked {
            // The first of a partition: what came before was never asked for.
            let before = truth.facts(Truth::life_of(at.epoch.as_str()), at.partition, channel);
            self.excused.extend(
                before
                    .filter(|fact| fact.offset < at.offset.number())
                    .map(|fact| fact.number),
            );
        }
        self.advance(at)
    }

    fn gap(&mut self, channel: &Channel, message: &Value, truth: &Truth) -> Result<(), String> {
        let from: Position = text(message, "from").parse().map_err(|_| "no from")?;
        let to: Position = text(message, "to").parse().map_err(|_| "no to")?;
        if let Some(old) = self
            .token
            .position(to.partition)
            .filter(|old| **old != from)
        {
            // A quiet channel may have been served further than its token says: if there was nothing in between.
            let life = Truth::life_of(from.epoch.as_str());
            let between =
                |offset: u64| offset > old.offset.number() && offset <= from.offset.number();
            if old.epoch != from.epoch
                || old.offset > from.offset
                || truth
                    .facts(life, to.partition, channel)
                    .any(|fact| between(fact.offset))
            {
                return Err(format!(
                    "a gap begins at {from}, not at what was sent last, {old}"
                ));
            }
        }
        if self.token.position(to.partition).is_none() {
            // The first of a partition: what came before was never asked for.
            let before = truth.facts(Truth::life_of(from.epoch.as_str()), to.partition, channel);
            self.excused.extend(
                before
                    .filter(|fact| fact.offset <= from.offset.number())
                    .map(|fact| fact.number),
            );
        }
        let (before, life) = (
            Truth::life_of(from.epoch.as_str()),
            Truth::life_of(to.epoch.as_str()),
        );
        if life < before || life == before && to.offset <= from.offset {
            return Err("a gap goes back".into());
        }
        let after = if life == before {
            from.offset.number()
        } else {
            0
        };
        let gone = truth
            .facts(life, to.partition, channel)
            .filter(|fact| fact.offset > after && fact.offset <= to.offset.number());
        let gone: Vec<u64> = gone.map(|fact| fact.number).collect();
        if let Some(dropped) = message.get("dropped").and_then(Value::as_u64)
            && dropped != gone.len() as u64
        {
            return Err(format!("a gap of {} says {dropped}", gone.len()));
        }
        self.excused.extend(gone);
        self.token.advance(to);
        Ok(())
    }

    fn heartbeat(
        &mut self,
        channel: &Channel,
        message: &Value,
        truth: &Truth,
        mode: Mode,
    ) -> Result<(), String> {
        if self.staging.is_some() {
            return Err("a heartbeat between the parts of a snapshot".into());
        }
        let token: Token = text(message, "position")
            .parse()
            .map_err(|_| "no position")?;
        for position in token.positions() {
            let life = Truth::life_of(position.epoch.as_str());
            match self.token.position(position.partition).cloned() {
                Some(old) if Truth::life_of(old.epoch.as_str()) > life => {
                    return Err("a heartbeat of an older epoch".into());
                }
                Some(old) if old.epoch == position.epoch && old.offset > position.offset => {}
                Some(old) if old.epoch != position.epoch => {
                    return Err(format!("a heartbeat changes the epoch from {old}"));
                }
                Some(_) => self.token.advance(position.clone()),
                None if truth.is_later(position.partition) && !self.fresh => {
                    self.token.advance(position.clone());
                }
                None => {
                    // Events from now on: what came before was not asked for.
                    self.excused.extend(
                        truth
                            .facts(life, position.partition, channel)
                            .filter(|fact| fact.offset <= position.offset.number())
                            .map(|fact| fact.number),
                    );
                    self.token.advance(position.clone());
                }
            }
        }
        let (mut whole, mut right) = (Rows::new(), Rows::new());
        for position in self.token.positions() {
            let life = Truth::life_of(position.epoch.as_str());
            let mut expected =
                truth.fold(life, position.partition, channel, position.offset.number());
            let mut shown = self
                .rows
                .get(&position.partition)
                .cloned()
                .unwrap_or_default();
            whole.extend(shown.clone());
            right.extend(expected.clone());
            if is_incomplete(position) {
                shown.retain(|_, data| data != GRAVE);
                expected.retain(|_, data| data != GRAVE);
            }
            if mode == Mode::View && canonical(&shown) != canonical(&expected) {
                return Err(format!(
                    "called live, but not the view at {position}: {shown:?} for {expected:?}"
                ));
            }
        }
        for rows in [&mut whole, &mut right] {
            rows.retain(|_, data| data != GRAVE);
        }
        if mode == Mode::View && canonical(&whole) != canonical(&right) {
            return Err(format!(
                "called live, but not what its partitions come to: {whole:?} for {right:?}"
            ));
        }
        self.incomplete = false;
        let proved_ms = message["proved_at_ms"].as_u64().ok_or("no proof")?;
        let proved = proved_ms / u64::try_from(TICK.as_millis()).unwrap_or(1);
        self.live_until = self.live_until.max(proved + ticks(LIVE_FOR));
        Ok(())
    }
}

fn ticks(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX)
}

fn text<'a>(message: &'a Value, field: &str) -> &'a str {
    message[field].as_str().unwrap_or("")
}

/// Whether it names a fold that lacks something.
fn is_incomplete(position: &Position) -> bool {
    position.epoch.as_str().contains("-i")
}

/// Rows as values, so that the order of keys does not matter.
fn canonical(rows: &Rows) -> BTreeMap<&String, Value> {
    rows.iter()
        .map(|(row, data)| (row, serde_json::from_str(data).unwrap_or(Value::Null)))
        .collect()
}

fn masked(payload: &[u8], random: [u8; 8]) -> Vec<u8> {
    let mask = [random[0], random[1], random[2], random[3]];
    let length = u16::try_from(payload.len()).expect("short");
    let mut frame = vec![0x81];
    if length < 126 {
        frame.push(0x80 | u8::try_from(length).unwrap_or(0));
    } else {
        frame.push(0x80 | 126);
        frame.extend(length.to_be_bytes());
    }
    frame.extend(mask);
    frame.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    frame
}

/// The next whole frame of the server, if there is one: its payload, and whether it is text.
fn next_frame(bytes: &mut Vec<u8>) -> Result<Option<(Vec<u8>, bool)>, String> {
    let Some((&first, &second)) = bytes.first().zip(bytes.get(1)) else {
        return Ok(None);
    };
    if second & 0x80 != 0 || first & 0x70 != 0 || first & 0x80 == 0 {
        return Err(format!("a broken frame: {first:02x} {second:02x}"));
    }
    let (header, length) = match second {
        126 if bytes.len() >= 4 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
        127 if bytes.len() >= 10 => (
            10,
            usize::from_be_bytes(bytes[2..10].try_into().map_err(|_| "eight bytes")?),
        ),
        126 | 127 => return Ok(None),
        short => (2, usize::from(short)),
    };
    if bytes.len() < header + length {
        return Ok(None);
    }
    let payload = bytes[header..header + length].to_vec();
    bytes.drain(..header + length);
    match first & 0x0f {
        1 => Ok(Some((payload, true))),
        8..=10 => Ok(Some((payload, false))),
        other => Err(format!("opcode {other}")),
    }
}
