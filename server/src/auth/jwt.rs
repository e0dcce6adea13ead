//! JSON Web Tokens: their three parts, what they claim, and how one is made.
//!
//! Does: takes a token apart, has a given key check its signature and reads its claims; issues tokens for development.
//! Owns: nothing. Never knows: which keys there are, a clock, a socket.
//! Keeps: the algorithm is the key's, never the token's; no claim is looked at before the signature holds; a part has one
//! spelling (base64url without padding, spare bits zero).
//!
//! `aud` and `iss` are not looked at: a token gets its rights from `channels` and `can` alone, so one that was made for
//! another service grants nothing here. Nor is what a header says of keys (`jwk`, `jku`, `x5c` …): they are configured.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Deserializer, Serialize, de::IgnoredAny};

use super::{
    AuthError, ClaimFault, GrantError, GrantSpec, JwtKey, Permission, Refusal, TOKEN_BYTES_MAX,
};

/// What a token's header says, as far as it matters.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    #[serde(default, deserialize_with = "there")]
    crit: bool,
}

/// Whatever the value is, it is there.
fn there<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(value).map(|_| true)
}

/// A token in its parts, of which nothing is proved yet.
pub(super) struct Parts<'a> {
    header: Header,
    /// What is signed: the first two parts as they are written.
    message: &'a str,
    claims: &'a str,
    signature: &'a str,
}

impl<'a> Parts<'a> {
    /// The parts of a text, if it has three and the first is a JWT's header.
    pub(super) fn of(token: &'a str) -> Option<Self> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        if claims.contains('.') {
            return None;
        }
        let header = URL_SAFE_NO_PAD.decode(header).ok()?;
        Some(Self {
            header: serde_json::from_slice(&header).ok()?,
            message,
            claims,
            signature,
        })
    }

    /// Which key is meant to have signed it.
    pub(super) fn kid(&self) -> Option<&str> {
        self.header.kid.as_deref()
    }

    /// The claims, if this key has signed them. Times and patterns are not yet judged.
    pub(super) fn open(&self, key: &JwtKey) -> Result<WireClaims, AuthError> {
        if self.header.alg != key.algorithm() {
            return Err(Refusal::Algorithm.into());
        }
        // RFC 7515, section 4.1.11: extensions that the issuer calls critical must be understood, and none is.
        if self.header.crit {
            return Err(Refusal::Critical.into());
        }
        let signature = URL_SAFE_NO_PAD.decode(self.signature);
        let signed = |signature: &Vec<u8>| key.has_signed(self.message.as_bytes(), signature);
        if !signature.as_ref().is_ok_and(signed) {
            return Err(Refusal::Signature.into());
        }
        let claims = URL_SAFE_NO_PAD.decode(self.claims);
        let claims = claims
            .ok()
            .and_then(|claims| serde_json::from_slice(&claims).ok());
        Ok(claims.ok_or(ClaimFault::Shape)?)
    }
}

/// The claims that mean something here; others are ignored.
#[derive(Deserialize)]
pub(super) struct WireClaims {
    pub(super) sub: Option<String>,
    pub(super) exp: Option<NumericDate>,
    pub(super) nbf: Option<NumericDate>,
    #[serde(default)]
    channels: Vec<String>,
    #[serde(default)]
    can: Vec<Permission>,
}

impl WireClaims {
    /// What it asks for.
    pub(super) fn grant(self) -> GrantSpec {
        GrantSpec {
            channels: self.channels,
            can: self.can,
        }
    }
}

/// Seconds since 1970, of which RFC 7519 also allows fractions.
#[derive(Deserialize, Clone, Copy)]
#[serde(untagged)]
pub(super) enum NumericDate {
    Whole(u64),
    Fraction(f64),
}

impl NumericDate {
    /// Whole seconds, rounded down; before 1970 is 0.
    pub(super) fn seconds(self) -> u64 {
        match self {
            Self::Whole(seconds) => seconds,
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a cast from float saturates, and rounding down is meant"
            )]
            Self::Fraction(seconds) => seconds as u64,
        }
    }
}

/// What a token to be issued says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenSpec {
    /// Whom it is for; needed where a pattern says `{sub}`.
    pub subject: Option<String>,
    /// What it grants.
    pub grant: GrantSpec,
}

/// Why a token was not issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// This server would refuse the grant.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// This server would refuse the token.
    #[error(
        "the token would be longer than {TOKEN_BYTES_MAX} bytes; use fewer or shorter patterns"
    )]
    TooLong,
    /// Only who has the private half signs.
    #[error("key {0:?} only verifies tokens: whoever has its private half issues them")]
    PublicKey(Arc<str>),
}

#[derive(Serialize)]
struct IssuedHeader<'a> {
    typ: &'static str,
    alg: &'static str,
    kid: &'a str,
}

#[derive(Serialize)]
struct IssuedClaims<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<&'a str>,
    iat: u64,
    exp: u64,
    channels: &'a [String],
    can: &'a [Permission],
}

/// Issues a token of `ttl_s` seconds from `now_s` (seconds since 1970), signed with `key`: for development and for the
/// demonstration. In production whoever knows the users issues them.
///
/// # Errors
/// [`IssueError`]; what it refuses to issue is what [`verify`](super::Authority::verify) would not accept.
pub fn issue(key: &JwtKey, spec: &TokenSpec, ttl_s: u64, now_s: u64) -> Result<String, IssueError> {
    spec.grant.resolve(spec.subject.as_deref())?;
    let header = IssuedHeader {
        typ: "JWT",
        alg: key.algorithm(),
        kid: key.id(),
    };
    let claims = IssuedClaims {
        sub: spec.subject.as_deref(),
        iat: now_s,
        exp: now_s.saturating_add(ttl_s),
        channels: &spec.grant.channels,
        can: &spec.grant.can,
    };
    let message = format!("{}.{}", part(&header), part(&claims));
    let signature = key
        .sign(message.as_bytes())
        .ok_or_else(|| IssueError::PublicKey(key.id().clone()))?;
    let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature));
    if token.len() > TOKEN_BYTES_MAX {
        return Err(IssueError::TooLong);
    }
    Ok(token)
}

/// A part of a token. Texts and numbers always have a JSON text.
fn part(of: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(of).unwrap_or_default())
}
