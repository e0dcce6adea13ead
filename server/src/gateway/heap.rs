//! The heap: the pages that connections used while they came and went go back to the system.
//!
//! Does: looks once a second how many came and went; once that was much, and calm has returned, has the allocator give its
//! free pages back. Owns: nothing. Never knows: what memory is used for. Keeps: it is done seldom, and where it can be while
//! workers idle, since whoever allocates meanwhile may wait.
//!
//! A connection needs ten thousand bytes while it says who it is, and a few hundred once it listens. glibc keeps what is free
//! for those who come next, wherever something that lives on lies above it. Other allocators are left to their own ways.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{telemetry::WorkerCounts, transport::App};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// So many must have come or gone since the last time: a few megabytes are not worth it …
const MOVED_LEAST: u64 = 1_000;
/// … and at least this part of those who are there, since the allocator looks at all that is free.
const MOVED_PART: u64 = 4;
/// It is calm where in one look only this part of that comes or goes.
const CALM_PART: u64 = 10;
/// Workers that turn for more than this part of the time are waited for …
const BUSY_PART: u32 = 2;
/// … for so many looks: some are never idle.
const PATIENCE: u32 = 2;

/// What the node's counters say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Look {
    /// Connections that were handed over so far.
    opened: u64,
    /// Those of them that have gone.
    closed: u64,
    /// HTTP connections now.
    http: u64,
    /// Time that all workers together turned so far.
    busy: Duration,
    workers: u32,
}

/// What has moved since pages were given back.
#[derive(Debug, Default)]
struct Watch {
    last: Look,
    moved: u64,
    /// For so many looks busy workers have been waited for.
    waited: u32,
}

impl Watch {
    /// Whether it is time to give pages back.
    fn is_time(&mut self, now: Look) -> bool {
        let last = std::mem::replace(&mut self.last, now);
        let moved = now.opened.saturating_sub(last.opened)
            + now.closed.saturating_sub(last.closed)
            + now.http.abs_diff(last.http);
        self.moved += moved;
        let open = now.opened.saturating_sub(now.closed);
        let least = MOVED_LEAST.max(open / MOVED_PART);
        if self.moved < least || moved >= least / CALM_PART {
            self.waited = 0;
            return false;
        }
        let busy = now.busy.saturating_sub(last.busy);
        if busy >= LOOK * now.workers / BUSY_PART && self.waited < PATIENCE {
            self.waited += 1;
            return false;
        }
        (self.moved, self.waited) = (0, 0);
        true
    }
}

/// Looks until it is stopped.
pub(super) async fn tend(app: Arc<App>, stop: CancellationToken) {
    let mut watch = Watch::default();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        if watch.is_time(look(&app)) {
            let began = tokio::time::Instant::now();
            // It may take milliseconds, which no task of this runtime shall wait for.
            let given = tokio::task::spawn_blocking(give_back).await;
            let (given, took) = (given.unwrap_or_default(), began.elapsed());
            tracing::debug!(given, ?took, "free pages went back to the system");
        }
    }
}

fn look(app: &App) -> Look {
    let of_worker = |counts: &Arc<WorkerCounts>| {
        let closed = counts.closed_websocket.iter().chain(&counts.closed_sse);
        let closed: u64 = closed.map(crate::telemetry::Counter::get).sum();
        (
            closed,
            counts.websocket.get() + counts.sse.get(),
            counts.busy_us.get(),
        )
    };
    let mut look = Look {
        http: app.counts.http.get(),
        ..Look::default()
    };
    for (closed, open, busy_us) in app.workers.iter().map(of_worker) {
        look.closed += closed;
        look.opened += closed + open;
        look.busy += Duration::from_micros(busy_us);
        look.workers += 1;
    }
    look
}

/// Has the allocator give its free pages back; tells whether it did.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(
    unsafe_code,
    reason = "the allocator's own function has no safe wrapper"
)]
fn give_back() -> bool {
    // SAFETY: it takes no pointer, may be called by any thread at any time (MT-Safe in glibc's manual), and changes nothing
    // of what is allocated.
    unsafe { libc::malloc_trim(0) != 0 }
}

/// Other allocators have no such function, or need none.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_back() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After each second: opened, closed, and HTTP connections, and for how many milliseconds the worker turned.
    fn check(seconds: &[(u64, u64, u64, u64)], expect: &[bool]) {
        let (mut watch, mut busy) = (Watch::default(), Duration::ZERO);
        let told = seconds.iter().map(|&(opened, closed, http, busy_ms)| {
            busy += Duration::from_millis(busy_ms);
            watch.is_time(Look {
                opened,
                closed,
                http,
                busy,
                workers: 1,
            })
        });
        assert_eq!(told.collect::<Vec<_>>(), expect, "{seconds:?}");
    }

    #[test]
    fn pages_go_back_once_it_is_calm_after_much_moved() {
        let storm = [
            (5_000, 0, 900, 900),
            (9_950, 0, 256, 900),
            (10_000, 0, 0, 20),
            (10_000, 0, 0, 20),
            (10_000, 0, 0, 20),
        ];
        check(&storm, &[false, false, false, true, false]);
        // Who leaves counts as who comes.
        let leaving = [(900, 0, 0, 10), (900, 900, 0, 10), (900, 900, 0, 10)];
        check(&leaving, &[false, false, true]);
        // So do those who never got as far as to be handed over.
        let strangers = [(0, 0, 10_000, 10), (0, 0, 0, 10), (0, 0, 0, 10)];
        check(&strangers, &[false, false, true]);
    }

    #[test]
    fn little_is_not_worth_it_and_much_is_measured_by_who_is_there() {
        check(
            &[(100, 0, 0, 0), (150, 50, 0, 0), (200, 100, 0, 0)],
            &[false, false, false],
        );
        let large = [
            (100_000, 0, 0, 0),
            (100_000, 0, 0, 0),
            (102_000, 2_000, 0, 0),
            (102_000, 2_000, 0, 0),
            (115_000, 15_000, 0, 0),
            (116_000, 16_000, 0, 0),
        ];
        check(&large, &[false, true, false, false, false, true]);
    }

    #[test]
    fn busy_workers_are_waited_for_but_not_for_ever() {
        let passing = [(2_000, 0, 0, 10), (2_000, 0, 0, 500), (2_000, 0, 0, 499)];
        check(&passing, &[false, false, true]);
        let lasting = [(2_000, 0, 0, 900); 6];
        check(&lasting, &[false, false, false, true, false, false]);
    }

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn free_pages_go_back() {
        let held: Vec<Vec<u8>> = (0..4_000).map(|_| vec![1; 8 << 10]).collect();
        let kept: Vec<Vec<u8>> = held.into_iter().step_by(100).collect();
        assert!(give_back());
        assert!(kept.iter().all(|bytes| bytes.iter().all(|&byte| byte == 1)));
    }
}
