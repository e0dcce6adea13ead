//! Keys of which only the public half is here. What other programs signed must hold: examples of the RFCs, and tokens that
//! another implementation makes.

use proptest::prelude::*;

use super::*;

const RSA_PRIVATE: &str = include_str!("../../../../tests/keys/rsa.private.pem");
const RSA_PUBLIC: &str = include_str!("../../../../tests/keys/rsa.public.pem");
const P256_PRIVATE: &str = include_str!("../../../../tests/keys/p256.private.pem");
const P256_PUBLIC: &str = include_str!("../../../../tests/keys/p256.public.pem");
const ED_PRIVATE: &str = include_str!("../../../../tests/keys/ed25519.private.pem");
const ED_PUBLIC: &str = include_str!("../../../../tests/keys/ed25519.public.pem");

const ALL: [Algorithm; 3] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];

fn bytes(base64: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(base64).unwrap()
}

/// A PEM's key as it is verified with: the bit string at its end.
fn public_bits(pem: &str, len: usize) -> Vec<u8> {
    let (_, der) = spki::der::pem::decode_vec(pem.as_bytes()).unwrap();
    der[der.len() - len..].to_vec()
}

fn public(algorithm: Algorithm, id: &str) -> JwtKey {
    match algorithm {
        // 4 bytes of header, 1 + 4 + 256 of modulus, 5 of exponent.
        Algorithm::RS256 => JwtKey::rs256(id, &public_bits(RSA_PUBLIC, 270)),
        Algorithm::ES256 => JwtKey::es256(id, &public_bits(P256_PUBLIC, 65)),
        _ => JwtKey::eddsa(id, &public_bits(ED_PUBLIC, 32)),
    }
    .unwrap()
}

fn private(algorithm: Algorithm) -> EncodingKey {
    match algorithm {
        Algorithm::RS256 => EncodingKey::from_rsa_pem(RSA_PRIVATE.as_bytes()),
        Algorithm::ES256 => EncodingKey::from_ec_pem(P256_PRIVATE.as_bytes()),
        _ => EncodingKey::from_ed_pem(ED_PRIVATE.as_bytes()),
    }
    .unwrap()
}

fn of_public(algorithm: Algorithm) -> Authority {
    Authority::new(vec![public(algorithm, "k")], vec![], None).unwrap()
}

fn token(algorithm: Algorithm) -> String {
    let header = header(algorithm, Some("k"));
    jsonwebtoken::encode(&header, &full(), &private(algorithm)).unwrap()
}

/// RFC 7515, appendix A.2.
mod rfc7515_a2 {
    pub(super) const N: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
    pub(super) const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
}

/// RFC 7515, appendix A.3.
mod rfc7515_a3 {
    pub(super) const X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
    pub(super) const Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";
    pub(super) const TOKEN: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
}

/// RFC 8037, appendix A.4.
mod rfc8037_a4 {
    pub(super) const X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    pub(super) const TOKEN: &str = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
}

/// The end of the RFC's claims.
const EXP: u64 = 1_300_819_380;

#[test]
fn what_the_rfcs_signed_holds() {
    let alone = |key: Result<JwtKey, KeyError>| Authority::new(vec![key.unwrap()], vec![], None);
    let der = [
        &[0x30, 0x82, 0x01, 0x0a, 0x02, 0x82, 0x01, 0x01, 0][..],
        &bytes(rfc7515_a2::N),
        &[2, 3, 1, 0, 1],
    ];
    let rsa = alone(JwtKey::rs256("rsa", &der.concat())).unwrap();
    let point = [vec![4], bytes(rfc7515_a3::X), bytes(rfc7515_a3::Y)];
    let p256 = alone(JwtKey::es256("p256", &point.concat())).unwrap();
    let ed25519 = alone(JwtKey::eddsa("ed25519", &bytes(rfc8037_a4::X))).unwrap();
    for (authority, token, id) in [
        (&rsa, rfc7515_a2::TOKEN, "rsa"),
        (&p256, rfc7515_a3::TOKEN, "p256"),
    ] {
        let claims = authority.verify(token, EXP).unwrap();
        assert_eq!(
            (&**claims.key_id(), claims.expires_at_s()),
            (id, Some(EXP + LEEWAY_S))
        );
        assert_eq!(authority.verify(token, NOW), Err(AuthError::Expired));
    }
    // What this one signs is no JSON: it holds, and then says nothing.
    assert_eq!(
        ed25519.verify(rfc8037_a4::TOKEN, NOW),
        Err(ClaimFault::Shape.into())
    );
    for (authority, token) in [
        (&rsa, rfc7515_a3::TOKEN),
        (&p256, rfc8037_a4::TOKEN),
        (&ed25519, rfc7515_a2::TOKEN),
    ] {
        assert_eq!(authority.verify(token, EXP), Err(Refusal::Algorithm.into()));
    }
}

