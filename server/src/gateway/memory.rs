//! The node's memory budget: looked at twice a second, and kept by shedding in order.
//!
//! Does: adds up what tails, embedded logs and outboxes hold and, where that comes near `limits.memory`, takes from them in
//! the order of [`Plan`]. Owns: nothing; the tails and logs keep to the room that they are given. Never knows: channels,
//! connections. Keeps: nobody is asked for more than a sum; a delivery costs nothing for it.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::transport::{
    App,
    thread::{Command, WorkerHandle},
};

/// Between two looks: what a worker was told to give back is gone by the next one.
const LOOK: Duration = Duration::from_millis(500);
/// What a tail or log keeps, however short memory is.
const FLOOR: usize = 1 << 20;

/// What is held, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    tails: usize,
    logs: usize,
    /// Outboxes, and messages that came in part.
    outboxes: usize,
    /// What of the tails stays.
    tails_floor: usize,
    /// What of the logs stays.
    logs_floor: usize,
}

/// What is to be done. Beyond 90 % of the budget tails shrink, then logs, until 80 % is held; where that is not enough nothing
/// new is taken; and what is then still beyond the budget is taken from the largest outboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// There is room again: nobody is held to less than its own bound.
    Relax,
    /// As it is.
    Stay,
    /// Tails and logs together get so much; and whether nothing new is taken, and what outboxes give back.
    Shed {
        tails: usize,
        logs: usize,
        short: bool,
        excess: usize,
    },
}

fn plan(max: usize, held: Held) -> Plan {
    let part = |tenths: usize| max / 10 * tenths;
    let total = held.tails + held.logs + held.outboxes;
    if total <= part(6) {
        return Plan::Relax;
    }
    if total <= part(9) {
        return Plan::Stay;
    }
    let both = part(8).saturating_sub(held.outboxes);
    let tails = both
        .saturating_sub(held.logs)
        .max(held.tails_floor)
        .min(held.tails);
    let logs = both
        .saturating_sub(tails)
        .max(held.logs_floor)
        .min(held.logs);
    let left = tails + logs + held.outboxes;
    Plan::Shed {
        tails,
        logs,
        short: left > part(9),
        excess: left.saturating_sub(max),
    }
}

/// What of `own` bytes stays where all who have `held` are to have `room`.
fn share(own: usize, held: usize, room: usize) -> usize {
    let own_share = own as u128 * room as u128 / held.max(1) as u128;
    usize::try_from(own_share).unwrap_or(usize::MAX).max(FLOOR)
}

/// Keeps the budget until it is stopped.
pub(super) async fn keep(
    app: Arc<App>,
    workers: Vec<WorkerHandle>,
    max: usize,
    stop: CancellationToken,
) {
    app.counts.memory.limit.set(max as u64);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let held = look(&app);
        let plan = plan(max, held);
        let excess = follow(&app, plan, held);
        for worker in workers.iter().filter(|_| excess > 0) {
            // A worker that is too busy to listen is asked again at the next look.
            drop(
                worker
                    .commands
                    .try_send(Command::Shed(excess / workers.len())),
            );
        }
    }
}

fn look(app: &App) -> Held {
    let mut held = Held::default();
    for stream in app.streams.all() {
        for partition in &stream.partitions {
            let (tail, log) = (partition.tail.size().1, partition.log.memory());
            held.tails += tail;
            held.logs += log;
            held.tails_floor += tail.min(FLOOR);
            held.logs_floor += log.min(FLOOR);
        }
    }
    let bytes = app
        .workers
        .iter()
        .map(|counts| counts.outbox_bytes.get() + counts.inbox_bytes.get());
    held.outboxes = usize::try_from(bytes.sum::<u64>()).unwrap_or(usize::MAX);
    let memory = &app.counts.memory;
    memory.tails.set(held.tails as u64);
    memory.logs.set(held.logs as u64);
    memory.outboxes.set(held.outboxes as u64);
    held
}

/// Does what can be done from here; gives what the workers must give back.
fn follow(app: &App, plan: Plan, held: Held) -> usize {
    let memory = &app.counts.memory;
    let rooms = |tail: &dyn Fn(usize) -> usize, log: &dyn Fn(usize) -> usize| {
        for stream in app.streams.all() {
            for partition in &stream.partitions {
                partition.tail.set_room(tail(partition.tail.size().1));
                partition.log.set_room(log(partition.log.memory()));
            }
        }
    };
    let all = |_| usize::MAX;
    match plan {
        Plan::Stay => memory.short.set(0),
        Plan::Relax => {
            memory.short.set(0);
            if memory.shedding.get() > 0 {
                memory.shedding.set(0);
                rooms(&all, &all);
            }
        }
        Plan::Shed {
            tails,
            logs,
            short,
            excess,
        } => {
            memory.shedding.set(1);
            memory.short.set(u64::from(short));
            memory.shed_tails.add(u64::from(tails < held.tails));
            memory.shed_logs.add(u64::from(logs < held.logs));
            let of_log = |own| share(own, held.logs, logs);
            if logs < held.logs {
                rooms(&|own| share(own, held.tails, tails), &of_log);
            } else {
                rooms(&|own| share(own, held.tails, tails), &all);
            }
            return excess;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(tails: usize, logs: usize, outboxes: usize) -> Held {
        Held {
            tails,
            logs,
            outboxes,
            tails_floor: tails.min(5),
            logs_floor: logs.min(5),
        }
    }

    #[test]
    fn it_sheds_in_order() {
        let shed = |tails, logs, short, excess| Plan::Shed {
            tails,
            logs,
            short,
            excess,
        };
        let table = [
            (held(30, 20, 10), Plan::Relax),
            (held(30, 30, 30), Plan::Stay),
            // Tails give first, as much as brings it to 80.
            (held(50, 30, 15), shed(35, 30, false, 0)),
            // Their floor is kept; then logs give.
            (held(10, 80, 5), shed(5, 70, false, 0)),
            // Outboxes alone are too much: nothing new is taken.
            (held(5, 5, 86), shed(5, 5, true, 0)),
            // Beyond the budget: they give back what is beyond it.
            (held(50, 50, 120), shed(5, 5, true, 30)),
        ];
        for (held, expected) in table {
            assert_eq!(plan(100, held), expected, "{held:?}");
        }
    }

    #[test]
    fn everybody_gives_by_what_he_has_down_to_the_floor() {
        assert_eq!(share(64 * FLOOR, 128 * FLOOR, 32 * FLOOR), 16 * FLOOR);
        assert_eq!(share(2 * FLOOR, 128 * FLOOR, 32 * FLOOR), FLOOR);
        assert_eq!(share(0, 0, 0), FLOOR);
    }
}
