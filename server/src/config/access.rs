//! `[access]`: who may do what.
//!
//! Does: reads grants, keys and the files that hold secrets. Owns: the defaults of the section.
//! Never knows: how tokens are checked or patterns matched. Keeps: secrets are in no message and in no debug text.

use std::{fmt, time::Duration};

use super::{ChannelPattern, public_key, read_bounded, units::KIB, walk::Section};

/// Shortest secret for HS256, in bytes: that of the hash, as RFC 7518 asks.
const SECRET_MIN: usize = 32;
const SECRET_MAX: usize = 64 * KIB;
const SECRET: &str = "32 bytes to 64KiB";

/// Who may do what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessConfig {
    /// What clients without token or key may do; default: none, so nothing.
    pub anonymous: Option<Grant>,
    /// How long a connection may wait with its token, 100 ms to 5 min; default 10 s.
    pub auth_timeout: Duration,
    /// The cookie that carries a token from pages of allowed origins; default: none.
    pub cookie: Option<String>,
    /// What tokens are signed with. No two have the same id.
    pub jwt_keys: Vec<JwtKeyConfig>,
    /// The keys of programs. No two have the same id or the same hash.
    pub api_keys: Vec<ApiKeyConfig>,
}

impl Default for AccessConfig {
    fn default() -> Self {
        Self {
            anonymous: None,
            auth_timeout: Duration::from_secs(10),
            cookie: None,
            jwt_keys: Vec::new(),
            api_keys: Vec::new(),
        }
    }
}

/// What may be done with which channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The channels, at least one pattern.
    pub channels: Vec<ChannelPattern>,
    /// What may be done with them, at least one thing.
    pub can: Vec<Permission>,
}

/// What may be done with a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    /// Reading: subscribing, and asking for views.
    Subscribe,
    /// Writing.
    Publish,
}

/// How tokens are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JwtAlgorithm {
    /// HMAC with SHA-256: the issuer and the gateway share a secret.
    Hs256,
    /// RSA, PKCS #1 v1.5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

/// The algorithms by their names in tokens.
const ALGORITHMS: [(&str, JwtAlgorithm); 4] = [
    ("HS256", JwtAlgorithm::Hs256),
    ("RS256", JwtAlgorithm::Rs256),
    ("ES256", JwtAlgorithm::Es256),
    ("EdDSA", JwtAlgorithm::EdDsa),
];

/// A key that tokens are signed with.
#[derive(Clone, PartialEq, Eq)]
pub struct JwtKeyConfig {
    /// What a token's `kid` names it by, 1 to 128 characters.
    pub id: String,
    /// The only algorithm that tokens with this `kid` may use.
    pub algorithm: JwtAlgorithm,
    /// What verifies. HS256: the shared secret, 32 bytes to 64 KiB, a file's without the white space around it. RS256: an
    /// `RSAPublicKey` in DER, of 2048 to 8192 bits. ES256: an uncompressed point. `EdDSA`: the 32 bytes of the public key.
    pub key: Vec<u8>,
}

impl fmt::Debug for JwtKeyConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, algorithm, .. } = self;
        f.debug_struct("JwtKeyConfig")
            .field("id", id)
            .field("algorithm", algorithm)
            .finish_non_exhaustive()
    }
}

/// A program's key, of which only the hash is known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKeyConfig {
    /// What logs and metrics call it, 1 to 128 characters.
    pub id: String,
    /// The SHA-256 of the key's text.
    pub sha256: [u8; 32],
    /// The channels, at least one pattern.
    pub channels: Vec<ChannelPattern>,
    /// What may be done with them, at least one thing.
    pub can: Vec<Permission>,
}

impl AccessConfig {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        let timeouts = Duration::from_millis(100)..=Duration::from_secs(300);
        let jwt_keys = section.tables("jwt_keys").unwrap_or_default();
        let api_keys = section.tables("api_keys").unwrap_or_default();
        Self {
            anonymous: section
                .optional_table("anonymous")
                .map(|mut section| Grant::read_anonymous(&mut section)),
            auth_timeout: section
                .duration("auth_timeout", timeouts)
                .unwrap_or(default.auth_timeout),
            cookie: section.text("cookie", "a cookie's name", parse_cookie),
            jwt_keys: jwt_keys
                .into_iter()
                .filter_map(|mut section| JwtKeyConfig::read(&mut section))
                .collect(),
            api_keys: api_keys
                .into_iter()
                .filter_map(|mut section| ApiKeyConfig::read(&mut section))
                .collect(),
        }
    }
}

const PATTERN: &str = "stream/name, where * may stand last and {sub} is the only placeholder";

impl Grant {
    /// Who is anonymous has no subject.
    fn read_anonymous(section: &mut Section<'_>) -> Self {
        let expected = "stream/name, where * may stand last; {sub} is nobody here";
        let fits = |text: &str| !text.contains("{sub}");
        let channels = section.some_texts("channels", expected, |text| {
            ChannelPattern::parse(text).filter(|_| fits(text))
        });
        Self {
            channels,
            can: read_permissions(section),
        }
    }
}

