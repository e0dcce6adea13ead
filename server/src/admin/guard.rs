//! Who may change something: the token, where one is configured or the listener can be reached from elsewhere.

use std::{hint::black_box, net::SocketAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
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
}

impl Guard {
    /// For a listener at this address and the configured token.
    #[must_use]
    pub fn new(address: SocketAddr, token: Option<&str>) -> Self {
        Self {
            loopback: address.ip().is_loopback(),
            token: token.map(digest),
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
            let guard = Guard::new(address.parse().unwrap(), configured);
            let refused = guard.admit(headers).err().map(|refusal| refusal.code);
            assert_eq!(refused, expected, "{address} {configured:?} {headers:?}");
        }
    }
}
