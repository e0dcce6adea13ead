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

impl Tokens {
    /// Signs `count` tokens with the HS256 secret in `file`, as key `kid`.
    ///
    /// # Errors
    /// When the file can't be read.
    pub(crate) fn sign(file: &Path, kid: &str, count: u32) -> Result<Self> {
        let secret =
            std::fs::read_to_string(file).with_context(|| format!("secret {}", file.display()))?;
        let key = EncodingKey::from_secret(secret.trim().as_bytes());
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(kid.to_owned());
        let expires = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)?
            .as_secs()
            + HOLDS_S;
        let token = |number: u32| {
            let claims = serde_json::json!({
                "sub": format!("reader-{number}"),
                "exp": expires,
                "channels": ["bench/*"],
                "can": ["subscribe", "publish"],
            });
            jsonwebtoken::encode(&header, &claims, &key).context("signing a token")
        };
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
