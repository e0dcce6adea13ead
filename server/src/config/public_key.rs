//! A public key as people keep it → the bytes that verify.
//!
//! Does: reads the PEM of a SubjectPublicKeyInfo and says what else it found: a private key, a certificate, another kind of
//! key, another curve, another size. Owns: which keys an algorithm takes. Never knows: signatures. Keeps: nothing of the
//! file is in a message.

use pkcs1::{RsaPublicKey, der::Decode};
use spki::{ObjectIdentifier, SubjectPublicKeyInfoRef, der::pem};

use super::JwtAlgorithm;

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const RSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");
const SECP256K1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.10");
const X25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.110");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const ED448: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.113");

/// Fewest and most bits of an RSA key: fewer are weak (RFC 7518, section 3.3), more cost whoever verifies.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// What the file of a key should have.
pub(super) fn expected(algorithm: JwtAlgorithm) -> &'static str {
    match algorithm {
        JwtAlgorithm::Hs256 => "a secret",
        JwtAlgorithm::Rs256 => {
            "the PEM of an RSA public key of 2048 to 8192 bits (openssl pkey -in PRIVATE -pubout)"
        }
        JwtAlgorithm::Es256 => {
            "the PEM of a P-256 public key, uncompressed (openssl pkey -in PRIVATE -pubout)"
        }
        JwtAlgorithm::EdDsa => {
            "the PEM of an Ed25519 public key (openssl pkey -in PRIVATE -pubout)"
        }
    }
}

/// The bytes that verify; or what the file has instead.
pub(super) fn read(file: &[u8], algorithm: JwtAlgorithm) -> Result<Vec<u8>, String> {
    let der = unwrap_pem(file)?;
    let broken = || "a public key whose DER can't be read".to_owned();
    let info = SubjectPublicKeyInfoRef::from_der(&der).map_err(|_| broken())?;
    let bits = info.subject_public_key.as_bytes().ok_or_else(broken)?;
    match (algorithm, info.algorithm.oid) {
        (JwtAlgorithm::Rs256, RSA) => rsa(bits),
        (JwtAlgorithm::Es256, EC) if curve(&info) == Some(P256) => p256(bits),
        (JwtAlgorithm::EdDsa, ED25519) if bits.len() == 32 => Ok(bits.to_vec()),
        (_, ED25519) if bits.len() != 32 => Err(broken()),
        _ => Err(name(&info)),
    }
}

/// The DER of a public key; or what else the PEM is.
fn unwrap_pem(file: &[u8]) -> Result<Vec<u8>, String> {
    let label = pem::decode_label(file.trim_ascii_start());
    match label.map_err(|_| "no PEM".to_owned())? {
        "PUBLIC KEY" => {}
        "CERTIFICATE" | "TRUSTED CERTIFICATE" => {
            return Err("a certificate (openssl x509 -pubkey -noout gives its key)".into());
        }
        "RSA PUBLIC KEY" => {
            return Err("a key in PKCS #1 form (openssl rsa -RSAPublicKey_in converts it)".into());
        }
        label if label.ends_with("PRIVATE KEY") => {
            return Err("a private key, which only the issuer of tokens should have".into());
        }
        _ => return Err("the PEM of something that is no key".into()),
    }
    let (_, der) = pem::decode_vec(file.trim_ascii_start())
        .map_err(|_| "a PEM that can't be read (one block, lines of 64 characters)".to_owned())?;
    Ok(der)
}

fn rsa(bits: &[u8]) -> Result<Vec<u8>, String> {
    let key = RsaPublicKey::from_der(bits);
    let modulus = key.map_err(|_| "an RSA key whose DER can't be read".to_owned())?;
    let modulus = modulus.modulus.as_bytes();
    let spare = modulus
        .first()
        .map_or(0, |first| first.leading_zeros() as usize);
    let size = modulus.len() * 8 - spare;
    if RSA_BITS.contains(&size) {
        Ok(bits.to_vec())
    } else {
        Err(format!("an RSA key of {size} bits"))
    }
}

fn p256(point: &[u8]) -> Result<Vec<u8>, String> {
    match point.first() {
        Some(4) if point.len() == 65 => Ok(point.to_vec()),
        Some(2 | 3) => {
            Err("a compressed point (openssl ec -pubin -conv_form uncompressed converts it)".into())
        }
        _ => Err("an EC public key without a point".into()),
    }
}

type Info<'a> = SubjectPublicKeyInfoRef<'a>;

fn curve(info: &Info<'_>) -> Option<ObjectIdentifier> {
    info.algorithm.parameters_oid().ok()
}

fn name(info: &Info<'_>) -> String {
    let of_curve = |name| format!("an EC public key on {name}");
    match info.algorithm.oid {
        RSA => "an RSA public key".into(),
        RSA_PSS => "an RSA-PSS public key".into(),
        X25519 => "an X25519 public key, which signs nothing".into(),
        ED25519 => "an Ed25519 public key".into(),
        ED448 => "an Ed448 public key".into(),
        EC => match curve(info) {
            Some(P256) => of_curve("P-256"),
            Some(P384) => of_curve("P-384"),
            Some(P521) => of_curve("P-521"),
            Some(SECP256K1) => of_curve("secp256k1"),
            _ => of_curve("another curve"),
        },
        other => format!("a public key of another kind ({other})"),
    }
}
