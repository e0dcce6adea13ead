//! A node of the simulation: the product's partitions and worker, stepped by hand.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use tidegate::{
    auth::{Claims, GrantSpec, Permission},
    decode::{Decoder, KeyPart},
    model::{Generations, Moment, Offset, Placing},
    partition::{
        Answers, Backing, FenceReport, FenceSettings, FoldSettings, Misplaced, Next, Partition,
        Settings,
        tail::{Tail, TailMax},
        task::Request,
    },
    protocol::{ErrorCode, PublishMessage, Refusal},
    source::{Fetch, ReadAt, SourceError, Wanted, embedded::EmbeddedLog, log::Log},
    streams::{PartitionHandle, Stream, StreamOptions},
    telemetry::WorkerCounts,
    worker::{self, Opening, Outside, Worker},
};
use tokio::sync::{mpsc, watch};

use super::{
    Dice, STREAM, Scene,
    cache::{Cache, FOLD_ID, Loading},
    compaction::{COMPACTION, Cleaned, FETCH_BYTES},
    pipe::{End, Pipe, Pipes},
};

/// The stream's objective in every simulation.
pub(super) const SLO: Duration = Duration::from_millis(750);
/// The heartbeat in every simulation.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(150);
/// A proof keeps a view live for so long.
pub(super) const LIVE_FOR: Duration = Duration::from_millis(900);
/// What a record weighs in a tail, about.
const WEIGHT: usize = 290;

struct Rest {
    stream: Rc<RefCell<Arc<Stream>>>,
}

impl Outside for Rest {
    fn verify(&self, _: &str) -> Result<Arc<Claims>, Refusal> {
        Err(Refusal::new(
            ErrorCode::Unauthorized,
            "nobody is verified here",
        ))
    }
    fn stream(&self, name: &str) -> Option<Arc<Stream>> {
        (name == STREAM).then(|| self.stream.borrow().clone())
    }
    fn publish(&self, _: u64, _: u64, _: PublishMessage, _: Arc<Claims>) {}
    fn wall_s(&self) -> u64 {
        0
    }
}

struct Lane {
    partition: Partition,
    requests: mpsc::Receiver<Request>,
    log: Arc<EmbeddedLog>,
    /// Where nobody else folds the log.
    cleaned: Option<Cleaned>,
    /// Nobody needs it: it is not read.
    resting: bool,
    asked: Option<Moment>,
    answer: Option<Fetch>,
    cache: Option<Cache>,
    loads: Vec<Loading>,
    /// The log is being read behind this for those whose rows are older than the tail.
    filling: Option<Next>,
}

/// Ticks between two looks at how many partitions the topic has.
pub(super) const LOOK_EVERY: u64 = 8;

/// What a node knows of its topic's partitions.
struct Shape {
    known: Generations,
    next_look: u64,
    /// More were found: nothing is read until they are taken up.
    found: Option<u32>,
    /// They run, and not everybody follows them yet.
    taken_up: Option<Generations>,
}

pub(super) struct Node {
    pub(super) number: usize,
    pub(super) paused: bool,
    /// Partitions that rested, and were read again.
    pub(super) woken: u64,
    scene: Scene,
    logs: Vec<(Arc<EmbeddedLog>, Cleaned)>,
    caches: Vec<Cache>,
    shape: Shape,
    stream: Rc<RefCell<Arc<Stream>>>,
    lanes: Vec<Lane>,
    worker: Worker<Pipes, Rest>,
    claims: Arc<Claims>,
}

