//! The connection to Redis: one server, a cluster, or whichever server the sentinels say is the primary.
//!
//! Does: opens a connection when it is needed, shares it, gives it up when it fails or hangs, and bounds every call in time.
//! Owns: the connection. Never knows: what the commands are about.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, FromRedisValue,
    IntoConnectionInfo, Pipeline, RedisConnectionInfo, ServerErrorKind, TlsCertificates, TlsMode,
    Value,
    aio::MultiplexedConnection,
    cluster::ClusterClientBuilder,
    cluster_async::ClusterConnection,
    sentinel::{SentinelClientBuilder, SentinelServerType},
};
use tokio::{sync::Semaphore, time::timeout};

use super::error::{RedisError, RedisFault};

/// How long a call may take, unless the options say otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// Calls on a connection at a time; the others wait, each for its own time-out at most.
pub const CALLS_MAX: usize = 32;
/// How often a call to a cluster is sent anew after a redirection, within its time.
const CLUSTER_RETRIES: u32 = 3;

/// How the servers belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topology {
    /// One server: the first that is named.
    Single,
    /// Nodes of a cluster: any of them leads to the others.
    Cluster,
    /// Sentinels, which know who is the primary of this name.
    Sentinel {
        /// The name of what the sentinels watch.
        primary: String,
    },
}

/// How to reach Redis, and what the keys there begin with.
#[derive(Clone)]
pub struct RedisOptions {
    /// `redis://[user:password@]host[:port][/database]`, or `rediss://` for TLS; of a cluster or of sentinels any number.
    pub servers: Vec<String>,
    /// How they belong together.
    pub topology: Topology,
    /// The user and password; else those of the URLs. Behind sentinels: those of the servers, and the URLs' are the sentinels'.
    pub login: Option<(String, String)>,
    /// The certificates, in PEM, that a server's own must come from; else those that the system trusts.
    pub ca_pem: Option<Vec<u8>>,
    /// The longest that a call takes, opening the connection included. Default: [`TIMEOUT`].
    pub timeout: Duration,
    /// What keys begin with; no braces. Default: `tg`.
    pub prefix: String,
}

