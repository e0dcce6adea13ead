//! Which gateway a command talks to, and with which token.
//!
//! Does: reads an address, finds the token, opens the connection. Owns: nothing. Never knows: what is said over it.

use std::{fmt, str::FromStr, time::Duration};

use tokio::{net::TcpStream, time::timeout};

use crate::{auth::TOKEN_BYTES_MAX, config};

/// The variable that holds a token where none is given, so that it stands in no list of processes.
const TOKEN_VARIABLE: &str = "TIDEGATE_TOKEN";
/// How long a connection may take to open.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// What `publish` and `watch` have in common.
#[derive(clap::Args, Debug)]
pub(super) struct Remote {
    /// The gateway
    #[arg(long, default_value = "http://127.0.0.1:9700")]
    pub(super) url: Address,
    /// The token or API key; without it, that of the variable TIDEGATE_TOKEN, if it is set
    #[arg(long)]
    token: Option<String>,
}

impl Remote {
    /// The token, if there is one.
    pub(super) fn token(&self) -> Result<Option<String>, String> {
        let variable = || {
            config::environment()
                .find(|(name, _)| name == TOKEN_VARIABLE)
                .map(|(_, token)| token)
        };
        let token = self.token.clone().or_else(variable);
        let token = token.map(|token| token.trim().to_owned());
        let token = token.filter(|token| !token.is_empty());
        let sendable = |token: &String| {
            token.len() <= TOKEN_BYTES_MAX && token.bytes().all(|b| b.is_ascii_graphic())
        };
        if token.as_ref().is_none_or(sendable) {
            Ok(token)
        } else {
            Err(format!(
                "the token is no token: it has at most {TOKEN_BYTES_MAX} visible ASCII characters"
            ))
        }
    }

    /// Opens a connection.
    pub(super) async fn connect(&self) -> Result<TcpStream, String> {
        let connected = timeout(CONNECT_MAX, TcpStream::connect(&self.url.0)).await;
        let failed = |why: &dyn fmt::Display| format!("can't connect to {}: {why}", self.url);
        let stream = connected
            .map_err(|_| failed(&format!("no answer within {} s", CONNECT_MAX.as_secs())))?
            .map_err(|error| failed(&error))?;
        // Small messages are not held back; a system that knows no such option holds them back.
        stream.set_nodelay(true).unwrap_or_default();
        Ok(stream)
    }
}

/// `host:port` of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address(String);

impl Address {
    /// `host:port`, as requests name it.
    pub(super) fn authority(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.0)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let expected =
            || "expected http://HOST[:PORT], for example http://127.0.0.1:9700".to_owned();
        let (scheme, rest) = url.split_once("://").ok_or_else(expected)?;
        if scheme.eq_ignore_ascii_case("https") {
            return Err("this program does not speak TLS yet: name the gateway's own address (http://…), on the proxy's side that faces it".to_owned());
        }
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let bad = |c: char| c.is_whitespace() || c.is_control() || "/?#@\\".contains(c);
        if !scheme.eq_ignore_ascii_case("http") || authority.contains(bad) {
            return Err(expected());
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port),
            _ => (authority, "80"),
        };
        let bracketed = host.starts_with('[') && host.ends_with(']');
        let port: u16 = port.parse().map_err(|_| expected())?;
        if host.is_empty() || (host.contains(':') && !bracketed) {
            return Err(expected());
        }
        Ok(Self(format!("{host}:{port}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let read = |url: &str| url.parse::<Address>().map(|address| address.0).ok();
        for (url, authority) in [
            ("http://127.0.0.1:9700", "127.0.0.1:9700"),
            ("http://127.0.0.1:9700/", "127.0.0.1:9700"),
            ("HTTP://board.example", "board.example:80"),
            ("http://[::1]:9700", "[::1]:9700"),
            ("http://[::1]", "[::1]:80"),
        ] {
            assert_eq!(read(url).as_deref(), Some(authority), "{url}");
        }
        for url in [
            "",
            "127.0.0.1:9700",
            "http://",
            "http://:80",
            "http://a:b",
            "http://a:70000",
            "http://a/v1",
            "http://me@a",
            "http://::1:80",
            "ftp://a",
            "http://a b",
            "http://a?x",
        ] {
            assert_eq!(read(url), None, "{url}");
        }
        let tls = "https://a".parse::<Address>().unwrap_err();
        assert!(tls.contains("TLS"), "{tls}");
    }
}
