//! Encryption and credentials: TLS by rustls, and SASL's PLAIN and SCRAM (RFC 5802, RFC 7677).

use std::{fmt, num::NonZeroU32, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use kafka_protocol::{
    ResponseError,
    messages::{SaslAuthenticateRequest, SaslHandshakeRequest},
    protocol::StrBytes,
};
use ring::{digest, hmac, pbkdf2};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use super::{
    KafkaError,
    error::check,
    wire::{Connection, Socket},
};

/// Rounds of a password's derivation that a broker may ask for: it costs this node's time.
const ROUNDS: std::ops::RangeInclusive<u32> = 4096..=1_000_000;
/// Bytes of a nonce.
const NONCE_BYTES: usize = 18;

/// How brokers are spoken to.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// Encryption; none: in the clear.
    pub tls: Option<Tls>,
    /// Credentials; none: nobody in particular, or whoever the certificate names.
    pub sasl: Option<Sasl>,
}

/// Whom to trust, and who this node is.
#[derive(Clone)]
pub struct Tls(Arc<ClientConfig>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Trusts the authorities of `roots` (PEM), or those that the system trusts. `identity`: this node's certificates and their key (PEM), where brokers ask for
    /// one.
    ///
    /// # Errors
    /// [`KafkaError::Security`].
    pub fn new(roots: Option<&[u8]>, identity: Option<(&[u8], &[u8])>) -> Result<Self, KafkaError> {
        let store = roots.map_or_else(|| Ok(trusted_by_the_system()), trusted)?;
        if store.is_empty() {
            return Err(bad("a list without an authority's certificate"));
        }
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|_| bad("TLS"))?
            .with_root_certificates(store);
        let Some((certificates, key)) = identity else {
            return Ok(Self(Arc::new(builder.with_no_client_auth())));
        };
        let chain = CertificateDer::pem_slice_iter(certificates)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| bad("this node's certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| bad("this node's key"))?;
        let config = builder
            .with_client_auth_cert(chain, key)
            .map_err(|_| bad("this node's certificate and key"))?;
        Ok(Self(Arc::new(config)))
    }
}

fn bad(what: &str) -> KafkaError {
    KafkaError::Security(format!("{what} can't be used"))
}

fn trusted(roots: &[u8]) -> Result<RootCertStore, KafkaError> {
    let unfit = |_| bad("an authority's certificate");
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots) {
        store
            .add(root.map_err(unfit)?)
            .map_err(|_| bad("an authority's certificate"))?;
    }
    Ok(store)
}

/// What of it can't be read is trusted by nobody.
fn trusted_by_the_system() -> RootCertStore {
    let mut store = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    store.add_parsable_certificates(found.certs);
    store
}

/// A name and a password, and how they are shown.
#[derive(Clone)]
pub struct Sasl {
    /// Who.
    pub user: String,
    /// The secret.
    pub password: String,
    /// None: PLAIN, which shows the password to the broker; only with TLS. Else SCRAM, which does not.
    pub scram: Option<Scram>,
}

impl fmt::Debug for Sasl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sasl")
            .field("user", &self.user)
            .field("scram", &self.scram)
            .finish_non_exhaustive()
    }
}

/// Which hash SCRAM uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scram {
    /// SCRAM-SHA-256.
    Sha256,
    /// SCRAM-SHA-512.
    Sha512,
}

impl Security {
    /// Encrypts a connection, if it is to be.
    pub(super) async fn wrap(
        &self,
        tcp: TcpStream,
        address: &str,
    ) -> Result<Box<dyn Socket>, KafkaError> {
        let Some(tls) = &self.tls else {
            return Ok(Box::new(tcp));
        };
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| KafkaError::Security(format!("{host} is no host's name")))?;
        let connector = TlsConnector::from(tls.0.clone());
        let untrusted = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::InvalidData => KafkaError::Security(error.to_string()),
            _ => KafkaError::Connection(error),
        };
        let stream = connector.connect(name, tcp).await.map_err(untrusted)?;
        Ok(Box::new(stream))
    }

    /// Says who this node is, if it is to.
    pub(super) async fn authenticate(&self, connection: &mut Connection) -> Result<(), KafkaError> {
        let Some(sasl) = &self.sasl else {
            return Ok(());
        };
        let mechanism = match sasl.scram {
            None => "PLAIN",
            Some(Scram::Sha256) => "SCRAM-SHA-256",
            Some(Scram::Sha512) => "SCRAM-SHA-512",
        };
        let hello =
            SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(mechanism));
        let answer = connection.call(&hello, 1..=1).await?;
        if check(answer.error_code).is_err() {
            return Err(refused(&format!("{mechanism} is not offered")));
        }
        let Some(hash) = sasl.scram else {
            let plain = format!("\0{}\0{}", sasl.user, sasl.password);
            return exchange(connection, plain).await.map(drop);
        };
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|_| refused("no randomness"))?;
        let client = Client {
            hash,
            password: &sasl.password,
            bare: format!(
                "n={},r={}",
                escaped(&sasl.user),
                BASE64_STANDARD.encode(nonce)
            ),
        };
        let first = exchange(connection, format!("n,,{}", client.bare)).await?;
        let Proof { answer, key, all } = client.prove(&text(&first)?)?;
        let last = text(&exchange(connection, answer).await?)?;
        // The broker shows that it knows the password, too.
        let shown = last.strip_prefix("v=").unwrap_or_default();
        let shown = BASE64_STANDARD.decode(shown.trim_end()).unwrap_or_default();
        hmac::verify(&key, all.as_bytes(), &shown)
            .map_err(|_| refused("the broker does not know the password"))
    }
}