impl Node {
    pub(super) fn new(
        number: usize,
        scene: &Scene,
        logs: &[(Arc<EmbeddedLog>, Cleaned)],
        caches: &[Cache],
        now: Moment,
    ) -> Self {
        let known = Generations::single(scene.partitions);
        let misplaced = Arc::new(match scene.grows_to {
            Some(_) => Misplaced::of(Placing::among(known)),
            None => Misplaced::default(),
        });
        let of_partition = |partition: u32| lane(scene, partition, logs, caches, &misplaced);
        let (lanes, handles): (Vec<_>, Vec<_>) = (0..scene.partitions).map(of_partition).unzip();
        let stream = Arc::new(Stream {
            name: STREAM.to_owned(),
            mode: scene.mode,
            placement: scene.placement,
            generations: known,
            may_grow: scene.grows_to.is_some(),
            options: Arc::new(StreamOptions {
                freshness_slo: SLO,
                expect_every: None,
                policy: scene.policy,
            })
            .into(),
            partitions: handles,
            misplaced,
            hindrance: watch::Sender::default(),
            poisons: Arc::default(),
            event_time: None,
            canary: Arc::default(),
        });
        let stream = Rc::new(RefCell::new(stream));
        let settings = worker::Settings {
            node: format!("n{number}").into(),
            number: 0,
            heartbeat: HEARTBEAT,
            live_for: LIVE_FOR,
            outbox: scene.outbox,
            drain_bytes: 0,
            drain_over: Duration::from_secs(1 << 20),
            message_bytes: 1 << 20,
            message_timeout: Duration::from_secs(30),
            messages: None,
            subscribes: None,
            channels_max: 100,
            sweep_sockets: scene.sweep,
            auth_timeout: Duration::from_secs(10),
        };
        let spec = GrantSpec {
            channels: vec![format!("{STREAM}/*")],
            can: vec![Permission::Subscribe],
        };
        let grant = spec.resolve(None).expect("a plain pattern");
        let claims = Arc::new(Claims::new("simulated".into(), None, None, &grant));
        let worker = Worker::new(
            settings,
            Pipes::default(),
            Rest {
                stream: stream.clone(),
            },
            Arc::<WorkerCounts>::default(),
            now,
        );
        Self {
            number,
            paused: false,
            woken: 0,
            scene: scene.clone(),
            logs: logs.to_vec(),
            caches: caches.to_vec(),
            shape: Shape {
                known,
                next_look: 0,
                found: None,
                taken_up: None,
            },
            stream,
            lanes,
            worker,
            claims,
        }
    }

    /// What came of the joins of all partitions.
    pub(super) fn answers(&self) -> Answers {
        let mut answers = Answers::default();
        let lanes = self.lanes.iter();
        lanes.for_each(|lane| answers.add(lane.partition.answers()));
        answers
    }

    /// What its partitions say of their caches.
    pub(super) fn fence_reports(&self) -> impl Iterator<Item = FenceReport> {
        let lanes = self.lanes.iter();
        lanes.filter_map(|lane| lane.partition.fence_report())
    }

    /// How its partitions are doing, for the story's end.
    pub(super) fn report(&self) -> String {
        let of = |lane: &Lane| {
            let partition = &lane.partition;
            let (epoch, progress) = (partition.epoch(), partition.progress());
            let (waiting, cache) = (partition.waiting(), partition.fence_report());
            format!("{epoch:?} {progress:?} waiting {waiting} {cache:?}")
        };
        let lanes: Vec<_> = self.lanes.iter().map(of).collect();
        format!("node {}: {}", self.number, lanes.join("; "))
    }

    pub(super) fn adopt(&mut self, pipe: &Rc<RefCell<Pipe>>, now: Moment) {
        let opening = Opening::WebSocket {
            claims: Some(self.claims.clone()),
        };
        self.worker
            .adopt(End(pipe.clone()), (&[], &[]), opening, now)
            .expect("a simulated socket can be watched");
    }

    /// Partitions that nobody needs may rest; those that somebody asks for wake. Tells which.
    pub(super) fn rest_and_wake(
        &mut self,
        chance: usize,
        now: Moment,
        dice: &mut Dice,
    ) -> Vec<String> {
        let mut told = Vec::new();
        for (at, lane) in self.lanes.iter_mut().enumerate() {
            if lane.resting && !lane.requests.is_empty() {
                lane.wake(now);
                self.woken += 1;
                told.push(format!("node {}: partition {at} wakes", self.number));
            } else if chance > 0 && !lane.resting && lane.is_unneeded() && dice.percent(chance) {
                lane.rest(now);
                told.push(format!("node {}: partition {at} rests", self.number));
            }
        }
        told
    }

