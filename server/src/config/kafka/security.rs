//! `tls`, `sasl` and what belongs to them: how brokers are spoken to.
//!
//! Keeps: passwords are in files, and neither they nor keys are in any message or debug text; a password is never shown to
//! whoever listens on the line.

use std::fmt;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::super::{
    files::{read_file, read_password},
    walk::Section,
};

/// How brokers are spoken to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KafkaSecurity {
    /// Encryption; default: none.
    pub tls: Option<KafkaTls>,
    /// Credentials; default: none.
    pub sasl: Option<KafkaSasl>,
}

/// Whom to trust, and who this node is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct KafkaTls {
    /// The authorities, in PEM, that a broker's certificate must come from; default: those that the system trusts.
    pub ca_pem: Option<Vec<u8>>,
    /// This node's certificates and their key, in PEM, where brokers ask for one; default: none.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for KafkaTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaTls").finish_non_exhaustive()
    }
}

/// A name and a password, and how they are shown.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaSasl {
    /// How.
    pub mechanism: SaslMechanism,
    /// Who.
    pub user: String,
    /// The password, from its file.
    pub password: String,
}

impl fmt::Debug for KafkaSasl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSasl")
            .field("mechanism", &self.mechanism)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// How a password is shown to a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    /// As it is; only where the line is encrypted.
    Plain,
    /// By a proof that does not contain it: SCRAM-SHA-256.
    Scram256,
    /// The same: SCRAM-SHA-512.
    Scram512,
}

/// The words of `sasl`.
const MECHANISMS: [(&str, SaslMechanism); 3] = [
    ("plain", SaslMechanism::Plain),
    ("scram-sha-256", SaslMechanism::Scram256),
    ("scram-sha-512", SaslMechanism::Scram512),
];
/// The keys that mean something with TLS only.
const OF_TLS: [&str; 3] = ["ca_file", "cert_file", "key_file"];
/// The keys that mean something with SASL only.
const OF_SASL: [&str; 2] = ["user", "password_file"];

impl KafkaSecurity {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let has_tls = section.flag("tls").unwrap_or(false);
        if !has_tls {
            let found = OF_TLS.into_iter().filter(|key| section.has(key));
            for key in found.collect::<Vec<_>>() {
                section.note(key, "a file", "tls = true beside it");
            }
        }
        let tls = KafkaTls::read(section);
        let sasl = read_sasl(section, has_tls);
        Self {
            tls: has_tls.then_some(tls),
            sasl,
        }
    }
}

impl KafkaTls {
    fn read(section: &mut Section<'_>) -> Self {
        for (key, other) in [("cert_file", "key_file"), ("key_file", "cert_file")] {
            if section.has(key) {
                section.need(other, &format!("a file, since there is a {key}"));
            }
        }
        let certificates = read_pem(section, "ca_file", CERTIFICATES, has_certificates);
        let chain = read_pem(section, "cert_file", CERTIFICATES, has_certificates);
        let key = read_pem(section, "key_file", "a private key in PEM", |pem| {
            PrivateKeyDer::from_pem_slice(pem).is_ok()
        });
        Self {
            ca_pem: certificates,
            identity: chain.zip(key),
        }
    }
}

const CERTIFICATES: &str = "certificates in PEM, at least one";

fn has_certificates(pem: &[u8]) -> bool {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    all.is_ok_and(|all| !all.is_empty())
}

/// A file that `is` what it should be; what is in it is not shown.
fn read_pem(
    section: &mut Section<'_>,
    key: &'static str,
    expected: &str,
    is: impl FnOnce(&[u8]) -> bool,
) -> Option<Vec<u8>> {
    let pem = read_file(section, key)?;
    let good = is(&pem);
    if !good {
        section.note(key, format!("a file of {} bytes", pem.len()), expected);
    }
    good.then_some(pem)
}

fn read_sasl(section: &mut Section<'_>, has_tls: bool) -> Option<KafkaSasl> {
    let given = section.has("sasl");
    for key in OF_SASL {
        if given {
            section.need(
                key,
                "the name and the file of its password, since there is sasl",
            );
        } else if section.has(key) {
            section.note(
                key,
                "a value",
                "sasl = \"scram-sha-512\" or another beside it",
            );
        }
    }
    let mechanism = section.choice("sasl", &MECHANISMS);
    if mechanism == Some(SaslMechanism::Plain) && !has_tls {
        let expected = "tls = true beside it, since it shows the password; or \"scram-sha-512\"";
        section.note("sasl", "\"plain\"", expected);
    }
    let name = "1 to 255 characters without control characters";
    let is_name = |text: &str| (1..=255).contains(&text.len()) && !text.contains(char::is_control);
    let user = section.text("user", name, |text| is_name(text).then(|| text.to_owned()));
    let password = read_password(section);
    Some(KafkaSasl {
        mechanism: mechanism?,
        user: user?,
        password: password?,
    })
}
