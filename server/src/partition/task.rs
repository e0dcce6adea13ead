//! The task that drives one partition: it fetches, applies, and answers, one after the other.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Answers, Join, Partition, ViewAt};
use crate::{
    clock::Clock,
    model::{Channel, Moment, Position},
    source::Source,
};

/// Bytes of one fetch, about: a batch of the tail.
const FETCH_BYTES: usize = 1 << 20;
/// When records came within this time of others before …
const HURRY: Duration = Duration::from_millis(2);
/// … the next ones are waited for at least so long: a partition that is written to without pause wakes a thousand times a second
/// instead of once for each append, and what gathers meanwhile leaves together. A quiet one never waits.
const BREATH: Duration = Duration::from_millis(1);
/// Requests that may wait for a partition; beyond it the asker is told to come back.
pub const REQUESTS_MAX: usize = 1 << 16;
/// Requests taken in one go.
const REQUESTS_BATCH: usize = 1024;
/// Long-polls that may wait in one partition; beyond it they are answered at once.
const WATCHERS_MAX: usize = 100_000;

/// Of the queue, this part is kept for those who resume: they have less far to go, and were here before.
const KEPT_FOR_RESUMING: usize = 4;

/// Whether another request may wait: who joins cold is sent away first.
#[must_use]
pub fn has_room(requests: &mpsc::Sender<Request>, resuming: bool) -> bool {
    let kept = requests.max_capacity() / KEPT_FOR_RESUMING;
    requests.capacity() > if resuming { 0 } else { kept }
}

/// What a partition's task is asked.
#[derive(Debug)]
pub enum Request {
    /// To follow a channel.
    Join(Join),
    /// A view, once; where `newer_than` is given, when its last change is behind that position.
    View {
        /// Of which channel.
        channel: Channel,
        /// Only something newer than this.
        newer_than: Option<Position>,
        /// Where the answer goes; dropped when the asker no longer waits.
        reply: oneshot::Sender<ViewAt>,
    },
    /// Which of its views nobody asked for lately.
    Unasked(oneshot::Sender<Vec<Channel>>),
    /// To let go of these views, and of what readers share; told how many went.
    Evict(Vec<Channel>, oneshot::Sender<usize>),
    /// How it is doing.
    Inspect(oneshot::Sender<Inspection>),
    /// To fetch at least so often from now on, so that proofs are young enough.
    ProveEvery(Duration),
}

/// How a partition is doing, for operators.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Inspection {
    /// Applied up to here.
    pub applied: u64,
    /// The newest head seen.
    pub head: u64,
    /// Resident views.
    pub views: usize,
    /// Rows of all resident views.
    pub rows: usize,
    /// Bytes that they hold beside the rows' data, which is the log's, about.
    pub view_bytes: usize,
    /// Bytes that their readers share, about.
    pub encoded_bytes: usize,
    /// Views that were evicted, since memory was short and nobody followed them.
    pub evicted: u64,
    /// Records read, those that meant nothing included.
    pub records: u64,
    /// Records that meant nothing.
    pub poisoned: u64,
    /// Fetches that succeeded.
    pub fetches: u64,
    /// Fetches that failed.
    pub failed_fetches: u64,
    /// Joins and long-polls that wait.
    pub waiting: usize,
    /// What came of the joins.
    pub answers: Answers,
}

#[derive(Default)]
struct Counts {
    records: u64,
    fetches: u64,
    failed: u64,
}

struct Watcher {
    channel: Channel,
    newer_than: Option<Position>,
    reply: oneshot::Sender<ViewAt>,
}