    /// Looks, now and then, at how many partitions the topic has, and takes up those that were added: one step of that a tick. Tells
    /// what it did.
    pub(super) fn look(
        &mut self,
        partitions: u32,
        tick: u64,
        calm: bool,
        dice: &mut Dice,
    ) -> Option<&'static str> {
        let shape = &mut self.shape;
        if let Some(found) = shape.found {
            if !calm && !dice.percent(40) {
                return None;
            }
            let known = self.stream.borrow().partitions.len();
            let grown = shape.known.grown(found).expect("a multiple");
            let numbers = u32::try_from(known).unwrap_or(u32::MAX)..found;
            let misplaced = self.stream.borrow().misplaced.clone();
            misplaced.place(Placing::among(grown));
            let lanes =
                numbers.map(|one| lane(&self.scene, one, &self.logs, &self.caches, &misplaced));
            let (lanes, handles): (Vec<_>, Vec<_>) = lanes.unzip();
            self.lanes.extend(lanes);
            let stream = self.stream.borrow().grown(grown, handles);
            *self.stream.borrow_mut() = Arc::new(stream);
            (shape.found, shape.taken_up) = (None, Some(grown));
            return Some("runs the partitions that were added");
        }
        if let Some(grown) = shape.taken_up {
            let stream = self.stream.borrow().clone();
            if !dice.percent(60) || !self.worker.take_up(&stream) {
                return None;
            }
            (shape.known, shape.taken_up) = (grown, None);
            return Some("follows the partitions that were added");
        }
        if tick < shape.next_look {
            return None;
        }
        shape.next_look = tick + LOOK_EVERY;
        shape.found = Some(partitions).filter(|found| *found != shape.known.newest());
        shape.found.map(|_| "sees that partitions were added")
    }

    /// Whether its topic has other partitions than it knows.
    const fn is_misshapen(&self) -> bool {
        self.shape.found.is_some() || self.shape.taken_up.is_some()
    }

    /// One tick. `reads`: the source is asked, or answers, or its answer is taken.
    pub(super) fn step(&mut self, reads: bool, calm: bool, now: Moment, dice: &mut Dice) {
        let silent = self.paused || self.is_misshapen();
        for lane in self.lanes.iter_mut().filter(|lane| !lane.resting) {
            if reads {
                lane.step_source(silent, now);
                if calm {
                    lane.step_source(silent, now);
                    lane.step_source(silent, now);
                }
            }
            lane.step_cache(self.paused, calm, now, dice);
            lane.take_joins(now);
            if calm || dice.percent(70) {
                lane.partition.step(now);
            }
        }
        let turns = if calm { 6 } else { dice.below(3) };
        for _ in 0..turns {
            let ready = self.worker.sockets.ready();
            self.worker.step(now, &ready);
        }
    }
}

impl Lane {
    fn take_joins(&mut self, now: Moment) {
        while let Ok(request) = self.requests.try_recv() {
            if let Request::Join(join) = request {
                self.partition.join(join, now);
            }
        }
    }

    fn is_unneeded(&self) -> bool {
        self.requests.is_empty() && !self.partition.is_needed()
    }

    /// What it asked is not answered any more.
    fn rest(&mut self, now: Moment) {
        self.partition.rest(now);
        (self.resting, self.asked, self.answer, self.filling) = (true, None, None, None);
        self.loads.clear();
    }

    fn wake(&mut self, now: Moment) {
        self.resting = false;
        self.partition.wake();
        self.take_joins(now);
    }

    /// Where a log is begun that is not read from its beginning: by the times of its records, or where somebody resumes.
    fn begin(&self, wanted: Wanted, now: Moment) -> Offset {
        let log = self.log.read(None, usize::MAX).expect("a log in memory");
        let age_ms = i64::try_from(wanted.age.as_millis()).unwrap_or(i64::MAX);
        let since_ms = wall_ms(now).saturating_sub(age_ms);
        let old = log
            .records
            .iter()
            .rfind(|record| record.append_time_ms < since_ms);
        let by_time = old.map_or(log.start, |record| record.offset);
        let newest = log.head.number().saturating_sub(wanted.newest);
        let asked = wanted.behind.map(|at| at.max(Offset::new(newest)));
        by_time.min(asked.unwrap_or(by_time)).max(log.start)
    }

    /// A fetch is sent, answered, and taken, at three moments.
    fn step_source(&mut self, paused: bool, now: Moment) {
        match (self.asked, self.answer.take()) {
            (None, _) => self.asked = Some(now),
            (Some(_), None) if paused => {
                self.asked = None;
                self.partition.fail(SourceError::Unavailable);
            }
            (Some(asked), None) => {
                if let Some(wanted) = self.partition.wanted() {
                    self.partition.begin_behind(self.begin(wanted, now));
                }
                let next = self.partition.next_fetch();
                self.answer = next.map(|next| self.read(&next, asked, now));
            }
            (Some(asked), Some(fetch)) => {
                self.asked = None;
                self.partition.take(&fetch, asked, now);
            }
        }
    }

