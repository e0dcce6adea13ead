//! The node's memory budget: looked at twice a second, and kept by shedding in order.
//!
//! Does: adds up what tails, embedded logs, their rows, views, outboxes and appends that wait hold and, where that comes near
//! `limits.memory`, takes from them: first the views that nobody follows (`views.rs`), then in the order of [`Plan`]. Owns: nothing; the tails
//! and logs keep to the room that they are given. Never knows: connections. Keeps: nobody is asked for more than a sum; a
//! delivery costs nothing for it.

mod views;

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
    /// The rows of embedded logs. The log is where they come from: only who deletes them gives them back.
    rows: usize,
    /// Resident views, and what their readers share.
    views: usize,
    /// What publishers gave, until a log elsewhere has taken it.
    appends: usize,
    /// What of the tails stays.
    tails_floor: usize,
    /// What of the logs stays.
    logs_floor: usize,
}

impl Held {
    const fn total(&self) -> usize {
        self.tails + self.logs + self.fixed()
    }

    /// What neither tails nor logs can give.
    const fn fixed(&self) -> usize {
        self.outboxes + self.rows + self.views + self.appends
    }
}

const fn part(max: usize, tenths: usize) -> usize {
    max * tenths / 10
}

/// What is to be done. Beyond 90 % of the budget tails shrink, then logs, until 80 % is held; where that is not enough publishers
/// may only delete, and where it is more than 90 % of what the rows leave, nobody new joins; and what is then still beyond the
/// budget is taken from the largest outboxes, though together they keep a tenth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// There is room again: nobody is held to less than its own bound.
    Relax,
    /// As it is.
    Stay,
    /// What is left of tails and logs, and what else.
    Shed(Shed),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shed {
    /// Tails together get so much.
    tails: usize,
    /// Logs together get so much.
    logs: usize,
    /// Publishers may only delete.
    full: bool,
    /// Nobody new joins.
    short: bool,
    /// What outboxes give back.
    excess: usize,
}

