//! The task that drives one partition: it fetches, applies, and answers, one after the other.

use std::time::Duration;

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Answers, Cached, Copying, FenceReport, Join, Partition, Reads, Skipped, ViewAt,
    copying::{Copier, CopyReport},
    loading::{Loading, Says},
    need::Need,
};
use crate::{
    clock::Clock,
    model::{Channel, Moment, Position},
    source::{Source, SourceError},
};

/// Bytes of one fetch, about: a batch of the tail.
pub(super) const FETCH_BYTES: usize = 1 << 20;
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
    /// To be read so from now on.
    Read(Reads),
}

impl Request {
    /// Whether the log has to be read for it.
    const fn needs_the_log(&self) -> bool {
        matches!(self, Self::Join(_) | Self::View { .. })
    }
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
    /// Records of channels that do not belong into this partition.
    pub misplaced: u64,
    /// Records whose event time was not where `event_time` says, or was no time.
    pub untimed: u64,
    /// Fetches that succeeded.
    pub fetches: u64,
    /// Fetches that failed.
    pub failed_fetches: u64,
    /// What is wrong with its source, while fetches fail.
    pub failing: Option<Failing>,
    /// The last record that meant nothing, or was in the wrong partition: where, and why.
    pub last_skipped: Option<Skipped>,
    /// Joins and long-polls that wait.
    pub waiting: usize,
    /// For how many milliseconds it has not been read, since nobody needed it; none while it is read.
    pub resting_ms: Option<u64>,
    /// Times that it was read again, since somebody did.
    pub wakings: u64,
    /// What came of the joins.
    pub answers: Answers,
    /// The cache that its views are read from, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<FenceReport>,
    /// The copy of its views on the disk, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy: Option<CopyReport>,
}

/// What is wrong with a partition's source.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Failing {
    /// What the last fetch failed of.
    pub message: String,
    /// How long ago the first of them failed since the last that succeeded, in milliseconds.
    pub for_ms: u64,
}

#[derive(Default)]
struct Counts {
    records: u64,
    fetches: u64,
    failed: u64,
    /// Since when fetches fail, and why the last one did.
    failing: Option<(Moment, String)>,
}

impl Counts {
    fn fail(&mut self, why: String, now: Moment) {
        self.failed += 1;
        let since = self.failing.take().map_or(now, |(since, _)| since);
        self.failing = Some((since, why));
    }

