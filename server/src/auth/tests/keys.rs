//! Which keys vouch for whom, and what they keep to themselves.

use std::collections::HashSet;

use super::*;

#[test]
fn the_kid_chooses_the_key() {
    let two = Authority::new(vec![key("k1", SECRET), key("k2", OTHER)], vec![], None).unwrap();
    let check = |authority: &Authority, kid, secret| {
        let token = signed(&header(Algorithm::HS256, kid), &full(), secret);
        authority
            .verify(&token, NOW)
            .map(|claims| claims.key_id().to_string())
    };
    assert_eq!(check(&two, Some("k1"), SECRET), Ok("k1".into()));
    assert_eq!(check(&two, Some("k2"), OTHER), Ok("k2".into()));
    assert_eq!(
        check(&two, Some("k2"), SECRET),
        Err(Refusal::Signature.into())
    );
    assert_eq!(check(&two, None, SECRET), Err(Refusal::UnknownKey.into()));
    assert_eq!(check(&authority(), None, SECRET), Ok("k1".into()));
    assert_eq!(
        check(&Authority::default(), None, SECRET),
        Err(Refusal::UnknownKey.into())
    );
}

#[test]
fn an_api_key_grants_what_its_configuration_says() {
    let authority = authority();
    let claims = authority.verify(API_KEY, NOW).unwrap();
    assert_eq!(
        (&**claims.key_id(), claims.subject(), claims.expires_at_s()),
        ("loader", None, None)
    );
    assert!(claims.may(Permission::Publish, &channel("departures/JFK")));
    assert!(!claims.may(Permission::Subscribe, &channel("departures/JFK")));
    assert!(claims.may_publish_stream("departures"));
    assert!(!claims.may_publish_stream("trades"));
    for wrong in [
        "tg_3f9a71c2d4",
        "tg_3f9a71c2d",
        "tg_3f9a71c2d55",
        "TG_3F9A71C2D5",
        " tg_3f9a71c2d5",
        "loader",
    ] {
        assert_eq!(
            authority.verify(wrong, NOW),
            Err(Refusal::UnknownKey.into()),
            "{wrong}"
        );
    }
}

#[test]
fn nothing_configured_grants_nothing() {
    let nothing = Authority::new(vec![], vec![], None).unwrap();
    assert_eq!(nothing.anonymous(), None);
    for token in [&*good(&full()), API_KEY, ""] {
        assert!(nothing.verify(token, NOW).is_err(), "{token}");
    }
    let empty = Authority::new(vec![], vec![], Some(GrantSpec::default())).unwrap();
    let claims = empty.anonymous().unwrap();
    assert!(!claims.may(Permission::Subscribe, &channel("departures/JFK")));
    let reader = authority().anonymous().unwrap();
    assert!(reader.may(Permission::Subscribe, &channel("departures/JFK")));
    assert!(!reader.may(Permission::Publish, &channel("departures/JFK")));
}

#[test]
fn a_wrong_configuration_is_refused() {
    let api = |id: &str, pattern: &str| ApiKey {
        id: id.into(),
        sha256: hash_api_key("one"),
        grant: grant(&[pattern], &[]),
    };
    let wrong = |id: &str, why| AuthorityError::Grant {
        id: id.into(),
        why: GrantError::Pattern { index: 0, why },
    };
    let twins = vec![key("k1", SECRET), key("k1", OTHER)];
    let refused = |jwt, api, anonymous| Authority::new(jwt, api, anonymous).unwrap_err();
    assert_eq!(
        refused(twins, vec![], None),
        AuthorityError::DuplicateJwtKey("k1".into())
    );
    assert_eq!(
        refused(vec![], vec![api("a", "x/*"), api("b", "x/*")], None),
        AuthorityError::DuplicateApiKey("b".into())
    );
    assert_eq!(
        refused(vec![], vec![api("a", "x")], None),
        wrong("a", PatternError::Shape)
    );
    assert_eq!(
        refused(vec![], vec![], Some(grant(&["user/{sub}/*"], &[]))),
        wrong("anonymous", PatternError::NoSubject)
    );
    assert_eq!(JwtKey::hs256("", SECRET).unwrap_err(), KeyError::NoId);
    assert_eq!(
        JwtKey::hs256("k", &SECRET[1..]).unwrap_err(),
        KeyError::ShortSecret
    );
}

#[test]
fn clients_are_told_no_secret_and_no_reason() {
    let told: HashSet<_> = [
        Refusal::Length,
        Refusal::UnknownKey,
        Refusal::Algorithm,
        Refusal::Critical,
        Refusal::Signature,
    ]
    .map(|refusal| {
        (
            AuthError::from(refusal).to_string(),
            AuthError::from(refusal).code(),
        )
    })
    .into();
    assert_eq!(told.len(), 1, "{told:?}");
    let shown = format!("{:?} {:?}", key("k1", SECRET), authority());
    assert!(
        !shown.contains("secret") && !shown.contains("97, 32"),
        "{shown}"
    );
}