/// Runs a partition until it is cancelled.
pub async fn run<S: Source>(
    mut partition: Partition,
    mut source: S,
    mut requests: mpsc::Receiver<Request>,
    clock: Clock,
    mut proof_every: Duration,
    stop: CancellationToken,
) {
    let (mut taken, mut watchers) = (Vec::new(), Vec::<Watcher>::new());
    let mut counts = Counts::default();
    let mut came_at = Moment::default();
    loop {
        let asked_at = clock.now();
        let (mut behind, mut hurried) = (false, false);
        match source.fetch(partition.next_after(), FETCH_BYTES).await {
            Ok(fetch) => {
                behind = fetch.upto < fetch.head && !fetch.records.is_empty();
                counts.fetches += 1;
                counts.records += fetch.records.len() as u64;
                if !fetch.records.is_empty() {
                    hurried = asked_at.since(came_at) < HURRY;
                    came_at = asked_at;
                }
                partition.take(&fetch, asked_at, clock.now());
            }
            Err(error) => {
                counts.failed += 1;
                partition.fail(error);
                #[cfg(feature = "seeded-bugs")]
                partition.hide_failure(asked_at, clock.now());
            }
        }
        partition.step(clock.now());
        watchers.retain_mut(|watcher| !answer(&mut partition, watcher, clock.now()));
        // Answered behind a fetch that was sent after they came: so the first proof goes out with the answer.
        for request in taken.drain(..) {
            take(
                &mut partition,
                request,
                &mut watchers,
                &counts,
                &mut proof_every,
                clock.now(),
            );
        }
        if behind {
            // Another batch waits already; the workers on this runtime get their turn.
            tokio::task::yield_now().await;
            if stop.is_cancelled() {
                return;
            }
            continue;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            count = requests.recv_many(&mut taken, REQUESTS_BATCH) => {
                if count == 0 {
                    return;
                }
            }
            () = changed(&mut source, hurried) => {}
            () = tokio::time::sleep(proof_every) => {}
        }
    }
}

/// Returns when there may be something new, and not before a hurried partition has taken breath. Cancel safe.
async fn changed(source: &mut impl Source, hurried: bool) {
    if hurried {
        tokio::time::sleep(BREATH).await;
    }
    source.changed().await;
}

fn take(
    partition: &mut Partition,
    request: Request,
    watchers: &mut Vec<Watcher>,
    counts: &Counts,
    proof_every: &mut Duration,
    now: Moment,
) {
    match request {
        Request::Join(join) => partition.join(join, now),
        Request::View {
            channel,
            newer_than,
            reply,
        } => {
            let mut watcher = Watcher {
                channel,
                newer_than,
                reply,
            };
            if watchers.len() >= WATCHERS_MAX {
                watcher.newer_than = None;
            }
            if !answer(partition, &mut watcher, now) {
                watchers.push(watcher);
            }
        }
        // Who asked may have gone; so below.
        Request::Unasked(reply) => drop(reply.send(partition.unasked(now))),
        Request::Evict(channels, reply) => {
            reply
                .send(partition.evict(&channels, now))
                .unwrap_or_default();
        }
        Request::Inspect(reply) => {
            let ((views, rows), (applied, head)) = (partition.resident(), partition.progress());
            let inspection = Inspection {
                applied: applied.number(),
                head: head.number(),
                views,
                rows,
                view_bytes: partition.held.views.bytes(),
                encoded_bytes: partition.held.encodings.bytes(),
                evicted: partition.evicted(),
                records: counts.records,
                poisoned: partition.poisoned(),
                fetches: counts.fetches,
                failed_fetches: counts.failed,
                waiting: partition.waiting() + watchers.len(),
                answers: partition.answers(),
            };
            // Who asked may have gone.
            drop(reply.send(inspection));
        }
        Request::ProveEvery(every) => *proof_every = every,
    }
}

/// Answers a view request if there is something newer; also done when its asker has gone.
fn answer(partition: &mut Partition, watcher: &mut Watcher, now: Moment) -> bool {
    if watcher.reply.is_closed() {
        return true;
    }
    if let Some(seen) = &watcher.newer_than {
        let last = partition.last_change(&watcher.channel);
        let another = partition.epoch().is_some_and(|epoch| *epoch != seen.epoch);
        if !another && last.is_none_or(|last| last.offset <= seen.offset) {
            return false;
        }
    }
    let Some(view) = partition.view_now(&watcher.channel, now) else {
        return false;
    };
    let (unused, _) = oneshot::channel();
    // Who asked may have gone.
    drop(std::mem::replace(&mut watcher.reply, unused).send(view));
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_joins_cold_is_sent_away_before_who_resumes() {
        let (requests, _taken) = mpsc::channel(8);
        let fill = |count| {
            for _ in 0..count {
                let (reply, _) = oneshot::channel();
                requests.try_send(Request::Inspect(reply)).unwrap();
            }
            (has_room(&requests, false), has_room(&requests, true))
        };
        assert_eq!(fill(5), (true, true));
        assert_eq!(fill(1), (false, true));
        assert_eq!(fill(1), (false, true));
        assert_eq!(fill(1), (false, false));
    }
}
