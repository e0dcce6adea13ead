//! What a delivery may cost, in units that no other process on the machine can change: writes and allocations.
//!
//! The instructions of a delivery are held by `load/instructions.sh`, which needs valgrind.

use allocation_counter::measure;
use tidegate_tests::steady::{Calls, Listening, Steady};

const FEW: usize = 100;
const MANY: usize = 1_000;
/// Batches before anything is measured: buffers have their size, and the log forgets as much as it learns.
const WARM_UP: usize = 600;

/// What one batch came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    allocations: u64,
    deliveries: u64,
    calls: Calls,
}

fn warm(subscribers: usize, channels: usize, how: Listening) -> Steady {
    let mut node = Steady::new();
    node.subscribe(subscribers, channels, how);
    for _ in 0..WARM_UP {
        node.publish(channels, 1);
        node.turns();
    }
    node
}

/// A batch of `times` updates of each channel: what the worker's turns cost until all have it.
fn cost(node: &mut Steady, channels: usize, times: usize) -> Cost {
    node.publish(channels, times);
    let (deliveries, calls) = (node.deliveries(), node.calls());
    let allocated = measure(|| {
        node.turns();
    });
    let after = node.calls();
    Cost {
        allocations: allocated.count_total,
        deliveries: node.deliveries() - deliveries,
        calls: Calls {
            writes: after.writes - calls.writes,
            bytes: after.bytes - calls.bytes,
            reads: after.reads - calls.reads,
            watches: after.watches - calls.watches,
        },
    }
}

#[test]
fn a_delivery_is_one_write_and_nothing_else() {
    for how in [Listening::WebSocket, Listening::Sse] {
        let mut node = warm(MANY, 1, how);
        let cost = cost(&mut node, 1, 1);
        assert_eq!(cost.deliveries, MANY as u64, "{how:?}");
        assert_eq!(
            (cost.calls.writes, cost.calls.reads, cost.calls.watches),
            (MANY as u64, 0, 0),
            "{how:?}"
        );
    }
}

#[test]
fn what_gathered_since_the_last_turn_leaves_in_one_write_a_socket() {
    for how in [Listening::WebSocket, Listening::Sse] {
        let mut node = warm(MANY, 1, how);
        let cost = cost(&mut node, 1, 50);
        assert_eq!(
            (cost.deliveries, cost.calls.writes),
            (50 * MANY as u64, MANY as u64),
            "{how:?}"
        );
    }
}

#[test]
fn a_delivery_allocates_nothing() {
    for how in [Listening::WebSocket, Listening::Sse] {
        for times in [1, 20] {
            let few = cost(&mut warm(FEW, 1, how), 1, times);
            let many = cost(&mut warm(MANY, 1, how), 1, times);
            assert_eq!(
                (few.deliveries, many.deliveries),
                ((FEW * times) as u64, (MANY * times) as u64)
            );
            assert_eq!(
                few.allocations, many.allocations,
                "{how:?}, {times} updates: a batch for {FEW} and for {MANY} subscribers"
            );
        }
    }
}

/// Today a connection of several channels gathers its batches in its cold box, in a buffer of its own: what the design
/// wants is nothing here too.
#[test]
fn who_has_several_channels_gets_one_write_a_turn_and_at_most_two_allocations_a_delivery() {
    const CHANNELS: usize = 10;
    const IN_ONE_TURN: usize = 10;
    for how in [Listening::WebSocket, Listening::Sse] {
        let mut node = warm(IN_ONE_TURN, CHANNELS, how);
        let cost = cost(&mut node, CHANNELS, 1);
        assert_eq!(
            (cost.deliveries, cost.calls.writes),
            ((IN_ONE_TURN * CHANNELS) as u64, IN_ONE_TURN as u64),
            "{how:?}"
        );
        assert!(
            cost.allocations <= 2 * cost.deliveries,
            "{how:?}: {} allocations for {} deliveries",
            cost.allocations,
            cost.deliveries
        );
    }
}

/// What the worker holds for an idle subscriber, claims that all share aside. The whole process is measured by
/// `load/bench.sh memory`. Today a cold box that stays, since its connection has several channels, keeps the room of the
/// lines and replies that it had: what the design wants for ten channels is 1,536 bytes.
#[test]
fn an_idle_subscriber_is_small() {
    for (channels, bytes_max) in [(1, 512), (10, 10_000)] {
        for how in [Listening::WebSocket, Listening::Sse] {
            let mut node = warm(MANY, channels, how);
            let held = measure(|| node.subscribe(MANY, channels, how));
            let each = held.bytes_current / i64::try_from(MANY).expect("few");
            assert!(
                (0..=bytes_max).contains(&each),
                "{how:?}, {channels} channels: {each} bytes"
            );
        }
    }
}
