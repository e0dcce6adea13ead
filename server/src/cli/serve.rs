//! `tidegate serve`: a configuration → a node, until somebody says that it shall end.
//!
//! Does: lays the arguments over the configuration, prepares the demo, starts the gateway, reloads it at SIGHUP, drains it
//! at a first other signal and gives up at a second. Owns: the signals. Never knows: connections, streams.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{block_on, say, text};
use crate::{
    auth::{GrantSpec, JwtKey, Permission, TokenSpec, issue},
    clock::Clock,
    config::{self, Config},
    demo,
    gateway::{Gateway, short_random},
};

/// How long the demo's token holds, in seconds.
const DEMO_TOKEN_S: u64 = 3600;
/// The demo's board shows every two seconds at least that it is live.
const DEMO_HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(2);

#[derive(clap::Args, Debug)]
pub(super) struct Serve {
    /// The configuration's file; without one, the embedded engine with the defaults
    #[arg(long)]
    config: Option<PathBuf>,
    /// Replays a real day of departures, lets everybody look, and prints a token for publishing
    #[arg(long)]
    demo: bool,
    /// Keeps the embedded engine's logs in this directory, instead of the configuration's, or of memory
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where clients connect, instead of the configuration's address
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Where operators connect, instead of the configuration's address
    #[arg(long)]
    admin: Option<SocketAddr>,
}

impl Serve {
    /// Runs a node until a signal ends it.
    pub(super) fn run(self) -> Result<(), String> {
        let demo = self.demo.then(Demo::new).transpose()?;
        let token = demo.as_ref().map(Demo::token).transpose()?;
        run_until_told(move || self.load(demo.as_ref()), token)
    }

    /// The configuration as it is written now, with the arguments over it: at the start and at each reload.
    fn load(&self, demo: Option<&Demo>) -> Result<Config, config::Problems> {
        let mut config = Config::load(self.config.as_deref(), config::environment())?;
        if let Some(dir) = &self.data_dir {
            config.embedded.dir = Some(dir.clone());
        }
        if let Some(address) = self.listen {
            config.listen.address = address;
        }
        if let Some(address) = self.admin {
            config.admin.address = address;
        }
        if let Some(demo) = demo {
            demo.lay_over(&mut config);
        }
        Ok(config)
    }
}

/// Starts what `load` says, which is asked again at each reload, and runs it until a signal ends it.
pub(super) fn run_until_told(
    load: impl Fn() -> Result<Config, config::Problems> + Send + Sync + 'static,
    demo_token: Option<String>,
) -> Result<(), String> {
    let config = load().map_err(text)?;
    log();
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    // Not within the runtime: a node that cannot start takes down a runtime of its own, which is not allowed there.
    let gateway = Gateway::start_reloadable(&config, None, Some(Box::new(load))).map_err(text)?;
    block_on(serve_until_told(gateway, demo_token))
}

fn log() {
    let filter = config::environment()
        .find(|(name, _)| name == "TIDEGATE_LOG")
        .map_or_else(|| "info".to_owned(), |(_, filter)| filter);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}

/// What the demo adds to a configuration: a stream, a grant for everybody to look, a key for an hour of publishing.
struct Demo {
    secret: String,
    pattern: config::ChannelPattern,
}

impl Demo {
    fn new() -> Result<Self, String> {
        let words = (0..5).map(|_| short_random());
        let secret = words.collect::<Result<_, _>>().map_err(text)?;
        let pattern = config::ChannelPattern::parse(&format!("{}/*", demo::STREAM));
        Ok(Self {
            secret,
            pattern: pattern.ok_or("the demo's pattern is no pattern")?,
        })
    }

    fn token(&self) -> Result<String, String> {
        let key = JwtKey::hs256("demo", self.secret.as_bytes()).map_err(text)?;
        let spec = TokenSpec {
            subject: Some("demo".to_owned()),
            grant: GrantSpec {
                channels: vec![self.pattern.as_str().to_owned()],
                can: vec![Permission::Subscribe, Permission::Publish],
            },
        };
        issue(&key, &spec, DEMO_TOKEN_S, Clock::start().wall_s()).map_err(text)
    }

    fn lay_over(&self, config: &mut Config) {
        let mut streams = config.streams.iter();
        if !streams.any(|stream| stream.name == demo::STREAM) {
            let stream = config.stream_defaults.named(demo::STREAM);
            config.streams.push(stream);
        }
        config.access.anonymous = Some(config::Grant {
            channels: vec![self.pattern.clone()],
            can: vec![config::Permission::Subscribe],
        });
        config.session.heartbeat = config.session.heartbeat.min(DEMO_HEARTBEAT);
        config.access.jwt_keys.push(config::JwtKeyConfig {
            id: "demo".to_owned(),
            algorithm: config::JwtAlgorithm::Hs256,
            key: self.secret.clone().into_bytes(),
        });
    }
}

async fn serve_until_told(gateway: Gateway, demo_token: Option<String>) -> Result<(), String> {
    let mut signals = Signals::new()?;
    let mut hangups = hear(SignalKind::hangup())?;
    let operators = gateway.admin_address();
    say(&if gateway.serves() {
        let address = gateway.address();
        format!("listening on http://{address}  (operators: http://{operators})")
    } else {
        format!("folding into the cache  (operators: http://{operators})")
    });
    if let Some(token) = demo_token {
        greet(&gateway, &token)?;
    }
    loop {
        tokio::select! {
            biased;
            () = signals.next() => break,
            () = gateway.asked_to_leave() => break,
            // What came of it is in the log.
            _ = hangups.recv() => drop(gateway.reload().await),
        }
    }
    tracing::info!("draining; another signal ends at once");
    tokio::select! {
        drained = gateway.drain() => {
            tracing::info!(left = drained.left, tasks = drained.tasks, "drained");
            Ok(())
        }
        () = signals.next() => Err("ended at once by a signal".to_owned()),
    }
}

fn greet(gateway: &Gateway, token: &str) -> Result<(), String> {
    let app = gateway.app();
    let claims = app.verify(token).map_err(|refusal| refusal.message)?;
    gateway.run(demo::replay(app.publisher.clone(), Arc::clone(&claims)));
    let at = gateway.address();
    say(&format!("the board:  http://{at}/"));
    say(&format!(
        "an hour's token for publishing to departures/*:\n{token}"
    ));
    say(&format!(
        "try:  curl -N 'http://{at}/v1/sse?channel=departures/JFK'\n      curl -H 'Authorization: Bearer '\"$TOKEN\" -H 'Content-Type: application/json' \\\n        -d '{{\"channel\":\"JFK\",\"row\":\"TG1\",\"data\":{{\"flight\":\"TG1\",\"airport\":\"JFK\",\"to\":\"SEA\",\"scheduled\":\"23:59\",\"status\":\"scheduled\"}}}}' \\\n        http://{at}/v1/publish/departures"
    ));
    Ok(())
}

fn hear(kind: SignalKind) -> Result<Signal, String> {
    signal(kind).map_err(|error| format!("can't listen for signals: {error}"))
}

/// SIGTERM and SIGINT: both ask the process to end.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on the signals no longer end the process by themselves.
    pub(super) fn new() -> Result<Self, String> {
        Ok(Self {
            terminate: hear(SignalKind::terminate())?,
            interrupt: hear(SignalKind::interrupt())?,
        })
    }

    /// The next of either. Cancel safe: a signal that was not waited for is there at the next call.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
