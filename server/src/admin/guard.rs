//! Who may ask, and who may change something.
//!
//! Changing something takes the token, where one is configured or the listener can be reached from elsewhere. Everything but
//! the probes takes a `Host` that is the listener's own: a page in an operator's browser can have its own name point here,
//! and would then read what the operator may read. Such a page can't do without its name.

use std::{
    hint::black_box,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

use super::Admin;
use crate::{
    protocol::{ErrorCode, Refusal},
    transport::{bearer_of, problem::Problem},
};

/// Decides who may change something.
#[derive(Clone)]
pub struct Guard {
    loopback: bool,
    /// Only its digest is kept: so that two of one length are compared, whatever is presented.
    token: Option<[u8; 32]>,
    /// Names under which the listener is reached, beside addresses and `localhost`.
    hosts: Vec<String>,
}

impl Guard {
    /// For a listener at this address, the configured token and the names under which it is reached.
    #[must_use]
    pub fn new(address: SocketAddr, token: Option<&str>, hosts: &[String]) -> Self {
        Self {
            loopback: address.ip().is_loopback(),
            token: token.map(digest),
            hosts: hosts.to_vec(),
        }
    }

    /// Says at the start what holds, where the listener can be reached from elsewhere.
    pub(super) fn say(&self) {
        match (self.loopback, &self.token) {
            (true, _) => {}
            (false, Some(_)) => tracing::info!(
                "the admin listener is off loopback: every POST needs admin.token, whoever reaches it can read"
            ),
            (false, None) => tracing::warn!(
                "the admin listener is off loopback and admin.token is not set: every POST is refused, whoever reaches it can read"
            ),
        }
    }

    /// Whether a request with this head may change something.
    ///
    /// # Errors
    /// `unauthorized` without the token, `forbidden` where no token can help.
    pub fn admit(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(token) = &self.token else {
            return self.admit_without_token(headers);
        };
        match bearer_of(headers) {
            Some(presented) if same(&digest(presented), token) => Ok(()),
            Some(_) => Err(Refusal::new(
                ErrorCode::Unauthorized,
                "this is not the admin.token",
            )),
            None => Err(Refusal::new(
                ErrorCode::Unauthorized,
                "admin.token is needed: Authorization: Bearer …",
            )),
        }
    }

    /// Whether a request with this head was meant for this listener.
    ///
    /// # Errors
    /// `forbidden` where it names another host.
    pub fn admit_host(&self, headers: &HeaderMap, target: &Uri) -> Result<(), Refusal> {
        let named = headers.get_all(header::HOST).into_iter();
        let mut named = named.map(|host| host.to_str().unwrap_or_default());
        // No browser leaves it out.
        let ours = |host: &str| self.is_ours(without_port(host));
        if named.all(ours) && target.authority().is_none_or(|at| ours(at.as_str())) {
            return Ok(());
        }
        Err(Refusal::new(
            ErrorCode::Forbidden,
            "the Host is neither an address, nor localhost, nor one of admin.hosts: name there how this listener is reached",
        ))
    }

    fn is_ours(&self, host: &str) -> bool {
        let address = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .map_or_else(
                || host.parse::<Ipv4Addr>().is_ok(),
                |host| host.parse::<Ipv6Addr>().is_ok(),
            );
        let is = |name: &str| name.eq_ignore_ascii_case(host);
        address || is("localhost") || self.hosts.iter().any(|name| is(name))
    }

    fn admit_without_token(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if !self.loopback {
            return Err(Refusal::new(
                ErrorCode::Forbidden,
                "the admin listener is off loopback and admin.token is not set: set it to change something here",
            ));
        }
        if headers.contains_key(header::ORIGIN) {
            // Any page in a browser on this machine could ask; only browsers say where a page came from.
            return Err(Refusal::new(
                ErrorCode::Forbidden,
                "pages may not change something here without admin.token",
            ));
        }
        Ok(())
    }
}

/// `name:9701` → `name`; an address of IPv6 keeps its brackets.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// Takes the same time wherever the first difference is.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a
        .iter()
        .zip(b)
        .fold(0, |seen, (a, b)| black_box(seen | (a ^ b)));
    difference == 0
}