#[test]
fn what_another_implementation_signs_holds() {
    for algorithm in ALL {
        let claims = of_public(algorithm).verify(&token(algorithm), NOW).unwrap();
        assert_eq!(claims.subject(), Some("ana"), "{algorithm:?}");
        assert!(claims.may(Permission::Publish, &channel("departures/JFK")));
    }
}

/// The public key is no secret: what is signed with its bytes, or with nothing, is signed by anybody.
#[test]
fn a_public_key_is_never_a_secret() {
    for (algorithm, pem) in [
        (Algorithm::RS256, RSA_PUBLIC),
        (Algorithm::ES256, P256_PUBLIC),
        (Algorithm::EdDSA, ED_PUBLIC),
    ] {
        let authority = of_public(algorithm);
        let (_, der) = spki::der::pem::decode_vec(pem.as_bytes()).unwrap();
        for secret in [pem.as_bytes(), pem.trim().as_bytes(), &der, b""] {
            for kid in [Some("k"), None] {
                let forged = signed(&header(Algorithm::HS256, kid), &full(), secret);
                assert_eq!(
                    authority.verify(&forged, NOW),
                    Err(Refusal::Algorithm.into())
                );
                // The same signature under the name of the key's own algorithm.
                let (_, signature) = forged.rsplit_once('.').unwrap();
                let own = token(algorithm);
                let (message, _) = own.rsplit_once('.').unwrap();
                assert_eq!(
                    authority.verify(&format!("{message}.{signature}"), NOW),
                    Err(Refusal::Signature.into())
                );
            }
        }
    }
}

#[test]
fn a_key_has_one_algorithm() {
    let part = |json: &str| URL_SAFE_NO_PAD.encode(json);
    for algorithm in ALL {
        let authority = of_public(algorithm);
        let own = token(algorithm);
        let (_, rest) = own.split_once('.').unwrap();
        for alg in [
            "none", "None", "HS256", "RS384", "PS256", "ES384", "ES256K", "Ed25519", "rs256", "",
        ] {
            for text in [
                rest.to_owned(),
                format!("{}.", rest.rsplit_once('.').unwrap().0),
            ] {
                let head = part(&format!(r#"{{"alg":"{alg}","kid":"k"}}"#));
                let refused = authority.verify(&format!("{head}.{text}"), NOW);
                assert_eq!(refused, Err(Refusal::Algorithm.into()), "{alg}");
            }
        }
        for other in ALL.into_iter().filter(|other| *other != algorithm) {
            let refused = authority.verify(&token(other), NOW);
            assert_eq!(refused, Err(Refusal::Algorithm.into()), "{other:?}");
        }
    }
    // Beside each other each key takes its own.
    let keys = ALL.map(|algorithm| public(algorithm, &format!("{algorithm:?}")));
    let all = Authority::new(keys.to_vec(), vec![], None).unwrap();
    for algorithm in ALL {
        let id = format!("{algorithm:?}");
        let sign = |kid: &str| {
            let header = header(algorithm, Some(kid));
            jsonwebtoken::encode(&header, &full(), &private(algorithm)).unwrap()
        };
        assert_eq!(&*all.verify(&sign(&id), NOW).unwrap().key_id, id);
        assert_eq!(
            all.verify(&token(algorithm), NOW),
            Err(Refusal::UnknownKey.into())
        );
    }
}

/// In a JWT the two numbers of an ECDSA signature stand side by side, 32 bytes each; elsewhere they are DER.
#[test]
fn a_signature_of_es256_has_64_bytes() {
    let own = token(Algorithm::ES256);
    let (message, signature) = own.rsplit_once('.').unwrap();
    let raw = bytes(signature);
    assert_eq!(raw.len(), 64);
    let integer = |number: &[u8]| {
        let spare = number.iter().take_while(|byte| **byte == 0).count();
        let pad = usize::from(number[spare] >= 0x80);
        let number = &number[spare..];
        let mut der = vec![2, u8::try_from(number.len() + pad).unwrap()];
        der.extend(std::iter::repeat_n(0, pad).chain(number.iter().copied()));
        der
    };
    let body = [integer(&raw[..32]), integer(&raw[32..])].concat();
    let der = [vec![0x30, u8::try_from(body.len()).unwrap()], body].concat();
    let longer = [&raw[..], &[0]].concat();
    let wider = [&[0], &raw[..32], &[0], &raw[32..]].concat();
    let (zeros, none) = (vec![0; 64], Vec::new());
    let authority = of_public(Algorithm::ES256);
    let refused = |signature: &[u8]| {
        let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature));
        authority.verify(&token, NOW) == Err(Refusal::Signature.into())
    };
    for wrong in [&der, &longer, &wider, &raw[1..].to_vec(), &zeros, &none] {
        assert!(refused(wrong), "{} bytes", wrong.len());
    }
    assert!(!refused(&raw));
}

