//! What happens to connections that do nothing: the rounds of a worker find whose token has ended, and who is no more.

use std::time::Duration;

use tidegate::auth::LEEWAY_S;
use tidegate_tests::steady::{HEARTBEAT, Listening, Steady, TOKENS_END_S};

/// More than a segment of the slab.
const MANY: usize = 1_500;
const SECOND: Duration = Duration::from_secs(1);
/// Told goodbye, a connection waits for its peer's own close frame; nobody answers here.
const LINGER: Duration = Duration::from_secs(3);

#[test]
fn a_silent_client_without_channels_is_asked_once_and_then_let_go() {
    let mut node = Steady::new();
    node.subscribe(MANY, 0, Listening::WebSocket);
    let hello = node.calls().writes;
    assert_eq!(hello, MANY as u64);
    node.rest(HEARTBEAT * 2);
    assert_eq!(
        node.calls().writes,
        hello,
        "nobody has been silent for two heartbeats"
    );
    node.rest(HEARTBEAT * 2);
    assert!(node.calls().writes <= 2 * hello, "nobody was asked twice");
    assert_eq!(node.connections(), MANY);
    node.rest(SECOND);
    assert!(node.calls().writes >= 2 * hello, "everybody was asked");
    node.rest(HEARTBEAT * 2 + LINGER);
    assert_eq!(node.connections(), 0);
}

#[test]
fn who_has_a_channel_is_kept_by_its_heartbeats() {
    for how in [Listening::WebSocket, Listening::Sse] {
        let mut node = Steady::new();
        node.subscribe(3, 1, how);
        node.rest(HEARTBEAT * 10);
        assert_eq!(node.connections(), 3, "{how:?}");
    }
}

#[test]
fn a_session_ends_within_a_second_of_its_token() {
    for how in [Listening::WebSocket, Listening::Sse] {
        let mut node = Steady::new().with_own_tokens();
        node.subscribe(MANY, 1, how);
        while node.wall_s() < TOKENS_END_S + LEEWAY_S - 1 {
            node.rest(SECOND);
        }
        assert_eq!(node.connections(), MANY, "{how:?}");
        node.rest(SECOND * 2 + LINGER);
        assert_eq!(node.connections(), 0, "{how:?}");
    }
}
