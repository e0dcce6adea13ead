//! What is accepted and what is not. Tokens are made by hand where `issue` would refuse to make them.

mod forgeries;
mod keys;
mod patterns;
mod properties;
mod public_keys;
mod tokens;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::*;

const NOW: u64 = 1_700_000_000;
const SECRET: &[u8] = b"a secret of thirty-two bytes, ok";
const OTHER: &[u8] = b"another secret, also 32 bytes ok";
const API_KEY: &str = "tg_3f9a71c2d5";

fn key(id: &str, secret: &[u8]) -> JwtKey {
    JwtKey::hs256(id, secret).unwrap()
}

fn grant(channels: &[&str], can: &[Permission]) -> GrantSpec {
    GrantSpec {
        channels: channels.iter().map(ToString::to_string).collect(),
        can: can.to_vec(),
    }
}

/// One JWT key `k1`, one API key that may publish departures, anonymous reading of departures.
fn authority() -> Authority {
    let loader = ApiKey {
        id: "loader".into(),
        sha256: hash_api_key(API_KEY),
        grant: grant(&["departures/*"], &[Permission::Publish]),
    };
    let anonymous = grant(&["departures/*"], &[Permission::Subscribe]);
    Authority::new(vec![key("k1", SECRET)], vec![loader], Some(anonymous)).unwrap()
}

fn channel(text: &str) -> Channel {
    text.parse().unwrap()
}

/// Any header and claims under a true HMAC of any kind.
fn signed(header: &Header, claims: &Value, secret: &[u8]) -> String {
    jsonwebtoken::encode(header, claims, &EncodingKey::from_secret(secret)).unwrap()
}

fn header(algorithm: Algorithm, kid: Option<&str>) -> Header {
    let mut header = Header::new(algorithm);
    header.kid = kid.map(Into::into);
    header
}

/// Claims under the good key `k1`.
fn good(claims: &Value) -> String {
    signed(&header(Algorithm::HS256, Some("k1")), claims, SECRET)
}

/// A token of parts that need not be JSON, under a true HMAC-SHA-256 of the good key.
fn signed_raw(header: &str, claims: &[u8]) -> String {
    let message = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(claims)
    );
    let key = EncodingKey::from_secret(SECRET);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

fn full() -> Value {
    json!({"sub": "ana", "exp": NOW + 60, "channels": ["departures/*", "user/{sub}/*"], "can": ["subscribe", "publish"]})
}

/// The full claims with one of them replaced; null takes it away.
fn full_but(name: &str, value: Value) -> Value {
    let mut claims = full();
    match value {
        Value::Null => claims.as_object_mut().unwrap().remove(name),
        other => claims.as_object_mut().unwrap().insert(name.into(), other),
    };
    claims
}