#[test]
fn a_key_that_can_be_none_vouches_for_nothing() {
    let shape = |algorithm| Err(KeyError::Shape(algorithm));
    assert_eq!(JwtKey::rs256("k", b"").map(drop), shape("RS256"));
    assert_eq!(JwtKey::es256("k", &[4; 64]).map(drop), shape("ES256"));
    assert_eq!(JwtKey::es256("k", &[2; 65]).map(drop), shape("ES256"));
    assert_eq!(JwtKey::eddsa("k", &[1; 31]).map(drop), shape("EdDSA"));
    let ed25519 = public_bits(ED_PUBLIC, 32);
    assert_eq!(JwtKey::eddsa("", &ed25519).map(drop), Err(KeyError::NoId));
    // 4 and 64 bytes of 4 are no point of the curve, and no DER.
    for (key, algorithm) in [
        (JwtKey::rs256("k", &[4; 65]), Algorithm::RS256),
        (JwtKey::es256("k", &[4; 65]), Algorithm::ES256),
    ] {
        let authority = Authority::new(vec![key.unwrap()], vec![], None).unwrap();
        assert_eq!(
            authority.verify(&token(algorithm), NOW),
            Err(Refusal::Signature.into())
        );
    }
}

#[test]
fn a_public_key_issues_nothing() {
    let spec = TokenSpec::default();
    for algorithm in ALL {
        let refused = issue(&public(algorithm, "k"), &spec, 60, NOW).unwrap_err();
        assert!(matches!(refused, IssueError::PublicKey(_)), "{refused}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// One byte of the text is another one: no such token holds.
    #[test]
    fn a_token_that_was_touched_is_refused(
        which in 0..3_usize,
        at in any::<prop::sample::Index>(),
        letter in "[A-Za-z0-9_=.-]",
    ) {
        let token = token(ALL[which]);
        let at = at.index(token.len());
        prop_assume!(token[at..=at] != letter);
        let touched = format!("{}{letter}{}", &token[..at], &token[at + 1..]);
        prop_assert!(of_public(ALL[which]).verify(&touched, NOW).is_err());
    }

    /// Any signature of any length but the right one.
    #[test]
    fn an_invented_signature_is_refused(
        which in 0..3_usize,
        signature in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..80),
            prop::collection::vec(any::<u8>(), 256),
        ],
    ) {
        let token = token(ALL[which]);
        let (message, _) = token.rsplit_once('.').unwrap();
        let invented = format!("{message}.{}", URL_SAFE_NO_PAD.encode(&signature));
        prop_assert_eq!(of_public(ALL[which]).verify(&invented, NOW), Err(Refusal::Signature.into()));
    }

    #[test]
    fn another_issuers_claims_are_refused(which in 0..3_usize, exp in NOW..u64::MAX, sub in "[a-z]{1,8}") {
        let token = token(ALL[which]);
        let parts: Vec<_> = token.split('.').collect();
        let claims = json!({"sub": sub, "exp": exp, "channels": ["*"], "can": ["subscribe"]}).to_string();
        let forged = format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode(claims), parts[2]);
        prop_assert_eq!(of_public(ALL[which]).verify(&forged, NOW), Err(Refusal::Signature.into()));
    }
}
