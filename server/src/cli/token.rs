//! `tidegate token`: a key and a grant → a token for development.
//!
//! Does: finds the key, in a configuration or a file, and issues. Owns: nothing. Never knows: users; in production
//! whoever knows them issues tokens.

use std::{path::PathBuf, time::Duration};

use super::{say, text};
use crate::{
    auth::{GrantSpec, JwtKey, Permission, TokenSpec, issue},
    clock::Clock,
    config::{self, Config},
    gateway::jwt_key,
};

/// A token's time is told in whole seconds.
const TTL_MIN: Duration = Duration::from_secs(1);
/// Ten years; a key that lives longer than that should be looked at again.
const TTL_MAX: Duration = Duration::from_secs(3650 * 86_400);

#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("key").required(true).args(["config", "secret_file"])))]
pub(super) struct Token {
    /// The gateway's configuration, whose key signs
    #[arg(long)]
    config: Option<PathBuf>,
    /// A file with the secret of an HS256 key, whose kid is then needed
    #[arg(long, requires = "kid")]
    secret_file: Option<PathBuf>,
    /// The key's id; may be left out where the configuration has one key
    #[arg(long)]
    kid: Option<String>,
    /// Whom the token is for
    #[arg(long)]
    sub: Option<String>,
    /// The channels, joined by commas: departures/JFK, departures/*, user/{sub}/*
    #[arg(long, required = true, value_delimiter = ',')]
    channels: Vec<String>,
    /// What may be done with them, joined by commas: subscribe, publish
    #[arg(long, required = true, value_delimiter = ',', value_parser = permission)]
    can: Vec<Permission>,
    /// How long it holds: 30s, 10m, 1h, 7d
    #[arg(long, default_value = "1h", value_parser = duration)]
    ttl: Duration,
}

impl Token {
    /// Prints a token.
    pub(super) fn run(self) -> Result<(), String> {
        let key = self.key()?;
        let spec = TokenSpec {
            subject: self.sub,
            grant: GrantSpec {
                channels: self.channels,
                can: self.can,
            },
        };
        let token =
            issue(&key, &spec, self.ttl.as_secs(), Clock::start().wall_s()).map_err(text)?;
        say(&token);
        Ok(())
    }

    fn key(&self) -> Result<JwtKey, String> {
        let config = match (&self.config, &self.secret_file) {
            (Some(file), _) => Config::load(Some(file), config::environment()),
            (None, file) => Config::from_toml(&self.one_key(file.as_ref()), std::iter::empty()),
        };
        let keys = config.map_err(text)?.access.jwt_keys;
        let ids: Vec<&str> = keys.iter().map(|key| key.id.as_str()).collect();
        let named = match (&self.kid, &keys[..]) {
            (Some(kid), keys) => keys.iter().find(|key| key.id == *kid),
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        let Some(key) = named else {
            return Err(if ids.is_empty() {
                "the configuration has no access.jwt_keys to sign with".to_owned()
            } else {
                format!("name the key by --kid; there are: {}", ids.join(", "))
            });
        };
        jwt_key(key).map_err(text)
    }

    /// A configuration of that key alone, so that a file's secret is read and judged as the gateway does it.
    fn one_key(&self, file: Option<&PathBuf>) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let file = file.map(|file| file.to_string_lossy()).unwrap_or_default();
        format!(
            "access.jwt_keys = [{{ id = {}, algorithm = \"HS256\", file = {} }}]",
            quoted(self.kid.as_deref().unwrap_or_default()),
            quoted(&file)
        )
    }
}

fn permission(text: &str) -> Result<Permission, String> {
    match text {
        "subscribe" => Ok(Permission::Subscribe),
        "publish" => Ok(Permission::Publish),
        _ => Err("expected subscribe or publish".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    config::parse_duration(text)
        .filter(|ttl| (TTL_MIN..=TTL_MAX).contains(ttl))
        .ok_or_else(|| "expected 1s to 3650d, as in 30s, 10m, 1h, 7d".to_owned())
}
