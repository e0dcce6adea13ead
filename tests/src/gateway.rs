//! A whole gateway in this process, for tests through real sockets.
//!
//! Does: writes a configuration as an operator would, starts a node on free ports, publishes, hinders, waits for conditions,
//! drains. Owns: the node. Never knows: which protocol a test speaks. Keeps: nothing waits for ever; what is waited for is a
//! condition, never a span of time.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use futures_util::FutureExt;
use tidegate::{
    auth::{self, GrantSpec, JwtKey, Permission, TokenSpec},
    config::{Config, Problems},
    gateway::{Drained, Gateway},
    publish::Flow,
    source::{embedded::Engine, hindered::Hindrance},
    streams::Stream,
};
use tokio::time::Instant;

/// How long anything may take that should happen soon.
pub const SOON: Duration = Duration::from_secs(15);
/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(5);
/// An API key that may subscribe to and publish everything, in every [`Setup`].
pub const API_KEY: &str = "a-key-of-the-tests";
/// The id of the key that signs [`jwt`].
const JWT_ID: &str = "tests";
/// Its secret.
const JWT_SECRET: &str = "a secret of the tests, long enough for HS256";

/// A node's configuration in the making: lines of TOML for each section.
#[derive(Clone, Debug)]
pub struct Setup {
    access: String,
    session: String,
    limits: String,
    streams: String,
    listen: String,
    env: Vec<(String, String)>,
}

impl Default for Setup {
    fn default() -> Self {
        let key: String = auth::hash_api_key(API_KEY)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let access = format!(
            "jwt_keys = [{{ id = \"{JWT_ID}\", algorithm = \"HS256\", secret = \"{JWT_SECRET}\" }}]\n\
             api_keys = [{{ id = \"key\", sha256 = \"{key}\", channels = [\"*\"], can = [\"subscribe\", \"publish\"] }}]\n"
        );
        Self {
            access,
            session: "drain = { window = \"0s\", deadline = \"5s\" }\n".into(),
            limits: String::new(),
            streams: String::new(),
            listen: String::new(),
            env: Vec::new(),
        }
    }
}

impl Setup {
    /// Free ports, one worker, an API key and a signing key, no stream, nobody anonymous.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Everybody may subscribe to everything.
    #[must_use]
    pub fn open(self) -> Self {
        self.access("anonymous = { channels = [\"*\"], can = [\"subscribe\"] }")
    }

    /// Adds a line to `[access]`.
    #[must_use]
    pub fn access(mut self, line: &str) -> Self {
        self.access += &format!("{line}\n");
        self
    }

    /// Adds a line to `[session]`.
    #[must_use]
    pub fn session(mut self, line: &str) -> Self {
        self.session += &format!("{line}\n");
        self
    }

    /// Adds a line to `[limits]`.
    #[must_use]
    pub fn limits(mut self, line: &str) -> Self {
        self.limits += &format!("{line}\n");
        self
    }

    /// Adds a line to `[listen]`; `address` and `workers` are there.
    #[must_use]
    pub fn listen(mut self, line: &str) -> Self {
        self.listen += &format!("{line}\n");
        self
    }

    /// Adds a stream with these lines.
    #[must_use]
    pub fn stream(mut self, name: &str, lines: &str) -> Self {
        self.streams += &format!("[[streams]]\nname = \"{name}\"\n{lines}\n");
        self
    }

    /// Adds a view.
    #[must_use]
    pub fn view(self, name: &str) -> Self {
        self.stream(name, "mode = \"view\"")
    }

    /// Adds a stream of events.
    #[must_use]
    pub fn events(self, name: &str) -> Self {
        self.stream(name, "mode = \"events\"")
    }

    /// Lays a variable of the environment over it: `TIDEGATE_…`.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Takes the key of [`jwt`] away.
    #[must_use]
    pub fn without_jwt_keys(mut self) -> Self {
        let stays = |line: &&str| !line.starts_with("jwt_keys");
        let lines = self.access.lines().filter(stays);
        self.access = lines.map(|line| format!("{line}\n")).collect();
        self
    }

    /// The configuration, or what is wrong with it.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn read(&self) -> Result<Config, Problems> {
        Config::from_toml(&self.text(), self.env.iter().cloned())
    }

    fn text(&self) -> String {
        format!(
            "[listen]\naddress = \"127.0.0.1:0\"\nworkers = 1\n{}\n[admin]\naddress = \"127.0.0.1:0\"\n\
             [access]\n{}\n[session]\n{}\n[limits]\n{}\n{}",
            self.listen, self.access, self.session, self.limits, self.streams
        )
    }

    /// The configuration.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn config(&self) -> anyhow::Result<Config> {
        self.read()
            .map_err(|problems| anyhow!("{problems}\n{}", self.text()))
    }

    /// A node that reads what is written here whenever it reloads.
    ///
    /// # Errors
    /// Why it does not start.
    pub fn start_reloadable(written: Arc<Mutex<Self>>) -> anyhow::Result<Node> {
        let now = move || {
            let written = written.lock().unwrap_or_else(PoisonError::into_inner);
            written.read()
        };
        let config = now().map_err(|problems| anyhow!("{problems}"))?;
        let gateway = Gateway::start_reloadable(&config, None, Some(Box::new(now)))?;
        Ok(Node { gateway })
    }

    /// A node with an engine of its own.
    ///
    /// # Errors
    /// Why it does not start.
    pub fn start(&self) -> anyhow::Result<Node> {
        self.start_on(&Arc::default())
    }

    /// A node on an engine that others share.
    ///
    /// # Errors
    /// Why it does not start.
    pub fn start_on(&self, engine: &Arc<Engine>) -> anyhow::Result<Node> {
        let gateway = Gateway::start(&self.config()?, Some(engine.clone()))?;
        Ok(Node { gateway })
    }
}

