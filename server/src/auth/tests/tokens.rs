//! What a genuine token grants, and for how long.

use super::*;

#[test]
fn a_good_token_says_who_and_what() {
    let claims = authority().verify(&good(&full()), NOW).unwrap();
    assert_eq!(claims.subject(), Some("ana"));
    assert_eq!(&**claims.key_id(), "k1");
    assert_eq!(claims.expires_at_s(), Some(NOW + 60 + LEEWAY_S));
    for (permission, name, expect) in [
        (Permission::Subscribe, "departures/JFK", true),
        (Permission::Publish, "departures/JFK", true),
        (Permission::Subscribe, "user/ana/inbox", true),
        (Permission::Subscribe, "user/anabel/inbox", false),
        (Permission::Subscribe, "user/{sub}/inbox", false),
        (Permission::Subscribe, "trades/ACME", false),
    ] {
        assert_eq!(
            claims.may(permission, &channel(name)),
            expect,
            "{permission:?} {name}"
        );
    }
}

#[test]
fn what_is_not_listed_is_not_permitted() {
    let everything = |claims: &Claims| {
        [Permission::Subscribe, Permission::Publish]
            .map(|p| claims.may(p, &channel("departures/JFK")))
    };
    for (claims, expect) in [
        (json!({"exp": NOW + 60}), [false, false]),
        (full_but("channels", Value::Null), [false, false]),
        (full_but("channels", json!([])), [false, false]),
        (full_but("can", Value::Null), [false, false]),
        (full_but("can", json!([])), [false, false]),
        (full_but("can", json!(["publish"])), [false, true]),
        (full_but("can", json!(["subscribe"])), [true, false]),
        (full_but("admin", json!(true)), [true, true]),
        (full_but("aud", json!(["other"])), [true, true]),
    ] {
        let verified = authority().verify(&good(&claims), NOW).unwrap();
        assert_eq!(everything(&verified), expect, "{claims}");
    }
}

#[test]
fn a_token_holds_for_its_time() {
    for (claims, expect) in [
        (full(), Ok(())),
        (full_but("exp", json!(NOW + 1)), Ok(())),
        (full_but("exp", json!(NOW - LEEWAY_S + 1)), Ok(())),
        (full_but("exp", json!(NOW - LEEWAY_S)), Err("token_expired")),
        (full_but("exp", json!(0)), Err("token_expired")),
        (full_but("exp", json!(-1)), Err("token_expired")),
        (full_but("exp", json!(-1.5)), Err("token_expired")),
        (full_but("exp", json!(1_700_000_060.75)), Ok(())),
        (full_but("exp", json!(u64::MAX)), Ok(())),
        (full_but("exp", json!(1e300)), Ok(())),
        (full_but("exp", json!("1700000060")), Err("unauthorized")),
        (full_but("exp", json!(true)), Err("unauthorized")),
        (full_but("exp", Value::Null), Err("unauthorized")),
        (full_but("nbf", json!(NOW)), Ok(())),
        (full_but("nbf", json!(NOW + LEEWAY_S)), Ok(())),
        (
            full_but("nbf", json!(NOW + LEEWAY_S + 1)),
            Err("not_yet_valid"),
        ),
        (full_but("nbf", json!(u64::MAX)), Err("not_yet_valid")),
        (full_but("nbf", json!("soon")), Err("unauthorized")),
    ] {
        let got = authority().verify(&good(&claims), NOW);
        assert_eq!(got.map(drop).map_err(|e| e.code()), expect, "{claims}");
    }
    let late = authority().verify(&good(&full_but("exp", json!(u64::MAX))), u64::MAX);
    assert_eq!(late, Err(AuthError::Expired));
}

#[test]
fn claims_expire_when_their_token_does() {
    let claims = authority().verify(&good(&full()), NOW).unwrap();
    let end = NOW + 60 + LEEWAY_S;
    assert!(!claims.expired(end - 1));
    assert!(claims.expired(end));
    assert_eq!(
        authority().verify(&good(&full()), end),
        Err(AuthError::Expired)
    );
    assert!(!authority().anonymous().unwrap().expired(u64::MAX));
}

