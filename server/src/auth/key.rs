//! The keys that tokens are signed with.
//!
//! Does: checks a signature with one key; signs with a shared secret. Owns: secrets, which it shows to nobody. Never knows:
//! what a token says. Keeps: a key has one algorithm, for good: what a token claims of itself changes nothing.

use std::{fmt, sync::Arc};

use ring::{
    hmac,
    signature::{
        ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
        VerificationAlgorithm,
    },
};

/// Shortest secret of an HS256 key, in bytes: what RFC 7518, section 3.2, demands.
pub const HS256_SECRET_MIN: usize = 32;
/// An uncompressed point of P-256: 4, and two coordinates.
const P256_POINT: usize = 65;
/// A public key of Ed25519.
const ED25519_POINT: usize = 32;

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
    /// Bytes that can't be a key of its algorithm.
    #[error("the key is none for {0}")]
    Shape(&'static str),
}

/// How a signature is checked.
#[derive(Clone)]
enum Means {
    /// By whoever shares the secret.
    Secret(hmac::Key),
    /// By whoever has the public half.
    Public(UnparsedPublicKey<Vec<u8>>),
}

/// A key that signs tokens, with the one algorithm that it is for.
#[derive(Clone)]
pub struct JwtKey {
    id: Arc<str>,
    algorithm: &'static str,
    means: Means,
}

impl JwtKey {
    /// A shared secret for HMAC with SHA-256. `id` is what tokens name as `kid`.
    ///
    /// # Errors
    /// [`KeyError`] when the id is empty or the secret shorter than [`HS256_SECRET_MIN`].
    pub fn hs256(id: &str, secret: &[u8]) -> Result<Self, KeyError> {
        if secret.len() < HS256_SECRET_MIN {
            return Err(KeyError::ShortSecret);
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        Self::new(id, "HS256", Means::Secret(key))
    }

    /// An RSA key of 2048 to 8192 bits, for PKCS #1 v1.5 with SHA-256; `pkcs1` is its `RSAPublicKey` in DER. A key of
    /// another size vouches for nothing.
    ///
    /// # Errors
    /// [`KeyError`] when the id or the key is empty.
    pub fn rs256(id: &str, pkcs1: &[u8]) -> Result<Self, KeyError> {
        if pkcs1.is_empty() {
            return Err(KeyError::Shape("RS256"));
        }
        Self::public(id, "RS256", &RSA_PKCS1_2048_8192_SHA256, pkcs1)
    }

    /// A key of the curve P-256, for ECDSA with SHA-256; `point` is uncompressed. A point that is not on the curve vouches
    /// for nothing.
    ///
    /// # Errors
    /// [`KeyError`] when the id is empty or the point has another length or form.
    pub fn es256(id: &str, point: &[u8]) -> Result<Self, KeyError> {
        if point.len() != P256_POINT || point.first() != Some(&4) {
            return Err(KeyError::Shape("ES256"));
        }
        Self::public(id, "ES256", &ECDSA_P256_SHA256_FIXED, point)
    }

    /// A key of Ed25519.
    ///
    /// # Errors
    /// [`KeyError`] when the id is empty or the key has another length.
    pub fn eddsa(id: &str, point: &[u8]) -> Result<Self, KeyError> {
        if point.len() != ED25519_POINT {
            return Err(KeyError::Shape("EdDSA"));
        }
        Self::public(id, "EdDSA", &ED25519, point)
    }

    fn public(
        id: &str,
        algorithm: &'static str,
        how: &'static dyn VerificationAlgorithm,
        key: &[u8],
    ) -> Result<Self, KeyError> {
        let key = UnparsedPublicKey::new(how, key.to_vec());
        Self::new(id, algorithm, Means::Public(key))
    }

    fn new(id: &str, algorithm: &'static str, means: Means) -> Result<Self, KeyError> {
        if id.is_empty() {
            return Err(KeyError::NoId);
        }
        Ok(Self {
            id: id.into(),
            algorithm,
            means,
        })
    }

    /// What tokens name as `kid`.
    #[must_use]
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// What tokens of this key name as `alg`.
    #[must_use]
    pub const fn algorithm(&self) -> &'static str {
        self.algorithm
    }

    /// Whether this key has signed this message so.
    pub(super) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.means {
            Means::Secret(key) => hmac::verify(key, message, signature).is_ok(),
            Means::Public(key) => key.verify(message, signature).is_ok(),
        }
    }

    /// A signature, if this key can make one: a public key can't.
    pub(super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        match &self.means {
            Means::Secret(key) => Some(hmac::sign(key, message).as_ref().to_vec()),
            Means::Public(_) => None,
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