/// A token that ends in `ttl_s` seconds (or ended so long ago; the server allows some leeway), for these channels.
///
/// # Errors
/// When it can't be made.
pub fn jwt(
    subject: Option<&str>,
    channels: &[&str],
    can: &[Permission],
    ttl_s: i64,
) -> anyhow::Result<String> {
    let key = JwtKey::hs256(JWT_ID, JWT_SECRET.as_bytes())?;
    let grant = GrantSpec {
        channels: channels
            .iter()
            .map(|channel| (*channel).to_owned())
            .collect(),
        can: can.to_vec(),
    };
    let spec = TokenSpec {
        subject: subject.map(str::to_owned),
        grant,
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(auth::issue(
        &key,
        &spec,
        0,
        now.as_secs().saturating_add_signed(ttl_s),
    )?)
}

/// Waits until `is` holds.
///
/// # Errors
/// When it does not within [`SOON`].
pub async fn until(what: &str, mut is: impl FnMut() -> bool) -> anyhow::Result<()> {
    until_told(what, async || is()).await
}

/// Waits until the answer to a question is yes; it is asked again and again.
///
/// # Errors
/// When it is not within [`SOON`].
pub async fn until_told(what: &str, mut is: impl AsyncFnMut() -> bool) -> anyhow::Result<()> {
    found(what, async || Ok(is().await.then_some(()))).await
}

/// Looks until there is something; it is looked for again and again.
///
/// # Errors
/// When there is nothing within [`SOON`], or looking fails.
pub async fn found<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("waited {SOON:?} in vain: {what}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A client lets time pass between what it does: that is how it behaves, and nothing is waited for.
pub async fn pace(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// A running node.
pub struct Node {
    /// It.
    pub gateway: Gateway,
}

impl Node {
    /// A stream of this node.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn stream(&self, name: &str) -> anyhow::Result<Arc<Stream>> {
        let stream = self.gateway.app().streams.get(name);
        stream.with_context(|| format!("no stream {name}"))
    }

    /// Publishes a row of a channel (`stream/name`); `data` is JSON, `null` deletes. Gives the position, as text.
    ///
    /// # Errors
    /// The refusal.
    pub fn publish(&self, channel: &str, row: &str, data: &str) -> anyhow::Result<String> {
        let positions = self.publish_all(channel, [(row.to_owned(), data.to_owned())])?;
        positions.into_iter().next().context("no answer")
    }

    /// Publishes many rows at once: one batch of the log.
    ///
    /// # Errors
    /// The first refusal.
    pub fn publish_all(
        &self,
        channel: &str,
        rows: impl IntoIterator<Item = (String, String)>,
    ) -> anyhow::Result<Vec<String>> {
        let app = self.gateway.app();
        let (stream, name) = channel.split_once('/').context("stream/name")?;
        let claims = app
            .verify(API_KEY)
            .map_err(|refusal| anyhow!("{refusal:?}"))?;
        let refused = |refusal| anyhow!("{refusal:?}");
        let stream = app.publisher.stream(stream, &claims).map_err(refused)?;
        let records = rows.into_iter().map(|(row, data)| {
            let (name, row) = (serde_json::Value::from(name), serde_json::Value::from(row));
            let line = format!("{{\"channel\":{name},\"row\":{row},\"data\":{data}}}");
            app.publisher.read(&stream, line.as_bytes())
        });
        let records = records.collect();
        let mut flow = Flow::default();
        let appending = app.publisher.append(&stream, &claims, &mut flow, records);
        let answers = appending.now_or_never();
        answers
            .context("a log in memory answers at once")?
            .into_iter()
            .map(|answer| {
                answer
                    .map(|(position, _)| position.to_string())
                    .map_err(refused)
            })
            .collect()
    }

    /// Waits until this node has applied a position that [`Self::publish`] gave, in that stream.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn applied(&self, stream: &str, position: &str) -> anyhow::Result<()> {
        let stream = self.stream(stream)?;
        let (partition, rest) = position.split_once('.').context("a position")?;
        let offset: u64 = rest.split_once(':').context("a position")?.1.parse()?;
        let tail = &stream.partitions[partition.parse::<usize>()?].tail;
        until(&format!("applied {position}"), || {
            tail.cursor().offset.number() >= offset
        })
        .await
    }

    /// Hinders this node's reading of a stream.
    ///
    /// # Errors
    /// When there is no such stream.
    pub fn hinder(&self, stream: &str, paused: bool, delay: Duration) -> anyhow::Result<()> {
        self.stream(stream)?
            .hindrance
            .send_replace(Hindrance { paused, delay });
        Ok(())
    }

    /// Drains the node, which must leave nothing behind.
    ///
    /// # Errors
    /// When something was left, or when it took longer than [`SOON`].
    pub async fn drain(self) -> anyhow::Result<()> {
        let drained = tokio::time::timeout(SOON, self.gateway.drain()).await?;
        anyhow::ensure!(drained == Drained { left: 0, tasks: 0 }, "{drained:?}");
        Ok(())
    }
}
