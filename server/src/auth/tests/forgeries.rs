//! What is not a genuine token.

use super::*;

#[test]
fn only_the_keys_own_signature_counts() {
    let body = full();
    let hs256 = |kid: Option<&str>, secret| signed(&header(Algorithm::HS256, kid), &body, secret);
    let part = |json: &str| URL_SAFE_NO_PAD.encode(json);
    let claims = part(&body.to_string());
    let token = hs256(Some("k1"), SECRET);
    let (message, signature) = token.rsplit_once('.').unwrap();
    let (head, _) = message.split_once('.').unwrap();
    let mut critical = header(Algorithm::HS256, Some("k1"));
    critical.crit = Some(vec!["b64".into()]);
    for (what, token, expect) in [
        ("wrong secret", hs256(Some("k1"), OTHER), Refusal::Signature),
        (
            "wrong secret, no kid",
            hs256(None, OTHER),
            Refusal::Signature,
        ),
        ("empty secret", hs256(Some("k1"), b""), Refusal::Signature),
        (
            "unknown kid",
            hs256(Some("k2"), SECRET),
            Refusal::UnknownKey,
        ),
        ("empty kid", hs256(Some(""), SECRET), Refusal::UnknownKey),
        (
            "HS384",
            signed(&header(Algorithm::HS384, Some("k1")), &body, SECRET),
            Refusal::Algorithm,
        ),
        (
            "HS512",
            signed(&header(Algorithm::HS512, Some("k1")), &body, SECRET),
            Refusal::Algorithm,
        ),
        (
            "critical",
            signed(&critical, &body, SECRET),
            Refusal::Critical,
        ),
        (
            "none",
            format!("{}.{claims}.", part(r#"{"alg":"none","kid":"k1"}"#)),
            Refusal::Algorithm,
        ),
        (
            "None",
            format!("{}.{claims}.{signature}", part(r#"{"alg":"None"}"#)),
            Refusal::Algorithm,
        ),
        (
            "none, but signed",
            signed_raw(r#"{"alg":"none"}"#, body.to_string().as_bytes()),
            Refusal::Algorithm,
        ),
        (
            "no alg",
            signed_raw("{}", body.to_string().as_bytes()),
            Refusal::UnknownKey,
        ),
        (
            "RS256",
            signed_raw(r#"{"alg":"RS256","kid":"k1"}"#, b"{}"),
            Refusal::Algorithm,
        ),
        (
            "two algs",
            signed_raw(r#"{"alg":"none","alg":"HS256"}"#, b"{}"),
            Refusal::UnknownKey,
        ),
        (
            "other claims",
            format!("{head}.{}.{signature}", part(r#"{"exp":9999999999}"#)),
            Refusal::Signature,
        ),
        (
            "no JSON, not signed",
            format!("{head}.{}.{signature}", part("{")),
            Refusal::Signature,
        ),
        ("no signature", format!("{message}."), Refusal::Signature),
        ("two parts", message.to_owned(), Refusal::UnknownKey),
        (
            "four parts",
            format!("{token}.{signature}"),
            Refusal::UnknownKey,
        ),
        ("padding", format!("{token}="), Refusal::Signature),
        ("space before", format!(" {token}"), Refusal::UnknownKey),
        ("line behind", format!("{token}\n"), Refusal::Signature),
        ("bearer", format!("Bearer {token}"), Refusal::UnknownKey),
        ("empty", String::new(), Refusal::Length),
        ("dots", "..".to_owned(), Refusal::UnknownKey),
    ] {
        assert_eq!(
            authority().verify(&token, NOW),
            Err(expect.into()),
            "{what}"
        );
    }
    assert!(
        authority().verify(&token, NOW).is_ok(),
        "the token that all of these are made from"
    );
}

#[test]
fn any_flipped_bit_and_any_cut_is_refused() {
    let authority = authority();
    let token = good(&full());
    assert!(authority.verify(&token, NOW).is_ok());
    for at in 0..token.len() {
        assert!(authority.verify(&token[..at], NOW).is_err(), "cut at {at}");
        for bit in 0..7 {
            let mut bytes = token.clone().into_bytes();
            bytes[at] ^= 1 << bit;
            let bent = String::from_utf8(bytes).unwrap();
            assert!(
                authority.verify(&bent, NOW).is_err(),
                "byte {at}, bit {bit}"
            );
        }
    }
}

/// 43 characters carry 258 bits for 256 of signature: the spare two must be zero, or a token would have four spellings.
#[test]
fn a_signature_has_one_spelling() {
    let token = good(&full());
    let (rest, last) = token.split_at(token.len() - 1);
    let accepted = (33u8..127).map(char::from).filter(|c| {
        let spelling = format!("{rest}{c}");
        authority().verify(&spelling, NOW).is_ok()
    });
    assert_eq!(accepted.collect::<String>(), last);
}

#[test]
fn a_long_token_is_refused_unread() {
    let pad = |n: usize| good(&full_but("pad", json!("x".repeat(n))));
    assert!(authority().verify(&pad(5_800), NOW).is_ok());
    let long = pad(6_200);
    assert!(long.len() > TOKEN_BYTES_MAX);
    assert_eq!(authority().verify(&long, NOW), Err(Refusal::Length.into()));
}
