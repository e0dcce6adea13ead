//! Who a client is, and what it may do: tokens, keys, permissions.
//!
//! Does: turns a token (a JWT or an API key) and a time into [`Claims`], or a reason for refusing it; answers what
//! claims permit.
//! Owns: the keys. Never knows: a clock, a socket, a file, which transport brought the token.
//! Keeps: what is not granted is refused, so nothing configured grants nothing; the algorithm is the key's, never the
//! token's; the work for a token is bounded before it begins; no error tells more than its holder may know.
//!
//! A token grants by two claims of its own: `"channels": ["departures/*", "user/{sub}/*"]` and
//! `"can": ["subscribe", "publish"]`. `exp` is required, `nbf` respected, `sub` optional; other claims are ignored.

mod grant;
mod jwt;
mod key;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, fmt, sync::Arc};

use sha2::{Digest, Sha256};

use crate::model::Channel;
use grant::Rights;
pub use grant::{Grant, GrantError, GrantSpec, PATTERNS_MAX, Pattern, PatternError, Permission};
pub use jwt::{IssueError, TokenSpec, issue};
use jwt::{Parts, WireClaims};
pub use key::{HS256_SECRET_MIN, JwtKey, KeyError};

/// Longest token, in bytes; a longer one is refused unread.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// How far the issuer's clock may differ from ours, in seconds: a token is accepted this long before its `nbf` and
/// after its `exp`.
pub const LEEWAY_S: u64 = 5;

/// The key id in the claims of a client without a token.
const ANONYMOUS: &str = "anonymous";

/// Who a client is and what it may do. A connection keeps them as long as it lives, so they are small: one text for all
/// that is a client's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    key_id: Arc<str>,
    expires_at_s: Option<u64>,
    /// The subject, and behind it the patterns of the grant, a line each.
    text: Box<str>,
    /// Bytes of the subject; none without one.
    subject_bytes: Option<u32>,
    rights: Rights,
}

impl Claims {
    /// What `grant` permits to `subject`, vouched for by the key `key_id`, until `expires_at_s`.
    ///
    /// # Panics
    /// When the subject has 4 GiB or more, which no token has room for.
    #[must_use]
    pub fn new(
        key_id: Arc<str>,
        subject: Option<&str>,
        expires_at_s: Option<u64>,
        grant: &Grant,
    ) -> Self {
        let bytes = |subject: &str| u32::try_from(subject.len()).expect("a token is short");
        Self {
            key_id,
            expires_at_s,
            text: [subject.unwrap_or_default(), &grant.patterns]
                .concat()
                .into(),
            subject_bytes: subject.map(bytes),
            rights: grant.rights,
        }
    }

    /// The id of the key that vouches for it; `anonymous` without one.
    #[must_use]
    pub const fn key_id(&self) -> &Arc<str> {
        &self.key_id
    }

    /// Whom the token is for, as its issuer said.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.subject_bytes.map(|_| self.parts().0)
    }

    /// From when on the claims no longer hold, in seconds since 1970, with the leeway added. None: they hold as long as
    /// the configuration.
    #[must_use]
    pub const fn expires_at_s(&self) -> Option<u64> {
        self.expires_at_s
    }

    /// Whether they permit this with this channel.
    #[must_use]
    pub fn may(&self, permission: Permission, channel: &Channel) -> bool {
        self.rights.permit(self.parts().1, permission, channel)
    }

    /// Whether they permit publishing to some channel of this stream; each record's channel is still to be asked for.
    #[must_use]
    pub fn may_publish_stream(&self, stream: &str) -> bool {
        self.rights.permit_publish(self.parts().1, stream)
    }

    /// Whether they no longer hold at `now_s`, in seconds since 1970.
    #[must_use]
    pub fn expired(&self, now_s: u64) -> bool {
        self.expires_at_s.is_some_and(|end| now_s >= end)
    }

    /// The subject, and the patterns.
    fn parts(&self) -> (&str, &str) {
        self.text
            .split_at(self.subject_bytes.unwrap_or_default() as usize)
    }
}

/// Why a token that nobody vouches for was refused. For the log and for counting; the client is not told which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// Empty, or longer than [`TOKEN_BYTES_MAX`].
    #[error("the token is empty or longer than {TOKEN_BYTES_MAX} bytes")]
    Length,
    /// No configured key: an API key that is not known, a `kid` that is not, or none where there are several keys.
    #[error("no configured key matches the token")]
    UnknownKey,
    /// A header that names another algorithm than the key's.
    #[error("the token's algorithm is not its key's")]
    Algorithm,
    /// A header with extensions that must be understood.
    #[error("the token's header has critical extensions")]
    Critical,
    /// The key has not signed this.
    #[error("the token's signature does not hold")]
    Signature,
}

/// What is wrong with the claims of a token that a configured key has signed. Its holder may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClaimFault {
    /// A claim of the wrong type, or a permission that does not exist.
    #[error(
        "exp and nbf are numbers, sub is text, channels a list of text, can a list of subscribe and publish"
    )]
    Shape,
    /// A token that would be valid for ever.
    #[error("exp is missing")]
    NoExpiry,
    /// Patterns that mean nothing.
    #[error(transparent)]
    Grant(#[from] GrantError),
}

/// Why a token was refused. The message may be told to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Garbled, forged, or of a key that is not configured: to the client all the same.
    #[error("the token is not valid here; get one from whoever runs this service")]
    Refused(#[from] Refusal),
    /// Genuine, but its claims cannot be honoured.
    #[error("the token's claims cannot be used: {0}")]
    Claims(#[from] ClaimFault),
    /// `exp` has passed.
    #[error("the token has expired; get a fresh one")]
    Expired,
    /// `nbf` is to come.
    #[error("the token is not valid yet; check the clock of whoever issued it")]
    NotYetValid,
}

impl AuthError {
    /// The stable code that a client is told.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(_) | Self::Claims(_) => "unauthorized",
            Self::Expired => "token_expired",
            Self::NotYetValid => "not_yet_valid",
        }
    }
}

