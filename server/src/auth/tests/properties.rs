//! What holds for any text.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn arbitrary_text_never_verifies(text in any::<String>(), now in any::<u64>()) {
        prop_assert!(authority().verify(&text, now).is_err());
    }

    #[test]
    fn arbitrary_parts_never_verify(
        head in prop_oneof![Just(r#"{"alg":"HS256"}"#.to_owned()), Just(r#"{"alg":"HS256","kid":"k1"}"#.to_owned()), any::<String>()],
        body in prop_oneof![Just(full().to_string()), any::<String>()],
        signature in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let token = format!("{}.{}.{}", part(head.as_bytes()), part(body.as_bytes()), part(&signature));
        prop_assert!(authority().verify(&token, NOW).is_err());
    }

    /// Whoever holds the key may still write nonsense.
    #[test]
    fn arbitrary_signed_claims_never_panic(
        body in prop_oneof![
            any::<String>(),
            (any::<String>(), any::<f64>(), any::<Vec<String>>())
                .prop_map(|(sub, exp, channels)| json!({"sub": sub, "exp": exp, "channels": channels}).to_string()),
        ],
        now in any::<u64>(),
    ) {
        if let Ok(claims) = authority().verify(&signed_raw(r#"{"alg":"HS256"}"#, body.as_bytes()), now) {
            prop_assert!(!claims.expired(now));
        }
    }

    /// A pattern with `{sub}` never covers one channel for two subjects.
    #[test]
    fn subjects_are_kept_apart(
        pattern in "a/[a-c/]{0,2}\\{sub\\}[a-c/]{0,3}\\*?",
        one in "[a-c]{1,3}",
        two in "[a-c]{1,3}",
        rest in "[a-c/]{0,4}",
    ) {
        prop_assume!(one != two);
        let (Ok(ones), Ok(twos)) = (Pattern::parse(&pattern, Some(&one)), Pattern::parse(&pattern, Some(&two))) else {
            return Ok(());
        };
        let name = pattern.replace("{sub}", &one).replace('*', &rest);
        let theirs = channel(&name);
        prop_assert!(ones.covers(&theirs));
        prop_assert!(!twos.covers(&theirs), "{pattern}: {two} reaches {name} of {one}");
    }
}