/// What answers a broker's challenge, and by which key the broker then signs all that was said.
struct Proof {
    answer: String,
    key: hmac::Key,
    all: String,
}

/// A client's half of SCRAM.
struct Client<'a> {
    hash: Scram,
    password: &'a str,
    bare: String,
}

impl Client<'_> {
    fn prove(&self, challenge: &str) -> Result<Proof, KafkaError> {
        let field = |name: &str| {
            let mut fields = challenge.split(',');
            let found = fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
            found.ok_or_else(|| refused("its challenge can't be read"))
        };
        let (nonce, salt, rounds) = (field("r")?, field("s")?, field("i")?);
        let ours = self.bare.rsplit_once("r=").map_or("", |(_, nonce)| nonce);
        let salt = BASE64_STANDARD
            .decode(salt)
            .map_err(|_| refused("its salt can't be read"))?;
        let rounds = rounds
            .parse()
            .ok()
            .filter(|rounds| ROUNDS.contains(rounds))
            .and_then(NonZeroU32::new)
            .ok_or_else(|| refused("it asks for too few rounds, or too many"))?;
        if ours.is_empty() || !nonce.starts_with(ours) || nonce.len() == ours.len() {
            return Err(refused("its nonce is not ours"));
        }
        let (derive, mac, hash) = self.algorithms();
        let mut salted = vec![0; hash.output_len()];
        pbkdf2::derive(derive, rounds, &salt, self.password.as_bytes(), &mut salted);
        let sign = |key: &[u8], text: &str| hmac::sign(&hmac::Key::new(mac, key), text.as_bytes());
        let client = sign(&salted, "Client Key");
        let stored = digest::digest(hash, client.as_ref());
        let without_proof = format!("c=biws,r={nonce}");
        let all = format!("{},{challenge},{without_proof}", self.bare);
        let signature = sign(stored.as_ref(), &all);
        let pairs = client.as_ref().iter().zip(signature.as_ref());
        let proof: Vec<u8> = pairs.map(|(key, signature)| key ^ signature).collect();
        Ok(Proof {
            answer: format!("{without_proof},p={}", BASE64_STANDARD.encode(proof)),
            key: hmac::Key::new(mac, sign(&salted, "Server Key").as_ref()),
            all,
        })
    }

    fn algorithms(
        &self,
    ) -> (
        pbkdf2::Algorithm,
        hmac::Algorithm,
        &'static digest::Algorithm,
    ) {
        match self.hash {
            Scram::Sha256 => (
                pbkdf2::PBKDF2_HMAC_SHA256,
                hmac::HMAC_SHA256,
                &digest::SHA256,
            ),
            Scram::Sha512 => (
                pbkdf2::PBKDF2_HMAC_SHA512,
                hmac::HMAC_SHA512,
                &digest::SHA512,
            ),
        }
    }
}

async fn exchange(connection: &mut Connection, said: String) -> Result<Bytes, KafkaError> {
    let request = SaslAuthenticateRequest::default().with_auth_bytes(said.into());
    let answer = connection.call(&request, 1..=2).await?;
    match check(answer.error_code) {
        Err(KafkaError::Refused(ResponseError::SaslAuthenticationFailed)) => {
            Err(refused("name or password are wrong"))
        }
        checked => checked.map(|()| answer.auth_bytes),
    }
}

fn text(bytes: &Bytes) -> Result<String, KafkaError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| refused("its challenge is no text"))
}

fn escaped(user: &str) -> String {
    user.replace('=', "=3D").replace(',', "=2C")
}

fn refused(why: &str) -> KafkaError {
    KafkaError::Security(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchange of RFC 7677, section 3.
    #[test]
    fn scram_answers_as_the_standard_does() {
        let client = Client {
            hash: Scram::Sha256,
            password: "pencil",
            bare: "n=user,r=rOprNGfwEbeRWgbNEkqO".into(),
        };
        let challenge = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let Proof { answer, key, all } = client.prove(challenge).unwrap();
        assert!(answer.ends_with(",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="));
        let expected = BASE64_STANDARD.encode(hmac::sign(&key, all.as_bytes()));
        assert_eq!(expected, "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        for bad in [
            "",
            "r=other,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "r=rOprNGfwEbeRWgbNEkqOx,s=!,i=4096",
            "r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=1",
            "r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=2000000000",
        ] {
            assert!(client.prove(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let sasl = Sasl {
            user: "u".into(),
            password: "hidden".into(),
            scram: None,
        };
        assert!(!format!("{sasl:?}").contains("hidden"));
    }
}
