//! What patterns cover.

use super::*;

#[test]
fn patterns_cover_what_they_say() {
    for (pattern, name, expect) in [
        ("departures/JFK", "departures/JFK", true),
        ("departures/JFK", "departures/JFK2", false),
        ("departures/JFK", "departures/jfk", false),
        ("departures/*", "departures/JFK", true),
        ("departures/*", "departures/a/b", true),
        ("departures/*", "departures2/JFK", false),
        ("departures/J*", "departures/JFK", true),
        ("departures/J*", "departures/LGA", false),
        ("departures/JFK*", "departures/JFK", true),
        ("departures*", "departures/JFK", true),
        ("departures*", "departures2/JFK", true),
        ("departures*", "depart/JFK", false),
        ("a/b/*", "a/b/c", true),
        ("a/b/*", "a/b", false),
        ("*", "anything/at-all", true),
        ("user/{sub}", "user/ana", true),
        ("user/{sub}", "user/anabel", false),
        ("user/{sub}/*", "user/ana/x", true),
        ("user/{sub}/*", "user/bob/x", false),
        ("{sub}/*", "ana/x", true),
        ("a/{sub}/{sub}", "a/ana/ana", true),
        ("a/é*", "a/ete", false),
        ("a/é*", "a/évian", true),
    ] {
        let parsed = Pattern::parse(pattern, Some("ana")).unwrap();
        assert_eq!(parsed.covers(&channel(name)), expect, "{pattern} {name}");
    }
}

#[test]
fn patterns_that_mean_nothing_are_refused() {
    use PatternError::{NoSubject, OpenSubject, Shape, Subject};
    for (pattern, subject, expect) in [
        ("", Some("ana"), Shape),
        ("/", Some("ana"), Shape),
        ("/*", Some("ana"), Shape),
        ("departures", Some("ana"), Shape),
        ("departures/", Some("ana"), Shape),
        ("**", Some("ana"), Shape),
        ("a/*b", Some("ana"), Shape),
        ("*/b", Some("ana"), Shape),
        ("A/*", Some("ana"), Shape),
        ("a/b c*", Some("ana"), Shape),
        ("a/b\n*", Some("ana"), Shape),
        ("{SUB}/*", Some("ana"), Shape),
        ("user/{sub}/*", None, NoSubject),
        ("user/{sub}*", Some("ana"), OpenSubject),
        ("user/{sub}-*", Some("ana"), OpenSubject),
        ("user/{sub}/{sub}*", Some("ana"), OpenSubject),
        ("user/{sub}/*", Some("a*"), Subject),
        ("user/{sub}/*", Some("a/b"), Subject),
        ("user/{sub}/*", Some("{sub}/*"), Subject),
        ("{sub}/*", Some("Ana"), Shape),
    ] {
        assert_eq!(
            Pattern::parse(pattern, subject),
            Err(expect),
            "{pattern} {subject:?}"
        );
    }
    let longest = format!("{}/{}", "s".repeat(63), "n".repeat(200));
    assert!(Pattern::parse(&longest, None).is_ok());
    assert_eq!(Pattern::parse(&format!("{longest}n"), None), Err(Shape));
    assert_eq!(Pattern::parse(&format!("{longest}n*"), None), Err(Shape));
}

#[test]
fn publishing_to_a_stream_needs_a_pattern_that_reaches_it() {
    for (pattern, stream, expect) in [
        ("departures/JFK", "departures", true),
        ("departures/JFK", "departure", false),
        ("departures/J*", "departures", true),
        ("departures/*", "departures2", false),
        ("departures*", "departures2", true),
        ("departures*", "depart", false),
        ("*", "departures", true),
        ("*", "trades", true),
    ] {
        for (can, allowed) in [
            (Permission::Publish, expect),
            (Permission::Subscribe, false),
        ] {
            let grant = grant(&[pattern], &[can]).resolve(None).unwrap();
            assert_eq!(
                grant.may_publish_stream(stream),
                allowed,
                "{pattern} {stream} {can:?}"
            );
        }
    }
    assert!(!Grant::default().may_publish_stream("departures"));
}

#[test]
fn canaries_are_covered_by_patterns_that_name_them() {
    let canary: Channel = "s/$canary/7".parse().unwrap();
    for (pattern, covers) in [
        ("*", false),
        ("s/*", false),
        ("s/$*", false),
        ("s/$canary*", false),
        ("s/$canary/*", true),
        ("s/$canary/7", true),
        ("s/$canary/8", false),
        ("t/$canary/*", false),
    ] {
        let read = Pattern::parse(pattern, None).unwrap();
        assert_eq!(read.covers(&canary), covers, "{pattern}");
    }
    let other: Channel = "s/$canaries".parse().unwrap();
    assert!(Pattern::parse("s/*", None).unwrap().covers(&other));
}
