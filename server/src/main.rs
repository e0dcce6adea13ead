//! `tidegate`: arguments → configuration → gateway → exit code.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::{Parser, Subcommand};
use tidegate::{
    auth::{GrantSpec, JwtKey, Permission, TokenSpec, issue},
    config::{self, Config},
    demo,
    gateway::{Gateway, short_random},
};
use tokio::signal::unix::{SignalKind, signal};

/// A real-time push gateway: live, keyed state from streams to browsers over WebSocket and SSE.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a node
    Serve(Serve),
    /// Looks at configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

#[derive(clap::Args)]
struct Serve {
    /// The configuration's file; without one, the embedded engine with the defaults
    #[arg(long)]
    config: Option<PathBuf>,
    /// Replays a real day of departures, lets everybody look, and prints a token for publishing
    #[arg(long)]
    demo: bool,
    /// Where clients connect, instead of the configuration's address
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Where operators connect, instead of the configuration's address
    #[arg(long)]
    admin: Option<SocketAddr>,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Says what is wrong with a file, all at once
    Check {
        /// The file
        file: PathBuf,
    },
    /// Prints the documented defaults
    Default,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Serve(serve) => run(serve),
        Command::Config {
            command: ConfigCommand::Check { file },
        } => check(&file),
        Command::Config {
            command: ConfigCommand::Default,
        } => {
            say(&Config::default_text());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            complain(&message);
            ExitCode::FAILURE
        }
    }
}

fn check(file: &Path) -> Result<(), String> {
    let config =
        Config::load(Some(file), config::environment()).map_err(|problems| problems.to_string())?;
    for warning in config.warnings() {
        complain(&format!("warning: {warning}"));
    }
    say(&format!("{} is good", file.display()));
    Ok(())
}

fn run(serve: Serve) -> Result<(), String> {
    let mut config = Config::load(serve.config.as_deref(), config::environment())
        .map_err(|problems| problems.to_string())?;
    if let Some(address) = serve.listen {
        config.listen.address = address;
    }
    if let Some(address) = serve.admin {
        config.admin.address = address;
    }
    log();
    let token = if serve.demo {
        Some(prepare_demo(&mut config)?)
    } else {
        None
    };
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(serve_until_told(config, token))
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

/// The demo's stream, a grant for everybody to look, a key for an hour of publishing.
fn prepare_demo(config: &mut Config) -> Result<String, String> {
    if !config
        .streams
        .iter()
        .any(|stream| stream.name == demo::STREAM)
    {
        let stream = config.stream_defaults.named(demo::STREAM);
        config.streams.push(stream);
    }
    let pattern = format!("{}/*", demo::STREAM);
    let looks =
        config::ChannelPattern::parse(&pattern).ok_or("the demo's pattern is no pattern")?;
    config.access.anonymous = Some(config::Grant {
        channels: vec![looks],
        can: vec![config::Permission::Subscribe],
    });
    config.session.heartbeat = config
        .session
        .heartbeat
        .min(std::time::Duration::from_secs(2));
    let secret: String = (0..5)
        .map(|_| short_random())
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    let key = JwtKey::hs256("demo", secret.as_bytes()).map_err(|error| error.to_string())?;
    let grant = GrantSpec {
        channels: vec![pattern],
        can: vec![Permission::Subscribe, Permission::Publish],
    };
    let spec = TokenSpec {
        subject: Some("demo".to_owned()),
        grant,
    };
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let token = issue(&key, &spec, 3600, now).map_err(|error| error.to_string())?;
    let algorithm = config::JwtAlgorithm::Hs256;
    config.access.jwt_keys.push(config::JwtKeyConfig {
        id: "demo".to_owned(),
        algorithm,
        secret: secret.into_bytes(),
    });
    Ok(token)
}

async fn serve_until_told(config: Config, demo_token: Option<String>) -> Result<(), String> {
    let gateway = Gateway::start(&config, None).map_err(|error| error.to_string())?;
    say(&format!(
        "listening on http://{}  (operators: http://{})",
        gateway.address(),
        gateway.admin_address()
    ));
    if let Some(token) = demo_token {
        greet(&gateway, &token)?;
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    let told = async |terminate: &mut tokio::signal::unix::Signal,
                      interrupt: &mut tokio::signal::unix::Signal| {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::select! {
        biased;
        () = told(&mut terminate, &mut interrupt) => {}
        () = gateway.asked_to_leave() => {}
    }
    tracing::info!("draining; another signal ends at once");
    tokio::select! {
        drained = gateway.drain() => {
            tracing::info!(left = drained.left, tasks = drained.tasks, "drained");
            Ok(())
        }
        () = told(&mut terminate, &mut interrupt) => Err("ended at once by a signal".to_owned()),
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

#[allow(
    clippy::print_stdout,
    reason = "what was asked for goes to standard output"
)]
fn say(text: &str) {
    println!("{text}");
}

#[allow(
    clippy::print_stderr,
    reason = "what went wrong goes to standard error"
)]
fn complain(text: &str) {
    eprintln!("{text}");
}