/// An API key: an opaque text of which only the hash is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// What logs call it.
    pub id: String,
    /// SHA-256 of the key's text; [`hash_api_key`] makes it.
    pub sha256: [u8; 32],
    /// What it grants; without `{sub}`, since it has no subject.
    pub grant: GrantSpec,
}

/// The SHA-256 by which an API key is configured and found.
#[must_use]
pub fn hash_api_key(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Why an [`Authority`] could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// Two JWT keys of one id.
    #[error("two JWT keys have the id {0:?}; a token's kid has to name one")]
    DuplicateJwtKey(Arc<str>),
    /// Two API keys of one hash.
    #[error("API key {0:?} has the same hash as another")]
    DuplicateApiKey(Arc<str>),
    /// A grant that means nothing.
    #[error("the grant of {id:?} cannot be used: {why}")]
    Grant {
        /// The API key's id, or `anonymous`.
        id: Arc<str>,
        /// What is wrong.
        why: GrantError,
    },
}

/// Everybody who may vouch for a client. The default vouches for nobody.
#[derive(Default)]
pub struct Authority {
    jwt: HashMap<Arc<str>, JwtKey>,
    api: HashMap<[u8; 32], Arc<Claims>>,
    anonymous: Option<Arc<Claims>>,
}

impl Authority {
    /// Takes the keys that sign tokens, the API keys, and what a client without a token may do.
    ///
    /// # Errors
    /// [`AuthorityError`] when two keys cannot be told apart or a grant is wrong.
    pub fn new(
        jwt: Vec<JwtKey>,
        api: Vec<ApiKey>,
        anonymous: Option<GrantSpec>,
    ) -> Result<Self, AuthorityError> {
        let mut authority = Self::default();
        for key in jwt {
            let id = key.id().clone();
            if authority.jwt.insert(id.clone(), key).is_some() {
                return Err(AuthorityError::DuplicateJwtKey(id));
            }
        }
        for key in api {
            let claims = standing_claims(&key.id, &key.grant)?;
            let id = claims.key_id().clone();
            if authority.api.insert(key.sha256, claims).is_some() {
                return Err(AuthorityError::DuplicateApiKey(id));
            }
        }
        authority.anonymous = anonymous
            .map(|grant| standing_claims(ANONYMOUS, &grant))
            .transpose()?;
        Ok(authority)
    }

    /// Who the holder of this token is at `now_s`, in seconds since 1970.
    ///
    /// A text of three parts whose first is the header of a JWT is judged as one and nothing else; any other text is
    /// looked up as an API key.
    ///
    /// # Errors
    /// [`AuthError`].
    pub fn verify(&self, token: &str, now_s: u64) -> Result<Arc<Claims>, AuthError> {
        if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::Length.into());
        }
        let Some(parts) = Parts::of(token) else {
            return self.verify_api_key(token);
        };
        let key = self.jwt_key(parts.kid()).ok_or(Refusal::UnknownKey)?;
        claims_at(parts.open(key)?, key.id(), now_s).map(Arc::new)
    }

    /// What a client without a token may do; none where it has to bring one.
    #[must_use]
    pub fn anonymous(&self) -> Option<Arc<Claims>> {
        self.anonymous.clone()
    }

    /// The table compares hashes, not keys, and takes the time it takes: what that time tells is how a guess's hash
    /// differs from a real one, and nobody can choose a text to come nearer to a given SHA-256. So the comparison need
    /// not be constant in time, and the keys themselves are nowhere in memory.
    fn verify_api_key(&self, token: &str) -> Result<Arc<Claims>, AuthError> {
        let known = self.api.get(&hash_api_key(token)).cloned();
        known.ok_or(Refusal::UnknownKey.into())
    }

    /// A token without `kid` is of the only key, if there is only one.
    fn jwt_key(&self, kid: Option<&str>) -> Option<&JwtKey> {
        match kid {
            Some(kid) => self.jwt.get(kid),
            None if self.jwt.len() == 1 => self.jwt.values().next(),
            None => None,
        }
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("jwt_keys", &self.jwt.len())
            .field("api_keys", &self.api.len())
            .field("anonymous", &self.anonymous.is_some())
            .finish()
    }
}

/// The claims of a key that has no subject and no end.
fn standing_claims(id: &str, grant: &GrantSpec) -> Result<Arc<Claims>, AuthorityError> {
    let key_id: Arc<str> = id.into();
    match grant.resolve(None) {
        Ok(grant) => Ok(Arc::new(Claims::new(key_id, None, None, &grant))),
        Err(why) => Err(AuthorityError::Grant { id: key_id, why }),
    }
}

/// What signed claims mean at a time.
fn claims_at(mut wire: WireClaims, key_id: &Arc<str>, now_s: u64) -> Result<Claims, AuthError> {
    let expiry = wire.exp.ok_or(ClaimFault::NoExpiry)?.seconds();
    let not_before = wire.nbf.map_or(0, |nbf| nbf.seconds());
    let subject = wire.sub.take();
    let grant = wire.grant().resolve(subject.as_deref());
    let grant = grant.map_err(ClaimFault::Grant)?;
    let end = expiry.saturating_add(LEEWAY_S);
    let claims = Claims::new(key_id.clone(), subject.as_deref(), Some(end), &grant);
    if claims.expired(now_s) {
        return Err(AuthError::Expired);
    }
    if now_s.saturating_add(LEEWAY_S) < not_before {
        return Err(AuthError::NotYetValid);
    }
    Ok(claims)
}
