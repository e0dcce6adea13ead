//! What a delivery may cost, in units that no other process on the machine can change: writes and allocations.
//!
//! The instructions of a delivery are held by `load/instructions.sh`, which needs valgrind.

use allocation_counter::measure;
use tidegate_tests::steady::{Calls, HEARTBEAT, Listening, Steady};

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
fn what_comes_during_a_sweep_goes_along_with_what_is_ahead_of_it() {
    for how in [Listening::WebSocket, Listening::Sse] {
        let mut node = warm(MANY, 1, how);
        let before = (node.deliveries(), node.calls().writes);
        node.publish(1, 1);
        node.turn();
        let reached = node.calls().writes - before.1;
        assert!(
            (1..MANY as u64 / 2).contains(&reached),
            "{how:?}: {reached}"
        );
        node.publish(1, 1);
        node.turns();
        let (deliveries, writes) = (node.deliveries() - before.0, node.calls().writes - before.1);
        assert_eq!(deliveries, 2 * MANY as u64, "{how:?}");
        // Only those whom the sweep had reached are written to twice.
        assert_eq!(writes, MANY as u64 + reached, "{how:?}");
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

/// An event stream of several channels has its ids in blocks of their own, at most one a second: each is put together anew.
#[test]
fn who_has_several_channels_gets_one_write_a_turn_and_allocates_nothing_but_ids() {
    const CHANNELS: usize = 10;
    const IN_ONE_TURN: usize = 10;
    const OF_AN_ID: u64 = 4;
    for (how, each_max) in [(Listening::WebSocket, 0), (Listening::Sse, OF_AN_ID)] {
        let few = cost(&mut warm(2, CHANNELS, how), CHANNELS, 1);
        let many = cost(&mut warm(IN_ONE_TURN, CHANNELS, how), CHANNELS, 1);
        assert_eq!(
            (many.deliveries, many.calls.writes),
            ((IN_ONE_TURN * CHANNELS) as u64, IN_ONE_TURN as u64),
            "{how:?}"
        );
        let more = many.allocations.saturating_sub(few.allocations);
        assert!(
            more <= each_max * (IN_ONE_TURN as u64 - 2),
            "{how:?}: {} allocations for 2 subscribers, {} for {IN_ONE_TURN}",
            few.allocations,
            many.allocations
        );
    }
}

/// What the worker holds for an idle subscriber with a token of its own, in bytes that were asked of the allocator: after two
/// heartbeats, and when many others have come and gone since. The whole process is measured by `load/bench.sh memory`.
#[test]
fn an_idle_subscriber_is_small_also_after_others_came_and_went() {
    const TOGETHER: usize = 40;
    const TIMES: usize = 50;
    let heartbeats = HEARTBEAT * 2;
    for (channels, bytes_max) in [(1, 160), (10, 640)] {
        for how in [Listening::WebSocket, Listening::Sse] {
            let mut node = warm(MANY, channels, how).with_own_tokens();
            let came = measure(|| {
                node.subscribe(MANY, channels, how);
                node.rest(heartbeats);
            });
            let churned = measure(|| {
                for _ in 0..TIMES {
                    node.subscribe(TOGETHER, channels, how);
                    node.leave(TOGETHER);
                }
                node.rest(heartbeats);
            });
            let each = |bytes: i64| bytes / i64::try_from(MANY).expect("few");
            let before = each(came.bytes_current);
            let after = each(came.bytes_current + churned.bytes_current);
            assert!(
                (0..=bytes_max).contains(&before) && after <= bytes_max,
                "{how:?}, {channels} channels: {before} bytes, {after} after a churn"
            );
        }
    }
}
