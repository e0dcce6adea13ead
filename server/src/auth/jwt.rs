//! JSON Web Tokens: the keys that sign them, what they claim, and how one is made.
//!
//! Does: checks a token's signature with one given key and reads its claims; issues tokens for development.
//! Owns: a key's secret, which it shows to nobody. Never knows: which keys there are, a clock, a socket.
//! Keeps: the algorithm is the key's, never the token's; no claim is looked at before the signature holds.
//!
//! `aud` and `iss` are not looked at: a token gets its rights from `channels` and `can` alone, so one that was made for
//! another service grants nothing here.

use std::{fmt, sync::Arc};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind};
use serde::{Deserialize, Serialize};

use super::{AuthError, ClaimFault, GrantError, GrantSpec, Permission, Refusal, TOKEN_BYTES_MAX};

/// Shortest secret of an HS256 key, in bytes: what RFC 7518, section 3.2, demands.
pub const HS256_SECRET_MIN: usize = 32;

/// Why a key was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A key without an id.
    #[error("a key needs an id")]
    NoId,
    /// A secret that could be guessed.
    #[error(
        "an HS256 secret has at least {HS256_SECRET_MIN} bytes; make one with: openssl rand -base64 48"
    )]
    ShortSecret,
}

/// A key that signs tokens, with the one algorithm that it is for.
#[derive(Clone)]
pub struct JwtKey {
    id: Arc<str>,
    algorithm: Algorithm,
    verifying: DecodingKey,
    signing: EncodingKey,
}

impl JwtKey {
    /// A shared secret for HMAC with SHA-256. `id` is what tokens name as `kid`.
    ///
    /// # Errors
    /// [`KeyError`] when the id is empty or the secret shorter than [`HS256_SECRET_MIN`].
    pub fn hs256(id: &str, secret: &[u8]) -> Result<Self, KeyError> {
        if id.is_empty() {
            return Err(KeyError::NoId);
        }
        if secret.len() < HS256_SECRET_MIN {
            return Err(KeyError::ShortSecret);
        }
        Ok(Self {
            id: id.into(),
            algorithm: Algorithm::HS256,
            verifying: DecodingKey::from_secret(secret),
            signing: EncodingKey::from_secret(secret),
        })
    }

    /// What tokens name as `kid`.
    #[must_use]
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// The claims of a token that this key has signed. Times and patterns are not yet judged.
    pub(super) fn open(&self, token: &str, header: &Header) -> Result<WireClaims, AuthError> {
        if header.alg != self.algorithm {
            return Err(Refusal::Algorithm.into());
        }
        // RFC 7515, section 4.1.11: extensions that the issuer calls critical must be understood, and none is.
        if header.crit.is_some() {
            return Err(Refusal::Critical.into());
        }
        match jsonwebtoken::decode(token, &self.verifying, &signature_only(self.algorithm)) {
            Ok(data) => Ok(data.claims),
            // The header has been read before, so what is no JSON here are claims under a good signature.
            Err(e) if matches!(e.kind(), ErrorKind::Json(_)) => Err(ClaimFault::Shape.into()),
            Err(_) => Err(Refusal::Signature.into()),
        }
    }
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtKey")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// The crate would ask the system's clock for `exp` and `nbf`; here time comes in as an argument, so both are judged by
/// the caller.
fn signature_only(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

/// A token's header, if the text is a JWT of an algorithm that exists (`none` does not).
pub(super) fn header_of(token: &str) -> Option<Header> {
    jsonwebtoken::decode_header(token).ok()
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
    /// The key could not sign.
    #[error("the key could not sign the token")]
    Sign(#[source] jsonwebtoken::errors::Error),
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
    let mut header = Header::new(key.algorithm);
    header.kid = Some(key.id.to_string());
    let claims = IssuedClaims {
        sub: spec.subject.as_deref(),
        iat: now_s,
        exp: now_s.saturating_add(ttl_s),
        channels: &spec.grant.channels,
        can: &spec.grant.can,
    };
    let token = jsonwebtoken::encode(&header, &claims, &key.signing).map_err(IssueError::Sign)?;
    if token.len() > TOKEN_BYTES_MAX {
        return Err(IssueError::TooLong);
    }
    Ok(token)
}