impl RedisOptions {
    /// Of one server, with the defaults.
    #[must_use]
    pub fn single(url: &str) -> Self {
        Self {
            servers: vec![url.to_owned()],
            topology: Topology::Single,
            login: None,
            ca_pem: None,
            timeout: TIMEOUT,
            prefix: super::keys::PREFIX.to_owned(),
        }
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<_> = self.servers.iter().map(|url| address(url)).collect();
        f.debug_struct("RedisOptions")
            .field("servers", &addresses)
            .field("topology", &self.topology)
            .field("timeout", &self.timeout)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// A URL without what is secret in it.
fn address(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    rest.split(['/', '?']).next().unwrap_or_default().to_owned()
}

/// What is sent at a time.
#[derive(Clone, Copy)]
enum What<'a> {
    Command(&'a Cmd),
    Commands(&'a Pipeline),
}

#[derive(Clone)]
enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    async fn query<T: FromRedisValue>(&mut self, what: What<'_>) -> redis::RedisResult<T> {
        match (self, what) {
            (Self::One(connection), What::Command(command)) => {
                command.query_async(connection).await
            }
            (Self::Cluster(connection), What::Command(command)) => {
                command.query_async(connection).await
            }
            (Self::One(connection), What::Commands(commands)) => {
                commands.query_async(connection).await
            }
            (Self::Cluster(connection), What::Commands(commands)) => {
                commands.query_async(connection).await
            }
        }
    }
}

/// The connection, while there is one; numbered, so that who finds it broken takes away no newer one.
#[derive(Default)]
struct Held {
    number: u64,
    connection: Option<Connection>,
}

/// The one way to Redis that all calls of a cache, or of a log, share.
pub(crate) struct Link {
    infos: Vec<ConnectionInfo>,
    options: RedisOptions,
    at: String,
    held: Mutex<Held>,
    /// One opens a connection, the others wait for it, each within its own time.
    opening: Semaphore,
}

impl Link {
    /// Reads the options. Nothing is sent yet.
    pub(crate) fn new(options: &RedisOptions) -> Result<Self, RedisError> {
        let addresses: Vec<_> = options.servers.iter().map(|url| address(url)).collect();
        let at = addresses.join(",");
        let wrong = |what: &str| RedisError::new(RedisFault::Options, &at, None, what);
        if options.prefix.is_empty() || options.prefix.contains(['{', '}']) {
            return Err(wrong("a prefix is not empty and has no braces"));
        }
        if options.servers.is_empty() {
            return Err(wrong("no server is named"));
        }
        if options.timeout.is_zero() {
            return Err(wrong("the time-out is 0"));
        }
        let read = |url: &String| url.as_str().into_connection_info();
        let infos = options.servers.iter().map(read).collect::<Result<_, _>>();
        // A library's message of an URL may hold the URL, so the password.
        let infos = infos.map_err(|_| {
            wrong("a server reads redis://[user:password@]host[:port][/database], or rediss:// for TLS")
        })?;
        // Whoever comes first decides; all of this program's TLS is ring's.
        if rustls::crypto::ring::default_provider()
            .install_default()
            .is_err()
        {
            tracing::trace!("TLS has its cryptography already");
        }
        Ok(Self {
            infos,
            options: options.clone(),
            at,
            held: Mutex::default(),
            opening: Semaphore::new(1),
        })
    }

    /// Where it leads, for messages.
    pub(crate) fn at(&self) -> &str {
        &self.at
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.options.topology == Topology::Cluster
    }

    /// Sends a command and waits for its answer, no longer than the time-out. `key` is for the message.
    pub(crate) async fn call<T: FromRedisValue>(
        &self,
        key: Option<&str>,
        command: &Cmd,
    ) -> Result<T, RedisError> {
        let result = self.bounded(key, What::Command(command)).await?;
        result.map_err(|error| RedisError::of(&error, &self.at, key))
    }

    /// Runs a script by its name; where the server does not know it, by its text, from which it learns the name.
    pub(crate) async fn script<T: FromRedisValue>(
        &self,
        key: &str,
        script: &redis::Script,
        text: &str,
        keys: &[String],
        arguments: &[&[u8]],
    ) -> Result<T, RedisError> {
        let command = |name: &str, what: &str| {
            let mut command = redis::cmd(name);
            command.arg(what).arg(keys.len()).arg(keys).arg(arguments);
            command
        };
        let known = command("EVALSHA", script.get_hash());
        match self.bounded(Some(key), What::Command(&known)).await? {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.call(Some(key), &command("EVAL", text)).await
            }
            result => result.map_err(|error| RedisError::of(&error, &self.at, Some(key))),
        }
    }

    /// Sends commands together. What one of them fails of is among the answers.
    pub(crate) async fn together(
        &self,
        key: &str,
        commands: &Pipeline,
    ) -> Result<Vec<redis::RedisResult<Value>>, RedisError> {
        let answers: redis::RedisResult<Vec<Value>> =
            self.bounded(Some(key), What::Commands(commands)).await?;
        let answers = answers.map_err(|error| RedisError::of(&error, &self.at, Some(key)))?;
        Ok(answers.into_iter().map(Value::extract_error).collect())
    }

    /// A connection of the caller's own, for what blocks, to whoever would be asked; of a cluster to the first that is named.
    pub(crate) async fn dedicated(&self) -> Result<MultiplexedConnection, RedisError> {
        let opening = async {
            match &self.options.topology {
                Topology::Sentinel { primary } => self.open_sentinel(primary).await,
                Topology::Single | Topology::Cluster => self.open_single().await,
            }
        };
        let opened = timeout(self.options.timeout, opening).await;
        let opened = opened.map_err(|_| RedisError::late(&self.at, None, self.options.timeout))?;
        opened.map_err(|error| RedisError::of(&error, &self.at, None))
    }

    /// The connection leads to who is of no use: another one is opened for the next call.
    pub(crate) fn forsake(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.connection = None;
    }

    async fn bounded<T: FromRedisValue>(
        &self,
        key: Option<&str>,
        what: What<'_>,
    ) -> Result<redis::RedisResult<T>, RedisError> {
        let mut number = None;
        let answer = timeout(self.options.timeout, async {
            let (mut connection, of) = self.connection().await?;
            number = Some(of);
            connection.query(what).await
        });
        let answer = answer.await;
        let broken = match &answer {
            Ok(Ok(_)) => false,
            Ok(Err(error)) => is_broken(error),
            Err(_) => true,
        };
        if let Some(number) = number.filter(|_| broken) {
            self.give_up(number);
        }
        answer.map_err(|_| RedisError::late(&self.at, key, self.options.timeout))
    }

    /// The connection that there is, or a new one.
    async fn connection(&self) -> redis::RedisResult<(Connection, u64)> {
        if let Some(found) = self.there() {
            return Ok(found);
        }
        let closed = |_| redis::RedisError::from((ErrorKind::Client, "the cache is closed"));
        let _turn = self.opening.acquire().await.map_err(closed)?;
        if let Some(found) = self.there() {
            return Ok(found);
        }
        let connection = self.open().await?;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.number += 1;
        held.connection = Some(connection.clone());
        Ok((connection, held.number))
    }

    fn there(&self) -> Option<(Connection, u64)> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = held.connection.clone()?;
        Some((connection, held.number))
    }

