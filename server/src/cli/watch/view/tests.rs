use super::{
    super::screen::{Size, draw},
    *,
};

const HELLO: &str = r#"{"op":"hello","session":"s","node":"n","now_ms":1000,"heartbeat_ms":2000,"live_for_ms":7000}"#;

struct Watched {
    view: View,
    now: Instant,
}

impl Watched {
    fn new() -> Self {
        let now = Instant::now() + Duration::from_secs(1000);
        let mut view = View::new("departures/JFK".parse().unwrap(), now);
        view.begin(now);
        Self { view, now }
    }
    fn hear(&mut self, text: &str) -> Told {
        self.view.receive(text, self.now)
    }
    fn answered(outcome: &str) -> Self {
        let mut watched = Self::new();
        assert_eq!(watched.hear(HELLO), Told::Hello);
        let answer = format!("{{\"id\":1,\"ok\":{{\"outcome\":\"{outcome}\"}}}}");
        assert_eq!(watched.hear(&answer), Told::Nothing);
        watched
    }
    fn following() -> Self {
        let mut watched = Self::answered("snapshot");
        watched.hear(
            r#"{"op":"snapshot","part":0,"rows":{"a":{"ts":1,"data":{"to":"SEA"}}},"more":true}"#,
        );
        assert_eq!(watched.view.row_count(), 0, "half a snapshot is not shown");
        watched.hear(r#"{"op":"snapshot","part":1,"rows":{"b":{"ts":1,"data":{"to":"BOS"}}},"position":"0.e:5"}"#);
        watched
    }
    fn rows(&self) -> String {
        let row = |(id, entry): (&str, &Entry)| {
            format!("{id}={}", entry.data.as_ref().map_or("", |data| data.get()))
        };
        self.view.rows().map(row).collect::<Vec<_>>().join(" ")
    }
    fn state_after(&self, seconds: u64) -> (String, String) {
        let verdict = self.view.verdict(self.now + Duration::from_secs(seconds));
        (verdict.state, verdict.why)
    }
    fn screen(&self, columns: usize, lines: usize) -> Vec<String> {
        let frame = draw(&self.view, self.now, Size { columns, lines });
        let bare = [
            "\x1b[H", "\x1b[7m", "\x1b[0m", "\x1b[1m", "\x1b[K", "\x1b[J",
        ]
        .iter()
        .fold(frame, |frame, code| frame.replace(code, ""));
        bare.split("\r\n").map(str::to_owned).collect()
    }
}

#[test]
fn rows_follow_the_updates_and_what_was_passed_is_ignored() {
    let mut watched = Watched::following();
    for (update, rows, token) in [
        (
            r#""position":"0.e:5","ts":1,"row":"a","data":0"#,
            r#"a={"to":"SEA"} b={"to":"BOS"}"#,
            "0.e:5",
        ),
        (
            r#""position":"0.e:7","ts":1,"row":"a","data":1"#,
            r#"a=1 b={"to":"BOS"}"#,
            "0.e:7",
        ),
        (
            r#""position":"0.e:6","ts":1,"row":"b","data":2"#,
            "a=1 b=2",
            "0.e:7",
        ),
        (
            r#""position":"0.e:6","ts":1,"row":"a","data":9"#,
            "a=1 b=2",
            "0.e:7",
        ),
        (
            r#""position":"0.e:9","ts":1,"row":"a","deleted":true"#,
            "b=2",
            "0.e:9",
        ),
        (
            r#""position":"0.e:8","ts":1,"row":"a","data":9"#,
            "b=2",
            "0.e:9",
        ),
        (
            r#""position":"0.e:10","ts":1,"row":"a","data":10"#,
            "a=10 b=2",
            "0.e:10",
        ),
    ] {
        assert_eq!(
            watched.hear(&format!("{{\"op\":\"update\",{update}}}")),
            Told::Nothing
        );
        assert_eq!(
            (watched.rows().as_str(), watched.view.token().as_str()),
            (rows, token)
        );
    }
    watched.hear(r#"{"op":"snapshot","rows":{},"position":"0.f:1"}"#);
    assert_eq!(
        (watched.rows().as_str(), watched.view.token().as_str()),
        ("", "0.f:1")
    );
}

#[test]
fn of_a_row_the_newest_partition_is_right_that_has_said_anything_of_it() {
    let mut watched = Watched::following();
    for (said, rows) in [
        (
            r#""op":"snapshot","rows":{"a":{"ts":1,"data":1},"b":{"ts":1,"data":2},"c":{"ts":1,"data":3}},"position":"1.e:5""#,
            "a=1 b=2 c=3",
        ),
        (
            r#""op":"snapshot","rows":{"a":{"ts":1,"data":4},"b":{"ts":1,"deleted":true}},"position":"3.e:2""#,
            "a=4 c=3",
        ),
        // Whoever still writes where the channel was before is late.
        (
            r#""op":"update","position":"1.e:6","ts":1,"row":"a","data":5"#,
            "a=4 c=3",
        ),
        (
            r#""op":"update","position":"1.e:7","ts":1,"row":"b","data":5"#,
            "a=4 c=3",
        ),
        (
            r#""op":"update","position":"1.e:8","ts":1,"row":"c","data":6"#,
            "a=4 c=6",
        ),
        (
            r#""op":"update","position":"3.e:3","ts":1,"row":"c","deleted":true"#,
            "a=4",
        ),
        (
            r#""op":"update","position":"3.e:4","ts":1,"row":"b","data":7"#,
            "a=4 b=7",
        ),
        (r#""op":"snapshot","rows":{},"position":"1.e:9""#, "a=4 b=7"),
    ] {
        assert_eq!(watched.hear(&format!("{{{said}}}")), Told::Nothing);
        assert_eq!(watched.rows(), rows, "{said}");
    }
    assert_eq!(watched.view.token(), "0.e:5,1.e:9,3.e:4");
}

#[test]
fn only_a_proof_makes_it_live_and_only_for_its_time() {
    let mut watched = Watched::following();
    assert_eq!(watched.state_after(0).0, "catching_up");
    assert_eq!(watched.state_after(8).0, "stale");
    watched.hear(r#"{"op":"heartbeat","position":"0.e:6","proved_at_ms":1000}"#);
    assert_eq!(watched.state_after(6), ("live".to_owned(), String::new()));
    assert!(watched.state_after(7).1.starts_with("lapsed"));
    watched.now += Duration::from_secs(3);
    watched.hear(r#"{"op":"freshness","state":"stale","reason":"paused","age_ms":2500}"#);
    assert_eq!(
        watched.state_after(0),
        ("stale".to_owned(), "paused".to_owned())
    );
    watched.hear(r#"{"op":"heartbeat","position":"0.e:6","proved_at_ms":1200}"#);
    assert_eq!(
        watched.state_after(0).0,
        "stale",
        "an older proof refutes nothing"
    );
    watched.hear(r#"{"op":"heartbeat","position":"0.e:6","proved_at_ms":2000}"#);
    assert_eq!(watched.state_after(0).0, "live");
    watched.view.lost("gone".to_owned(), watched.now);
    assert_eq!(watched.state_after(0).0, "stale");
    watched.view.begin(watched.now);
    watched.hear(HELLO);
    assert_eq!(watched.state_after(0).0, "stale");
}

#[test]
fn a_lost_view_starts_afresh() {
    for bad in [
        r#"{"op":"snapshot","part":2,"rows":{}}"#,
        r#"{"op":"gap","from":"0.e:1","to":"0.e:4","reason":"too_old"}"#,
        r#"{"op":"update","position":"nowhere","data":1}"#,
        "not JSON",
    ] {
        let mut watched = Watched::following();
        assert!(matches!(watched.hear(bad), Told::Broken(_)), "{bad}");
        assert_eq!(watched.view.token(), "");
    }
}

#[test]
fn refusals_and_goodbyes_reach_whoever_connects() {
    let mut watched = Watched::answered("catching_up");
    assert_eq!(
        watched.hear(r#"{"op":"outcome","channel":"departures/JFK","error":{"code":"retry_later","message":"behind","retry_after_ms":500}}"#),
        Told::Refused("departures/JFK: behind (retry_later)".to_owned(), Some(Duration::from_millis(500)))
    );
    assert_eq!(
        watched.hear(r#"{"op":"bye","code":"draining","reconnect_after_ms":70}"#),
        Told::Goodbye(Some(Duration::from_millis(70)))
    );
}

#[test]
fn the_screen_shows_rows_and_how_fresh_they_are() {
    let mut watched = Watched::following();
    watched.hear(r#"{"op":"heartbeat","position":"0.e:6","proved_at_ms":1000}"#);
    let screen = watched.screen(80, 24);
    assert!(
        screen[0].starts_with("departures/JFK · live, proven 0.0 s ago (holds for 7.0 s) · 2 rows"),
        "{screen:?}"
    );
    assert_eq!(screen[1..], ["row  to", "a    SEA", "b    BOS"]);
    watched.hear(r#"{"op":"update","position":"0.e:7","ts":1,"row":"\u001b[2J","data":"\u001bx"}"#);
    let small = watched.screen(20, 4);
    assert!(
        small
            .iter()
            .all(|line| line.chars().count() <= 20 && !line.contains('\x1b')),
        "{small:?}"
    );
    assert_eq!(small.last().unwrap(), "… and 2 more");
    watched.view.lost(
        "the connection ended".to_owned(),
        watched.now + Duration::from_secs(2),
    );
    assert!(watched.screen(120, 24)[0].contains(
        "STALE, proven 0.0 s ago (disconnected: the connection ended; next attempt in 2.0 s)"
    ));
}

#[test]
fn events_are_a_list() {
    let mut watched = Watched::answered("started");
    for number in 1..=600 {
        watched.hear(&format!("{{\"op\":\"update\",\"position\":\"0.e:{number}\",\"ts\":3661000,\"row\":\"r\",\"data\":{number}}}"));
    }
    assert_eq!(watched.view.events.len(), EVENTS_MAX);
    watched
        .hear(r#"{"op":"gap","from":"0.e:1","to":"0.e:4","dropped":3,"reason":"slow_consumer"}"#);
    let screen = watched.screen(160, 6);
    assert!(
        screen[0].contains("3 events are missing: slow_consumer"),
        "{screen:?}"
    );
    assert_eq!(screen.len(), 6);
    assert_eq!(screen[5], "01:01:01Z  r  600");
}
