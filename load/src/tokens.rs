//! The tokens that subscribers show.
//!
//! Does: signs a token for each subscriber before anything is measured, as an issuer would. Owns: the tokens. Never knows:
//! connections. Keeps: no two subscribers have the same one, so a server that remembers tokens gains nothing by it.

use std::{path::Path, time::SystemTime};

use anyhow::{Context as _, Result};
use jsonwebtoken::{Algorithm, EncodingKey, Header};

/// How long a token holds, in seconds.
const HOLDS_S: u64 = 3600;

/// What subscribers show.
#[derive(Debug, Clone, Default)]
pub(crate) enum Tokens {
    /// Nothing.
    #[default]
    None,
    /// All the same.
    Shared(String),
    /// Each its own.
    Own(Vec<String>),
}

/// What signs tokens.
pub(crate) struct Signer {
    key: EncodingKey,
    header: Header,
    expires: u64,
}

impl Signer {
    /// Signs with the HS256 secret in `file`, as key `kid`.
    ///
    /// # Errors
    /// When the file can't be read.
    pub(crate) fn new(file: &Path, kid: &str) -> Result<Self> {
        let secret =
            std::fs::read_to_string(file).with_context(|| format!("secret {}", file.display()))?;
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(kid.to_owned());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        Ok(Self {
            key: EncodingKey::from_secret(secret.trim().as_bytes()),
            header,
            expires: now.as_secs() + HOLDS_S,
        })
    }

    /// A token of this subject, who may do everything with these channels.
    pub(crate) fn token(&self, subject: &str, channels: &[&str]) -> Result<String> {
        let claims = serde_json::json!({
            "sub": subject,
            "exp": self.expires,
            "channels": channels,
            "can": ["subscribe", "publish"],
        });
        jsonwebtoken::encode(&self.header, &claims, &self.key).context("signing a token")
    }
}

impl Tokens {
    /// Signs `count` tokens with the HS256 secret in `file`, as key `kid`.
    ///
    /// # Errors
    /// When the file can't be read.
    pub(crate) fn sign(file: &Path, kid: &str, count: u32) -> Result<Self> {
        let signer = Signer::new(file, kid)?;
        let token = |number: u32| signer.token(&format!("reader-{number}"), &["bench/*"]);
        Ok(Self::Own(
            (0..count.max(1)).map(token).collect::<Result<_>>()?,
        ))
    }

    /// The token of the `nth` subscriber; there may be more of them than tokens.
    pub(crate) fn of(&self, nth: usize) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Shared(token) => Some(token),
            Self::Own(tokens) => tokens.get(nth % tokens.len().max(1)).map(String::as_str),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_token_of_their_own() {
        let file = std::env::temp_dir().join(format!("tidegate-load-{}", std::process::id()));
        std::fs::write(&file, "a secret of at least thirty-two bytes\n").unwrap();
        let tokens = Tokens::sign(&file, "k", 2);
        std::fs::remove_file(&file).unwrap();
        let tokens = tokens.unwrap();
        assert_ne!(tokens.of(0), tokens.of(1));
        assert_eq!(tokens.of(0), tokens.of(2));
        assert_eq!(tokens.of(0).unwrap().split('.').count(), 3);
    }
}