    fn give_up(&self, number: u64) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.number == number {
            held.connection = None;
        }
    }

    async fn open(&self) -> redis::RedisResult<Connection> {
        match &self.options.topology {
            Topology::Single => self.open_single().await.map(Connection::One),
            Topology::Cluster => self.open_cluster().await.map(Connection::Cluster),
            Topology::Sentinel { primary } => {
                self.open_sentinel(primary).await.map(Connection::One)
            }
        }
    }

    /// The library's own times are off: ours end the call, and then the connection.
    fn times() -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(CALLS_MAX)
            .set_concurrency_limit(CALLS_MAX)
    }

    fn certificates(&self) -> TlsCertificates {
        TlsCertificates {
            client_tls: None,
            root_cert: self.options.ca_pem.clone(),
        }
    }

    fn with_login(&self, mut settings: RedisConnectionInfo) -> RedisConnectionInfo {
        if let Some((user, password)) = &self.options.login {
            if !user.is_empty() {
                settings = settings.set_username(user);
            }
            settings = settings.set_password(password);
        }
        settings
    }

    async fn open_single(&self) -> redis::RedisResult<MultiplexedConnection> {
        let info = &self.infos[0];
        let settings = self
            .with_login(info.redis_settings().clone())
            .set_skip_set_lib_name();
        let info = info.clone().set_redis_settings(settings);
        let client = if is_tls(&info) {
            Client::build_with_tls(info, self.certificates())?
        } else {
            Client::open(info)?
        };
        client
            .get_multiplexed_async_connection_with_config(&Self::times())
            .await
    }

    async fn open_cluster(&self) -> redis::RedisResult<ClusterConnection> {
        // Its tasks go on when our time is over: so they have times of their own, which are longer.
        let mut builder = ClusterClientBuilder::new(self.infos.clone())
            .connection_timeout(self.options.timeout * 2)
            .response_timeout(self.options.timeout * 2)
            .connection_concurrency_limit(CALLS_MAX)
            .retries(CLUSTER_RETRIES);
        if let Some((user, password)) = &self.options.login {
            if !user.is_empty() {
                builder = builder.username(user);
            }
            builder = builder.password(password);
        }
        if is_tls(&self.infos[0]) {
            builder = builder.tls(TlsMode::Secure).certs(self.certificates());
        }
        builder.build()?.get_async_connection().await
    }

    /// Asks the sentinels anew each time: who was the primary may be a replica now.
    async fn open_sentinel(&self, primary: &str) -> redis::RedisResult<MultiplexedConnection> {
        let addresses = self.infos.iter().map(|info| info.addr().clone());
        let sentinel = self.infos[0].redis_settings();
        let mut builder =
            SentinelClientBuilder::new(addresses, primary, SentinelServerType::Master)?;
        if let Some(user) = sentinel.username() {
            builder = builder.set_client_to_sentinel_username(user);
        }
        if let Some(password) = sentinel.password() {
            builder = builder.set_client_to_sentinel_password(password);
        }
        if let Some((user, password)) = &self.options.login {
            if !user.is_empty() {
                builder = builder.set_client_to_redis_username(user);
            }
            builder = builder.set_client_to_redis_password(password);
        }
        if is_tls(&self.infos[0]) {
            builder = builder
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_redis_certificates(self.certificates())
                .set_client_to_sentinel_certificates(self.certificates());
        }
        let mut client = builder.build()?;
        client
            .get_async_connection_with_config(&Self::times())
            .await
    }
}

fn is_tls(info: &ConnectionInfo) -> bool {
    matches!(info.addr(), redis::ConnectionAddr::TcpTls { .. })
}

/// Whether another connection may do better: this one failed, or leads to who is not the primary.
fn is_broken(error: &redis::RedisError) -> bool {
    error.is_unrecoverable_error()
        || error.is_io_error()
        || error.is_timeout()
        || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_no_secrets() {
        for (url, shown) in [
            ("redis://127.0.0.1:6379/0", "127.0.0.1:6379"),
            ("rediss://me:s3cr@t@cache.example?x=1", "cache.example"),
            ("cache.example", "cache.example"),
        ] {
            assert_eq!(address(url), shown);
        }
        let options = RedisOptions {
            login: Some(("me".to_owned(), "s3cret".to_owned())),
            ..RedisOptions::single("redis://me:s3cret@a:1")
        };
        assert!(!format!("{options:?}").contains("s3cret"));
    }

    #[test]
    fn options_that_make_no_sense_are_refused_with_a_reason() {
        let good = RedisOptions::single("redis://me:s3cret@a:1");
        assert!(Link::new(&good).is_ok());
        let of = |options: RedisOptions| Link::new(&options).map(|_| ()).unwrap_err();
        let wrong = [
            RedisOptions {
                prefix: "a{b".to_owned(),
                ..good.clone()
            },
            RedisOptions {
                prefix: String::new(),
                ..good.clone()
            },
            RedisOptions {
                servers: Vec::new(),
                ..good.clone()
            },
            RedisOptions {
                timeout: Duration::ZERO,
                ..good.clone()
            },
            RedisOptions {
                servers: vec!["http://me:s3cret@a".to_owned()],
                ..good
            },
        ];
        for options in wrong {
            let error = of(options);
            assert_eq!(error.fault(), RedisFault::Options);
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }
}