/// Lets a request through that was meant for this listener.
pub(super) async fn check_host(
    State(admin): State<Arc<Admin>>,
    request: Request,
    next: Next,
) -> Response {
    match admin.guard.admit_host(request.headers(), request.uri()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => Problem(refusal).into_response(),
    }
}

/// Lets a request through that may change something.
pub(super) async fn check(
    State(admin): State<Arc<Admin>>,
    request: Request,
    next: Next,
) -> Response {
    match admin.guard.admit(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => Problem(refusal).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    const TOKEN: &str = "0123456789abcdef";

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|&(name, value)| {
                let name = header::HeaderName::from_static(name);
                (name, HeaderValue::from_static(value))
            })
            .collect()
    }

    #[test]
    fn who_is_asked_for() {
        let names = ["tidegate-admin".to_owned(), "tidegate.internal".to_owned()];
        let guard = Guard::new("127.0.0.1:9701".parse().unwrap(), None, &names);
        let asked = |host: &str, target: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
            guard.admit_host(&headers, &target.parse().unwrap()).is_ok()
        };
        for host in [
            "127.0.0.1:9701",
            "10.1.2.3",
            "[::1]:9701",
            "[2001:db8::1]",
            "localhost:9701",
            "LOCALHOST",
            "tidegate-admin:9701",
            "Tidegate.Internal",
        ] {
            assert!(asked(host, "/metrics"), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:9701",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.localhost",
            "tidegate-admin.evil.example",
            "127.0.0.1:9701:evil",
            "[::1",
            "::1",
            "0x7f.1",
            "localhost,evil.example",
        ] {
            assert!(!asked(host, "/metrics"), "{host}");
        }
        assert!(!asked("localhost", "http://evil.example/metrics"));
        assert!(asked("localhost", "http://localhost:9701/metrics"));
        let mut two = HeaderMap::new();
        two.append(header::HOST, HeaderValue::from_static("localhost"));
        two.append(header::HOST, HeaderValue::from_static("evil.example"));
        assert!(guard.admit_host(&two, &Uri::from_static("/")).is_err());
        assert!(
            guard
                .admit_host(&HeaderMap::new(), &Uri::from_static("/"))
                .is_ok()
        );
    }

    #[test]
    fn who_may_change_something() {
        let token = headers(&[("authorization", "Bearer 0123456789abcdef")]);
        let wrong = headers(&[("authorization", "Bearer 0123456789abcdeg")]);
        let longer = headers(&[("authorization", "Bearer 0123456789abcdef0")]);
        let basic = headers(&[("authorization", "Basic 0123456789abcdef")]);
        let page = headers(&[("origin", "https://elsewhere.example")]);
        let none = headers(&[]);
        let (ok, no, never) = (
            None,
            Some(ErrorCode::Unauthorized),
            Some(ErrorCode::Forbidden),
        );
        let table = [
            ("127.0.0.1:1", None, &none, ok),
            ("127.0.0.1:1", None, &wrong, ok),
            ("[::1]:1", None, &none, ok),
            ("127.0.0.1:1", None, &page, never),
            ("127.0.0.1:1", Some(TOKEN), &none, no),
            ("127.0.0.1:1", Some(TOKEN), &page, no),
            ("127.0.0.1:1", Some(TOKEN), &wrong, no),
            ("127.0.0.1:1", Some(TOKEN), &longer, no),
            ("127.0.0.1:1", Some(TOKEN), &basic, no),
            ("127.0.0.1:1", Some(TOKEN), &token, ok),
            ("0.0.0.0:1", None, &none, never),
            ("0.0.0.0:1", None, &token, never),
            ("10.1.2.3:1", Some(TOKEN), &none, no),
            ("10.1.2.3:1", Some(TOKEN), &wrong, no),
            ("10.1.2.3:1", Some(TOKEN), &token, ok),
        ];
        for (address, configured, headers, expected) in table {
            let guard = Guard::new(address.parse().unwrap(), configured, &[]);
            let refused = guard.admit(headers).err().map(|refusal| refusal.code);
            assert_eq!(refused, expected, "{address} {configured:?} {headers:?}");
        }
    }
}
