//! What a tail costs: appending to it, and finding in it what one channel has.
//!
//! Prints nanoseconds; it judges nothing. `cargo bench -p tidegate --bench tail`

#![allow(clippy::print_stdout, reason = "that is what it is for")]

use std::{hint::black_box, sync::Arc, time::Duration};

use tidegate::{
    frame::Shared,
    model::{Change, Channel, Epoch, Moment, Offset, Position, RowId, Update},
    partition::tail::{Health, Tail, TailMax},
};
use tokio::time::Instant;

/// Updates that the tail holds.
const HELD: u64 = 65_536;
/// Updates of a batch, as a fetch brings them.
const BATCH: u64 = 64;
/// Resumes of one storm.
const RESUMES: u64 = 10_000;

fn shared(offset: u64, channels: &[Channel]) -> Arc<Shared> {
    let position = Position {
        partition: 0,
        epoch: Epoch::new("e").unwrap_or_else(|_| unreachable!("a letter")),
        offset: Offset::new(offset),
    };
    let at = usize::try_from(offset).unwrap_or(0) % channels.len();
    let change = Change {
        channel: channels[at].clone(),
        row: RowId::default(),
        data: Some("1".into()),
        ts_ms: 0,
    };
    Shared::new(Update { position, change }, Moment::default())
}

fn nanoseconds(since: Instant, count: u64) -> u128 {
    since.elapsed().as_nanos() / u128::from(count)
}

/// Fills a tail once over its bound; tells what an update cost to append.
fn fill(tail: &Tail, channels: &[Channel]) -> u128 {
    let mut spent = Duration::ZERO;
    for first in (1..=4 * HELD).step_by(usize::try_from(BATCH).unwrap_or(1)) {
        let batch: Vec<_> = (first..first + BATCH)
            .map(|offset| shared(offset, channels))
            .collect();
        let begin = Instant::now();
        let applied = Offset::new(first + BATCH - 1);
        tail.push(batch, applied, Health::default(), Moment::default());
        spent += begin.elapsed();
    }
    spent.as_nanos() / u128::from(4 * HELD)
}

fn main() {
    for count in [1, 1000] {
        let channels: Vec<Channel> = (0..count)
            .filter_map(|n| format!("s/channel-{n}").parse().ok())
            .collect();
        let tail = Tail::new(TailMax {
            bytes: usize::try_from(HELD).unwrap_or(0) * shared(1, &channels).weight(),
            age: Duration::from_secs(1 << 20),
        });
        if let Ok(epoch) = Epoch::new("e") {
            tail.reset(epoch, Offset::BEFORE_ALL, Moment::default());
        }
        let push = (0..5).map(|_| fill(&tail, &channels)).min().unwrap_or(0);
        println!("{count} channels: an update appended in {push} ns");
        if count == 1 {
            continue;
        }
        let (floor, applied) = (tail.floor().number(), tail.cursor().offset);
        let (begin, mut found) = (Instant::now(), 0);
        for n in 0..RESUMES {
            let channel = &channels[usize::try_from(n).unwrap_or(0) % channels.len()];
            let after = Offset::new(floor + n * 6);
            found += black_box(tail.between(channel, after, applied, usize::MAX))
                .map_or(0, |updates| updates.len());
        }
        let each = nanoseconds(begin, RESUMES);
        println!("{count} channels: a resume in {each} ns ({found} updates in {RESUMES})");
    }
}