#[test]
fn claims_that_cannot_be_used_are_refused_whole() {
    let many = |n: usize| json!((0..n).map(|i| format!("s/{i}")).collect::<Vec<_>>());
    let pattern = |index, why| Some(ClaimFault::Grant(GrantError::Pattern { index, why }));
    for (claims, expect) in [
        (full_but("channels", many(PATTERNS_MAX)), None),
        (
            full_but("channels", many(PATTERNS_MAX + 1)),
            Some(ClaimFault::Grant(GrantError::TooManyPatterns)),
        ),
        (
            full_but("channels", json!(["a/b", "a/*/b"])),
            pattern(1, PatternError::Shape),
        ),
        (full_but("channels", json!("a/b")), Some(ClaimFault::Shape)),
        (full_but("channels", json!([1])), Some(ClaimFault::Shape)),
        (
            full_but("can", json!(["subscribe", "admin"])),
            Some(ClaimFault::Shape),
        ),
        (full_but("sub", json!(7)), Some(ClaimFault::Shape)),
        (
            full_but("sub", Value::Null),
            pattern(1, PatternError::NoSubject),
        ),
        (
            full_but("sub", json!("ana/admin")),
            pattern(1, PatternError::Subject),
        ),
        (
            full_but("sub", json!("*")),
            pattern(1, PatternError::Subject),
        ),
        (
            full_but("sub", json!("")),
            pattern(1, PatternError::Subject),
        ),
        (
            full_but("sub", json!("a b")),
            pattern(1, PatternError::Subject),
        ),
        (
            full_but("sub", json!("x".repeat(201))),
            pattern(1, PatternError::Subject),
        ),
        (
            json!({"exp": NOW + 60, "sub": "a/b", "channels": ["a/*"], "can": []}),
            None,
        ),
        (json!([]), Some(ClaimFault::Shape)),
        (json!("exp"), Some(ClaimFault::Shape)),
    ] {
        let got = authority().verify(&good(&claims), NOW).map(drop);
        assert_eq!(
            got,
            expect.map_or(Ok(()), |fault| Err(fault.into())),
            "{claims}"
        );
    }
    for raw in [
        &b"{"[..],
        b"",
        b"\xff",
        br#"{"exp":1e999}"#,
        br#"{"exp":9999999999,"exp":1}"#,
    ] {
        let token = signed_raw(r#"{"alg":"HS256"}"#, raw);
        assert_eq!(
            authority().verify(&token, NOW),
            Err(ClaimFault::Shape.into())
        );
    }
}

#[test]
fn an_issued_token_verifies() {
    let spec = TokenSpec {
        subject: Some("ana".into()),
        grant: grant(&["user/{sub}/*"], &[Permission::Publish]),
    };
    let token = issue(&key("k1", SECRET), &spec, 3600, NOW).unwrap();
    let claims = authority().verify(&token, NOW + 3599).unwrap();
    assert_eq!(claims.subject(), Some("ana"));
    assert!(claims.may(Permission::Publish, &channel("user/ana/inbox")));
    assert!(!claims.may(Permission::Publish, &channel("user/bob/inbox")));
    assert!(!claims.may(Permission::Subscribe, &channel("user/ana/inbox")));
    assert_eq!(
        authority().verify(&token, NOW + 3600 + LEEWAY_S),
        Err(AuthError::Expired)
    );

    let nobody = TokenSpec {
        subject: None,
        ..spec
    };
    assert!(matches!(
        issue(&key("k1", SECRET), &nobody, 60, NOW),
        Err(IssueError::Grant(_))
    ));
    let long = format!("a/{}*", "x".repeat(150));
    let wide = TokenSpec {
        subject: None,
        grant: grant(&[&*long; 60], &[]),
    };
    assert!(matches!(
        issue(&key("k1", SECRET), &wide, 60, NOW),
        Err(IssueError::TooLong)
    ));
}

#[test]
fn a_subject_is_no_pattern() {
    // What a grant covers is kept behind the subject, a line for each pattern.
    for subject in [Some("departures/*\ntrades/*\n"), Some(""), None] {
        let mut claims = full_but("channels", json!(["user/*"]));
        claims["sub"] = json!(subject);
        let claims = authority().verify(&good(&claims), NOW).unwrap();
        assert_eq!(claims.subject(), subject);
        for name in ["departures/JFK", "trades/ACME"] {
            assert!(!claims.may(Permission::Subscribe, &channel(name)), "{name}");
        }
        assert!(claims.may(Permission::Subscribe, &channel("user/ana")));
    }
}