fn read_permissions(section: &mut Section<'_>) -> Vec<Permission> {
    section.some_texts("can", "\"subscribe\" or \"publish\"", |text| match text {
        "subscribe" => Some(Permission::Subscribe),
        "publish" => Some(Permission::Publish),
        _ => None,
    })
}

impl JwtKeyConfig {
    fn read(section: &mut Section<'_>) -> Option<Self> {
        section.need(
            "algorithm",
            "\"HS256\" or \"RS256\" or \"ES256\" or \"EdDSA\"",
        );
        let id = read_id(section);
        let given = section.has("algorithm");
        let algorithm = section.choice("algorithm", &ALGORITHMS);
        if given && algorithm.is_none() {
            // What a key of no algorithm should look like can't be said.
            section.forget();
            return None;
        }
        let key = match algorithm.unwrap_or(JwtAlgorithm::Hs256) {
            JwtAlgorithm::Hs256 => read_secret(section),
            public => read_public_key(section, public),
        };
        Some(Self {
            id: id?,
            algorithm: algorithm?,
            key: key?,
        })
    }
}

impl ApiKeyConfig {
    fn read(section: &mut Section<'_>) -> Option<Self> {
        let hash = "the key's SHA-256, 64 hexadecimal digits";
        section.need("sha256", hash);
        let id = read_id(section);
        let sha256 = section.secret("sha256", hash, parse_sha256);
        if let Some(hash) = &sha256 {
            section.unique("sha256", &format!("{hash:02x?}"));
        }
        let channels = section.some_texts("channels", PATTERN, ChannelPattern::parse);
        let can = read_permissions(section);
        Some(Self {
            id: id?,
            sha256: sha256?,
            channels,
            can,
        })
    }
}

fn read_id(section: &mut Section<'_>) -> Option<String> {
    let expected = "an id, 1 to 128 visible ASCII characters";
    section.need("id", expected);
    let fits =
        |text: &str| (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    let id = section.text("id", expected, |text| fits(text).then(|| text.to_owned()))?;
    section.unique("id", &id);
    Some(id)
}

fn read_secret(section: &mut Section<'_>) -> Option<Vec<u8>> {
    let fits = |secret: &[u8]| (SECRET_MIN..=SECRET_MAX).contains(&secret.len());
    let (in_file, inline) = (section.has("file"), section.has("secret"));
    let file = read_path(section);
    let secret = section.secret("secret", SECRET, |text| {
        fits(text.as_bytes()).then(|| text.as_bytes().to_vec())
    });
    match (in_file, inline) {
        (true, true) => section.note("secret", "a secret beside a file", "either file or secret"),
        (false, false) => section.note("file", "nothing", "file or secret"),
        (false, true) => return secret,
        (true, false) => {}
    }
    let bytes = read_key_file(section, &file?)?;
    if fits(bytes.trim_ascii()) {
        return Some(bytes.trim_ascii().to_vec());
    }
    section.note(
        "file",
        format!("a secret of {} bytes", bytes.trim_ascii().len()),
        SECRET,
    );
    None
}

/// A public key is in a file, and nowhere else.
fn read_public_key(section: &mut Section<'_>, algorithm: JwtAlgorithm) -> Option<Vec<u8>> {
    let expected = public_key::expected(algorithm);
    if section.has("secret") {
        section.note("secret", "a secret", format!("a file with {expected}"));
        // Its value is not looked at.
        section.secret("secret", "", |_| Some(()));
    } else {
        section.need("file", expected);
    }
    let file = read_path(section);
    let bytes = read_key_file(section, &file?)?;
    public_key::read(&bytes, algorithm)
        .map_err(|found| section.note("file", found, expected))
        .ok()
}

fn read_path(section: &mut Section<'_>) -> Option<String> {
    section.text("file", "the path of a file", |text| {
        (!text.is_empty()).then(|| text.to_owned())
    })
}

fn read_key_file(section: &Section<'_>, file: &str) -> Option<Vec<u8>> {
    let path = section.base().join(file);
    let noted = |error| {
        section.note(
            "file",
            format!("{:?} ({error})", path.display().to_string()),
            "a file that can be read, 64KiB at most",
        );
    };
    read_bounded(&path, SECRET_MAX).map_err(noted).ok()
}

fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(hash)
}

/// A token of RFC 6265.
fn parse_cookie(text: &str) -> Option<String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    ((1..=128).contains(&text.len()) && text.bytes().all(fits)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_read() {
        assert_eq!(parse_sha256(&"0f".repeat(32)), Some([15; 32]));
        assert_eq!(parse_sha256(&"FF".repeat(32)), Some([255; 32]));
        for bad in [
            "",
            &"0f".repeat(31),
            &"0g".repeat(32),
            &"+f".repeat(32),
            &"é".repeat(32),
        ] {
            assert_eq!(parse_sha256(bad), None);
        }
    }
}
