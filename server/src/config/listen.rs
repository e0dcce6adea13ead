//! `[listen]` and `[admin]`: where the gateway listens.
//!
//! Does: reads the two sections. Owns: their defaults. Never knows: sockets. Keeps: an origin is written as browsers
//! write it, so that comparing text is enough.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
};

use super::walk::Section;

/// The public listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenConfig {
    /// Where clients connect; default `127.0.0.1:9700`.
    pub address: SocketAddr,
    /// Threads that own connections, 1 to 1024; default: the cores that this process may use.
    pub workers: usize,
    /// Origins whose pages may connect: `scheme://host[:port]` in lower case, or `*` for all; default: none, so only
    /// pages of the gateway's own origin.
    pub origins: Vec<String>,
    /// Connections that the kernel keeps for each worker before they are accepted, 1 to 65535; default 4096.
    pub backlog: u32,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 9700)),
            workers: thread::available_parallelism().map_or(1, |n| n.get().min(1024)),
            origins: Vec::new(),
            backlog: 4096,
        }
    }
}

impl ListenConfig {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        let origin = "an origin such as \"https://board.example\", in lower case, without path or usual port, or \"*\"";
        Self {
            address: read_address(section).unwrap_or(default.address),
            workers: section
                .count("workers", 1..=1024)
                .unwrap_or(default.workers),
            origins: section
                .texts("origins", origin, parse_origin)
                .unwrap_or(default.origins),
            backlog: section
                .number("backlog", 1..=65_535)
                .unwrap_or(default.backlog),
        }
    }
}

/// The private listener.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminConfig {
    /// Where operators connect; default `127.0.0.1:9701`.
    pub address: SocketAddr,
    /// What every POST to this listener must present, on loopback too once it is set: 16 to 512 visible ASCII
    /// characters; default: none, so that off loopback they are all refused.
    pub token: Option<String>,
    /// Names under which it is reached, in lower case, beside addresses and `localhost`; default: none.
    pub hosts: Vec<String>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 9701)),
            token: None,
            hosts: Vec::new(),
        }
    }
}

impl fmt::Debug for AdminConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "hidden");
        f.debug_struct("AdminConfig")
            .field("address", &self.address)
            .field("token", &token)
            .field("hosts", &self.hosts)
            .finish()
    }
}

impl AdminConfig {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let visible = |text: &str| {
            (16..=512).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
        };
        Self {
            address: read_address(section).unwrap_or(Self::default().address),
            token: section.secret("token", "16 to 512 visible ASCII characters", |text| {
                visible(text).then(|| text.to_owned())
            }),
            hosts: section
                .texts(
                    "hosts",
                    "a host's name in lower case, without port",
                    |text| (is_host(text) && !text.starts_with('[')).then(|| text.to_owned()),
                )
                .unwrap_or_default(),
        }
    }
}

fn read_address(section: &mut Section<'_>) -> Option<SocketAddr> {
    section.text(
        "address",
        "an IP address and a port, such as \"127.0.0.1:9700\"",
        |text| text.parse().ok(),
    )
}

/// Takes an origin only as a browser would write it: anything else could never match.
fn parse_origin(text: &str) -> Option<String> {
    if text == "*" {
        return Some(text.to_owned());
    }
    let (scheme, rest) = text.split_once("://")?;
    let scheme_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b);
    if !scheme.starts_with(|c: char| c.is_ascii_lowercase()) || !scheme.bytes().all(scheme_byte) {
        return None;
    }
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let usual = [("http", "80"), ("https", "443")];
    let port_fits = |port: &str| {
        port.parse::<u16>()
            .is_ok_and(|number| number > 0 && number.to_string() == port)
            && !usual.contains(&(scheme, port))
    };
    (is_host(host) && port.is_none_or(port_fits)).then(|| text.to_owned())
}

fn is_host(host: &str) -> bool {
    if let Some(address) = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let host_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
    (1..=253).contains(&host.len()) && host.bytes().all(host_byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_taken_as_browsers_write_them() {
        let good = [
            "*",
            "https://board.example",
            "http://localhost:5173",
            "http://[::1]:80800",
            "http://[::1]",
            "app://a",
        ];
        let taken: Vec<_> = good
            .iter()
            .filter(|text| parse_origin(text).is_some())
            .copied()
            .collect();
        assert_eq!(
            taken,
            [
                "*",
                "https://board.example",
                "http://localhost:5173",
                "http://[::1]",
                "app://a"
            ]
        );
        for bad in [
            "",
            "https://",
            "board.example",
            "https://a/",
            "https://a/b",
            "https://A.example",
            "https://a:443",
            "http://a:80",
            "https://a:0",
            "https://a:",
            "https://a:08",
            "https://*.a",
            "://a",
            "1://a",
            "https://a b",
            "https://[x]",
            "null",
        ] {
            assert_eq!(parse_origin(bad), None, "{bad:?}");
        }
    }
}