    fn failing(&self, now: Moment) -> Option<Failing> {
        let (since, message) = self.failing.as_ref()?;
        Some(Failing {
            message: message.clone(),
            for_ms: millis(now.since(*since)),
        })
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

struct Watcher {
    channel: Channel,
    newer_than: Option<Position>,
    reply: oneshot::Sender<ViewAt>,
}

/// What a partition has beside its log.
#[derive(Default)]
pub struct Beside {
    /// The cache that its views are read from.
    pub cached: Option<Cached>,
    /// How its views are copied to the disk.
    pub copying: Option<Copying>,
}

/// Runs a partition until it is cancelled.
pub async fn run<S: Source>(
    partition: Partition,
    source: S,
    beside: Beside,
    requests: mpsc::Receiver<Request>,
    clock: Clock,
    reads: Reads,
    stop: CancellationToken,
) {
    let copier = |copying| Copier::new(copying, clock.now());
    let mut task = Task {
        partition,
        loading: Loading::new(beside.cached, &source),
        copier: beside.copying.map(copier),
        source,
        requests,
        taken: Vec::new(),
        watchers: Vec::new(),
        counts: Counts::default(),
        came_at: Moment::default(),
        clock,
        prove_every: reads.prove_every,
        need: Need::new(reads.linger),
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = task.run() => {}
    }
    if let Some(copier) = &mut task.copier {
        copier.finish(&task.partition, clock).await;
    }
}

struct Task<S> {
    partition: Partition,
    source: S,
    loading: Loading<S>,
    copier: Option<Copier>,
    requests: mpsc::Receiver<Request>,
    taken: Vec<Request>,
    watchers: Vec<Watcher>,
    counts: Counts,
    /// When records came last.
    came_at: Moment,
    clock: Clock,
    prove_every: Duration,
    need: Need,
}

/// What a fetch says of the next one.
#[derive(Clone, Copy, Default)]
struct Pace {
    /// Another batch waits already.
    behind: bool,
    /// Records come without pause.
    hurried: bool,
}

impl<S: Source> Task<S> {
    /// Returns when nobody can ask it anything any more.
    async fn run(&mut self) {
        let mut rests = self.need.is_by_need() && self.looks_well().await;
        loop {
            if rests && self.rest().await.is_none() {
                return;
            }
            let pace = self.fetch().await;
            while let Some(says) = self.loading.ready() {
                self.hear(says);
            }
            self.look_at_copy().await;
            self.look_again();
            // Answered behind a fetch that was sent after they came: so the first proof goes out with the answer.
            self.take_all();
            self.load();
            rests = self.is_unneeded();
            if rests {
                continue;
            }
            if pace.behind {
                // The workers on this runtime get their turn.
                tokio::task::yield_now().await;
            } else if self.wait(pace.hurried).await.is_none() {
                return;
            }
        }
    }

    /// Whether nobody needs it any more. While its source fails it is needed: else its breaker would stay open, and what is wrong
    /// unsaid.
    fn is_unneeded(&mut self) -> bool {
        let waits = !self.watchers.is_empty() || !self.requests.is_empty();
        let needed = waits || self.counts.failing.is_some() || self.partition.is_needed();
        self.need.is_over(needed, self.clock.now())
    }

    /// Whether what nobody needs yet could be read: nothing is read for that, but the topic is looked at.
    async fn looks_well(&mut self) -> bool {
        let looked = self.source.look().await;
        looked.map_err(|error| self.failed(error)).is_ok()
    }

    /// Reads nothing until somebody needs it; none when nobody can ask any more.
    async fn rest(&mut self) -> Option<()> {
        if let Some(copier) = &mut self.copier {
            copier.look_now(&self.partition, self.clock);
        }
        let now = self.clock.now();
        self.need.rest(now);
        self.partition.rest(now);
        self.loading.rest();
        self.source.rest();
        loop {
            let count = self
                .requests
                .recv_many(&mut self.taken, REQUESTS_BATCH)
                .await;
            if count == 0 {
                return None;
            }
            if self.taken.iter().any(Request::needs_the_log) {
                break;
            }
            self.take_all();
            if !self.need.is_by_need() {
                break;
            }
        }
        self.need.wake();
        self.partition.wake();
        self.loading.wake(&self.source);
        // What they have already says where the log is begun.
        self.take_all();
        Some(())
    }

    /// Copies what is due to be; where nothing can be known, what an earlier process copied is taken.
    async fn look_at_copy(&mut self) {
        let Some(copier) = &mut self.copier else {
            return;
        };
        copier.look(&self.partition, self.clock);
        if self.partition.wants_copy(self.clock.now()) {
            let copied = copier.read().await;
            let (now, now_ms) = (self.clock.now(), self.clock.wall_ms());
            self.partition.take_copy(copied, now, now_ms);
        }
    }

    fn take_all(&mut self) {
        for request in std::mem::take(&mut self.taken) {
            self.take(request);
        }
    }

    /// Asks where a log is begun that has not been read yet, where that is not its beginning.
    async fn begin(&mut self) -> Result<(), SourceError> {
        let Some(wanted) = self.partition.wanted() else {
            return Ok(());
        };
        if let Some(at) = self.source.begin(wanted).await? {
            self.partition.begin_behind(at);
        }
        Ok(())
    }

    fn failed(&mut self, error: SourceError) {
        let why = self.source.failure();
        let why = why.unwrap_or_else(|| error.to_string());
        self.counts.fail(why, self.clock.now());
        self.partition.fail(error);
    }

    async fn fetch(&mut self) -> Pace {
        if let Err(error) = self.begin().await {
            self.failed(error);
            return Pace::default();
        }
        let asked_at = self.clock.now();
        let Some(next) = self.partition.next_fetch() else {
            return Pace::default();
        };
        if let Some((epoch, lineage)) = &next.resume {
            let at = next.after.unwrap_or_default();
            self.source.resume(epoch, at, lineage.as_deref());
        }
        match self.source.fetch(next.after, FETCH_BYTES).await {
            Ok(fetch) => {
                self.counts.fetches += 1;
                self.counts.failing = None;
                self.counts.records += fetch.records.len() as u64;
                let came = !fetch.records.is_empty();
                let hurried = came && asked_at.since(self.came_at) < HURRY;
                if came {
                    self.came_at = asked_at;
                }
                self.partition.take(&fetch, asked_at, self.clock.now());
                let behind = came && fetch.upto < fetch.head;
                Pace { behind, hurried }
            }
            Err(error) => {
                self.failed(error);
                #[cfg(feature = "seeded-bugs")]
                self.partition.hide_failure(asked_at, self.clock.now());
                Pace::default()
            }
        }
    }

    /// Waits until there is a reason for another fetch; none when nobody can ask any more. What the cache says is taken meanwhile.
    async fn wait(&mut self, hurried: bool) -> Option<()> {
        let until = Instant::now() + self.prove_every;
        loop {
            let load_at = self.partition.load_at().map(|at| self.clock.instant(at));
            tokio::select! {
                biased;
                count = self.requests.recv_many(&mut self.taken, REQUESTS_BATCH) => {
                    return (count > 0).then_some(());
                }
                says = self.loading.next() => self.hear(says),
                () = changed(&mut self.source, hurried) => return Some(()),
                () = tokio::time::sleep_until(until) => return Some(()),
                () = tokio::time::sleep_until(load_at.unwrap_or(until)), if load_at.is_some() => {}
            }
            self.load();
            self.look_again();
            if self.partition.is_to_begin() {
                return Some(());
            }
        }
    }

    /// Takes what the cache says.
    fn hear(&mut self, says: Says<S>) {
        let now = self.clock.now();
        match says {
            Says::Header(header) => self.partition.saw_header(header),
            Says::NoAnswer => self.partition.missed_header(now),
            Says::Load(channel, load) => {
                self.partition
                    .loaded(&channel, load, now, self.clock.wall_ms());
            }
            Says::Log(reader, fetch) => {
                self.loading.give_back(reader);
                self.partition.backfilled(fetch.as_ref(), now);
            }
        }
    }

    /// Begins to read the channels whose turn it is.
    fn load(&mut self) {
        while let Some((channel, generation)) = self.partition.next_load(self.clock.now()) {
            self.loading.begin(channel, generation);
        }
        if let Some(next) = self.partition.next_backfill(self.clock.now()) {
            self.loading.read_log(&next);
        }
    }

    /// Answers who can be answered now.
    fn look_again(&mut self) {
        self.partition.step(self.clock.now());
        let (partition, clock) = (&mut self.partition, self.clock);
        self.watchers
            .retain_mut(|watcher| !answer(partition, watcher, clock.now()));
    }

    fn take(&mut self, request: Request) {
        let now = self.clock.now();
        if request.needs_the_log() {
            self.need.asked();
        }
        match request {
            Request::Join(join) => self.partition.join(join, now),
            Request::View {
                channel,
                newer_than,
                reply,
            } => self.watch(Watcher {
                channel,
                newer_than,
                reply,
            }),
            // Who asked may have gone; so below.
            Request::Unasked(reply) => drop(reply.send(self.partition.unasked(now))),
            Request::Evict(channels, reply) => {
                reply
                    .send(self.partition.evict(&channels, now))
                    .unwrap_or_default();
            }
            Request::Inspect(reply) => drop(reply.send(self.inspect())),
            Request::Read(reads) => {
                self.prove_every = reads.prove_every;
                self.need.bound(reads.linger);
            }
        }
    }

    fn watch(&mut self, mut watcher: Watcher) {
        if self.watchers.len() >= WATCHERS_MAX {
            watcher.newer_than = None;
        }
        if !answer(&mut self.partition, &mut watcher, self.clock.now()) {
            self.watchers.push(watcher);
        }
    }

    fn inspect(&self) -> Inspection {
        let partition = &self.partition;
        let ((views, rows), (applied, head)) = (partition.resident(), partition.progress());
        Inspection {
            applied: applied.number(),
            head: head.number(),
            views,
            rows,
            view_bytes: partition.held.views.bytes(),
            encoded_bytes: partition.held.encodings.bytes(),
            evicted: partition.evicted(),
            records: self.counts.records,
            poisoned: partition.poisoned(),
            misplaced: partition.misplaced(),
            untimed: partition.untimed(),
            fetches: self.counts.fetches,
            failed_fetches: self.counts.failed,
            failing: self.counts.failing(self.clock.now()),
            last_skipped: partition.last_skipped().cloned(),
            waiting: partition.waiting() + self.watchers.len(),
            resting_ms: self.need.resting(self.clock.now()).map(millis),
            wakings: self.need.wakings(),
            answers: partition.answers(),
            cache: partition.fence_report(),
            copy: self
                .copier
                .as_ref()
                .map(|copier| copier.report(self.clock.now())),
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