fn plan(max: usize, held: Held) -> Plan {
    let total = held.total();
    if total <= part(max, 6) {
        return Plan::Relax;
    }
    if total <= part(max, 9) {
        return Plan::Stay;
    }
    let both = part(max, 8).saturating_sub(held.fixed());
    let tails = both
        .saturating_sub(held.logs)
        .max(held.tails_floor)
        .min(held.tails);
    let logs = both
        .saturating_sub(tails)
        .max(held.logs_floor)
        .min(held.logs);
    let left = tails + logs + held.fixed();
    let beside_rows = max.saturating_sub(held.rows);
    Plan::Shed(Shed {
        tails,
        logs,
        full: left > part(max, 9),
        short: left - held.rows > part(beside_rows, 9),
        excess: left
            .saturating_sub(max)
            .min(held.outboxes.saturating_sub(part(max, 1))),
    })
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
    let mut views = views::Eviction::default();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let mut held = look(&app);
        if held.total() > part(max, 9) && views.is_due(app.clock.now()) {
            views.evict(&app, &workers).await;
            held = look(&app);
        }
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
    let (mut held, mut encodings) = (Held::default(), 0);
    for stream in app.streams.all() {
        held.appends += stream.poisons.waiting();
        for partition in &stream.partitions {
            let tail = partition.tail.size().1;
            let log = partition.log.embedded().map_or(0, |log| log.memory());
            held.tails += tail;
            held.logs += log;
            held.rows += partition.log.embedded().map_or(0, |log| log.rows().1);
            held.views += partition.held.views.bytes();
            held.appends += partition.log.waiting();
            encodings += partition.held.encodings.bytes();
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
    memory.rows.set(held.rows as u64);
    memory.views.set(held.views as u64);
    memory.encodings.set(encodings as u64);
    memory.appends.set(held.appends as u64);
    held.views += encodings;
    held
}

/// Does what can be done from here; gives what the workers must give back.
fn follow(app: &App, plan: Plan, held: Held) -> usize {
    let memory = &app.counts.memory;
    let rooms = |tail: &dyn Fn(usize) -> usize, log: &dyn Fn(usize) -> usize| {
        for stream in app.streams.all() {
            for partition in &stream.partitions {
                partition.tail.set_room(tail(partition.tail.size().1));
                if let Some(kept) = partition.log.embedded() {
                    kept.set_room(log(kept.memory()));
                }
            }
        }
    };
    let all = |_| usize::MAX;
    let shed = match plan {
        Plan::Shed(shed) => shed,
        Plan::Stay | Plan::Relax => {
            memory.full.set(0);
            memory.short.set(0);
            if plan == Plan::Relax && memory.shedding.get() > 0 {
                memory.shedding.set(0);
                rooms(&all, &all);
            }
            return 0;
        }
    };
    memory.shedding.set(1);
    memory.full.set(u64::from(shed.full));
    memory.short.set(u64::from(shed.short));
    memory.shed_tails.add(u64::from(shed.tails < held.tails));
    memory.shed_logs.add(u64::from(shed.logs < held.logs));
    let of_log = |own| share(own, held.logs, shed.logs);
    if shed.logs < held.logs {
        rooms(&|own| share(own, held.tails, shed.tails), &of_log);
    } else {
        rooms(&|own| share(own, held.tails, shed.tails), &all);
    }
    shed.excess
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
            ..Held::default()
        }
    }

    const fn shed(tails: usize, logs: usize, full: bool, short: bool, excess: usize) -> Plan {
        Plan::Shed(Shed {
            tails,
            logs,
            full,
            short,
            excess,
        })
    }

    #[test]
    fn it_sheds_in_order() {
        let table = [
            (held(30, 20, 10), Plan::Relax),
            (held(30, 30, 30), Plan::Stay),
            // Tails give first, as much as brings it to 80.
            (held(50, 30, 15), shed(35, 30, false, false, 0)),
            // Their floor is kept; then logs give.
            (held(10, 80, 5), shed(5, 70, false, false, 0)),
            // Outboxes alone are too much: nothing new is taken.
            (held(5, 5, 86), shed(5, 5, true, true, 0)),
            // Beyond the budget: they give back what is beyond it.
            (held(50, 50, 120), shed(5, 5, true, true, 30)),
        ];
        for (held, expected) in table {
            assert_eq!(plan(100, held), expected, "{held:?}");
        }
    }

    #[test]
    fn rows_make_tails_and_logs_give_and_close_nobody() {
        let rows = |rows, outboxes| Held {
            rows,
            ..held(20, 20, outboxes)
        };
        let table = [
            (rows(50, 0), Plan::Stay),
            // They stay; tails give, then logs.
            (rows(55, 0), shed(5, 20, false, false, 0)),
            (rows(70, 0), shed(5, 5, false, false, 0)),
            // Publishers may only delete; of what the rows leave there is room for who joins.
            (rows(81, 0), shed(5, 5, true, false, 0)),
            (rows(85, 5), shed(5, 5, true, true, 0)),
            // What outboxes have is not what is too much.
            (rows(120, 8), shed(5, 5, true, true, 0)),
            (rows(120, 14), shed(5, 5, true, true, 4)),
        ];
        for (held, expected) in table {
            assert_eq!(plan(100, held), expected, "{held:?}");
        }
    }

    #[test]
    fn what_waits_for_a_log_elsewhere_makes_others_give_and_more_of_it_is_refused() {
        let appends = |appends| Held {
            appends,
            ..held(20, 20, 0)
        };
        let table = [
            (appends(20), Plan::Relax),
            (appends(50), Plan::Stay),
            (appends(55), shed(5, 20, false, false, 0)),
            (appends(81), shed(5, 5, true, true, 0)),
            (appends(120), shed(5, 5, true, true, 0)),
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
