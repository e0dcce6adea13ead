//! Two folds of one partition at once, with calls whose answers are lost, crashes, a cache that is emptied or goes back, and a log
//! that is made anew: whatever the order, what is there is always the log's fold up to where its header says.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Rows with the offsets of their last changes.
type Rows = BTreeMap<String, u64>;
/// Logs by their epochs.
type Logs = BTreeMap<String, Log>;

const EPOCHS: [&str; 4] = ["e1", "e2", "e3", "e4"];
const BEGIN_MS: i64 = 2_000;
/// Between two things that happen: so now and then a proof is to be written, by which an emptied cache is noticed.
const STEP_MS: i64 = 20;

/// A cache as Redis would be: each method is one step.
#[derive(Clone, Default)]
struct Cache {
    current: Option<Generation>,
    generations: Vec<(Header, Rows)>,
}

/// What happens, by chance.
struct Dice(u64);

impl Dice {
    const fn throw(&mut self, sides: u64) -> u64 {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
    fn count(&mut self, sides: u64) -> usize {
        usize::try_from(self.throw(sides)).unwrap()
    }
}

impl Cache {
    fn header(&self, generation: &Generation) -> Option<Header> {
        let mut all = self.generations.iter().map(|(header, _)| header);
        all.find(|header| header.generation == *generation).cloned()
    }

    fn current(&self) -> Option<Header> {
        self.header(self.current.as_ref()?)
    }

    fn write(&mut self, writing: &Writing, logs: &Logs) -> Wrote {
        let header = &writing.header;
        let there = self.header(&header.generation);
        if there != writing.expected {
            return Wrote::Conflict(there);
        }
        let from = there.map_or(0, |there| number(&there.applied));
        let (log, upto) = (&logs[header.epoch.as_str()], number(&header.applied));
        let changed: BTreeSet<_> = log.range(from, upto).map(|(_, row, _)| row).collect();
        assert_eq!(
            writing.batch.rows(),
            changed.len(),
            "what lies between the headers"
        );
        let is_it = |header: &Header| header.generation == writing.header.generation;
        self.generations.retain(|(header, _)| !is_it(header));
        self.generations.push((header.clone(), log.rows(upto)));
        Wrote::Written
    }

    fn flip(&mut self, base: Option<&Header>, built: &Header) -> Flipped {
        let is_there = self.header(&built.generation).as_ref() == Some(built);
        if self.current().as_ref() != base || !is_there {
            return Flipped::Conflict(self.current());
        }
        self.current = Some(built.generation.clone());
        self.generations
            .retain(|(header, _)| header.generation == built.generation);
        Flipped::Flipped
    }
}

impl Log {
    fn range(&self, from: u64, upto: u64) -> impl Iterator<Item = &(u64, String, i64)> {
        let is_in = move |offset: u64| offset > from && offset <= upto;
        self.records
            .iter()
            .filter(move |(offset, ..)| is_in(*offset))
    }
    fn rows(&self, upto: u64) -> Rows {
        let records = self.range(0, upto);
        records
            .map(|(offset, row, _)| (row.clone(), *offset))
            .collect()
    }
}

fn number(offset: &DecimalOffset) -> u64 {
    Offset::try_from(offset).unwrap().number()
}

/// Everything that there is.
struct World {
    dice: Dice,
    cache: Cache,
    backup: Cache,
    logs: Logs,
    epoch: usize,
    now_ms: i64,
}

impl World {
    fn log(&mut self) -> &mut Log {
        self.logs.get_mut(EPOCHS[self.epoch]).unwrap()
    }

    fn made_anew(&mut self) {
        let name = EPOCHS[self.epoch];
        let log = Log {
            epoch: name,
            ..Log::new()
        };
        self.logs.insert(name.to_owned(), log);
    }

    /// One thing that a fold does; `lost`: its answer does not come back.
    fn go_on(&mut self, fold: &mut Fold, lost: bool) {
        self.now_ms += STEP_MS;
        match fold.step() {
            _ if lost && self.dice.throw(2) == 0 => fold.failed(),
            Step::Look => fold.looked(self.cache.current(), self.now_ms),
            Step::Flip => {
                let (base, built) = fold.to_flip().unwrap();
                let flipped = self.cache.flip(base.as_ref(), &built);
                if lost {
                    fold.failed();
                } else {
                    fold.flipped(&flipped, self.now_ms);
                }
            }
            Step::Fold if self.dice.throw(2) == 0 => self.write(fold, lost),
            Step::Fold => self.read(fold),
        }
    }

    fn write(&mut self, fold: &mut Fold, lost: bool) {
        let Some(writing) = fold.hand_out(self.now_ms) else {
            return;
        };
        // What is read meanwhile.
        while self.dice.throw(3) == 0 {
            self.read(fold);
        }
        let wrote = self.cache.write(&writing, &self.logs);
        if lost {
            fold.failed();
        } else {
            fold.wrote(wrote);
        }
    }

    fn read(&mut self, fold: &mut Fold) {
        if fold.has_room() {
            let count = 1 + self.dice.count(5);
            let now_ms = self.now_ms;
            take(fold, self.log(), count, now_ms);
        }
    }

    /// One thing that happens to anybody.
    fn happens(&mut self, folds: &mut [Fold; 2]) {
        let who = self.dice.count(2);
        match self.dice.throw(40) {
            0 => folds[who] = fold(self.now_ms),
            1 => self.backup = self.cache.clone(),
            2 => self.cache = self.backup.clone(),
            3 => self.cache = Cache::default(),
            4 if self.epoch + 1 < EPOCHS.len() => {
                self.epoch += 1;
                self.made_anew();
            }
            5..12 => {
                let row = self.dice.throw(5).to_string();
                let now_ms = self.now_ms;
                self.log().append(&row, now_ms);
            }
            what => self.go_on(&mut folds[who], what == 12),
        }
    }

    fn is_whole(&self, seed: u64) {
        for (header, rows) in &self.cache.generations {
            let log = &self.logs[header.epoch.as_str()];
            assert_eq!(*rows, log.rows(number(&header.applied)), "seed {seed}");
        }
    }
}

#[test]
fn whatever_happens_the_cache_is_the_fold_of_its_log_up_to_where_it_says() {
    let (mut conflicts, mut refolds) = (0, 0);
    for seed in 0..400 {
        let mut folds = [fold(BEGIN_MS), fold(BEGIN_MS)];
        let mut world = World {
            dice: Dice(seed),
            cache: Cache::default(),
            backup: Cache::default(),
            logs: Logs::new(),
            epoch: 0,
            now_ms: BEGIN_MS,
        };
        world.made_anew();
        for _ in 0..300 {
            world.happens(&mut folds);
            world.is_whole(seed);
        }
        // Left alone, either of them comes to the log's end.
        for _ in 0..500 {
            world.go_on(&mut folds[0], false);
        }
        let (header, log) = (world.cache.current().unwrap(), world.log());
        let reached = (header.epoch.as_str(), number(&header.applied));
        assert_eq!(reached, (log.epoch, log.head), "seed {seed}");
        for fold in &mut folds {
            let tally = fold.take_tally();
            (conflicts, refolds) = (conflicts + tally.conflicts, refolds + tally.refolds);
        }
    }
    assert!(conflicts > 100 && refolds > 1000, "{conflicts} {refolds}");
}