    /// The cache is asked for its header and for what is wanted of it, and answers some of it.
    fn step_cache(&mut self, paused: bool, calm: bool, now: Moment, dice: &mut Dice) {
        let Some(cache) = self.cache.clone() else {
            return;
        };
        if calm || dice.percent(30) {
            match cache.header() {
                Ok(header) => self.partition.saw_header(header),
                Err(()) => self.partition.missed_header(now),
            }
        }
        while let Some((channel, generation)) = self.partition.next_load(now) {
            self.loads.push(Loading::new(channel, generation));
        }
        if dice.percent(if calm { 100 } else { 50 }) && !paused && self.filling.is_none() {
            self.filling = self.partition.next_backfill(now);
        } else if let Some(next) = self.filling.take() {
            let fetch = (!paused).then(|| self.read(&next, now, now));
            self.partition.backfilled(fetch.as_ref(), now);
        }
        let mut going = Vec::new();
        for mut load in self.loads.drain(..) {
            let turns = if calm { 9 } else { dice.below(3) };
            let came = (0..turns).find_map(|_| cache.page(&mut load));
            match came {
                Some(came) => self
                    .partition
                    .loaded(&load.channel, came, now, wall_ms(now)),
                None => going.push(load),
            }
        }
        self.loads = going;
    }

    /// What a source answers that is asked for this.
    fn read(&self, next: &Next, asked: Moment, now: Moment) -> Fetch {
        let (after, other) = match &next.resume {
            // It was read in a log that is not this one.
            Some((epoch, _)) if epoch != self.log.epoch() => (Some(self.log.extent().0), true),
            _ => (next.after, false),
        };
        let Some(cleaned) = &self.cleaned else {
            return self.log.read(after, FETCH_BYTES).expect("a log in memory");
        };
        let mut fetch = cleaned.read(&self.log, after);
        if other {
            fetch.records.clear();
        }
        fetch.when = Some(ReadAt {
            sent_ms: wall_ms(asked),
            answered_ms: wall_ms(now),
        });
        fetch
    }
}

/// One of a node's partitions, and how others reach it.
fn lane(
    scene: &Scene,
    partition: u32,
    logs: &[(Arc<EmbeddedLog>, Cleaned)],
    caches: &[Cache],
    misplaced: &Arc<Misplaced>,
) -> (Lane, PartitionHandle) {
    let (log, cleaned) = &logs[partition as usize];
    let tail = Tail::new(TailMax {
        bytes: scene.tail * (WEIGHT + scene.padding * 2),
        age: scene.tail_age,
    });
    let (sender, requests) = mpsc::channel(1 << 12);
    let is_later = partition >= scene.partitions;
    let settings = Settings {
        stream: STREAM.to_owned(),
        partition,
        mode: scene.mode,
        is_later,
        replay_records: scene.replay,
        hold: Duration::from_secs(2),
    };
    let decoder = Decoder::new(
        STREAM,
        KeyPart::Pointer("/0".into()),
        Some(KeyPart::Pointer("/1".into())),
        true,
    );
    let fold = FoldSettings {
        compaction: COMPACTION,
        accepts_incomplete: false,
        needs_tombstones: is_later,
    };
    let fold_id = FOLD_ID.into();
    let backing = match (scene.folds, scene.cached) {
        (true, true) => Backing::from(FenceSettings {
            fold,
            fold_id,
            alone_max: u64::MAX,
        }),
        (true, false) => Backing::from(fold),
        (false, _) => Backing::from(log.clone()),
    };
    let core = Partition::new(settings, decoder, backing, tail.clone());
    let core = core.placed(misplaced.clone());
    let handle = PartitionHandle {
        tail,
        requests: sender,
        log: Log::Embedded(log.clone()),
        held: core.held(),
    };
    let lane = Lane {
        partition: core,
        requests,
        log: log.clone(),
        cleaned: scene.folds.then(|| cleaned.clone()),
        resting: false,
        asked: None,
        answer: None,
        cache: scene.cached.then(|| caches[partition as usize].clone()),
        loads: Vec::new(),
        filling: None,
    };
    (lane, handle)
}

fn wall_ms(moment: Moment) -> i64 {
    i64::try_from(moment.millis()).unwrap_or(i64::MAX)
}
