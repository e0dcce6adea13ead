//! The cache of a partition, and those who fold its log into it: two at a time, of whom each may be a zombie, crash, or lag.
//!
//! What Redis does in one script is one method here. It goes back to older states, is emptied, loses channels, and does not answer
//! at times.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc};

use tidegate::{
    cache::redis::{CachedRow, DecimalOffset, Generation, Header, RowsPage, Walk},
    decode::{Decoder, KeyPart},
    model::{Channel, Offset, RowId},
    partition::Load,
    source::{ReadAt, compaction::proven_by, embedded::EmbeddedLog},
};

use super::{
    Dice, STREAM,
    compaction::{COMPACTION, Cleaned},
};

/// What every fold is of.
pub(super) const FOLD_ID: &str = "simulated";
/// Rows of a page.
const PAGE: usize = 2;

/// One fold.
#[derive(Clone, Debug)]
struct Generated {
    header: Header,
    channels: BTreeMap<Channel, CachedChannel>,
}

#[derive(Clone, Debug, Default)]
struct CachedChannel {
    last_change: Option<DecimalOffset>,
    rows: BTreeMap<RowId, CachedRow>,
    /// Its keys are gone.
    lost: bool,
}

/// What is in the cache of one partition.
#[derive(Clone, Debug, Default)]
struct Kept {
    current: Option<Generation>,
    folds: BTreeMap<Generation, Generated>,
}

/// The cache of one partition.
#[derive(Clone, Debug, Default)]
pub(super) struct Cache(Rc<RefCell<State>>);

#[derive(Debug, Default)]
struct State {
    kept: Kept,
    backup: Kept,
    down: bool,
    /// It does not answer for much longer than a load may take.
    long: bool,
    names: u64,
}

impl State {
    fn header(&self) -> Option<Header> {
        let current = self.kept.current.as_ref()?;
        Some(self.kept.folds.get(current)?.header.clone())
    }
}

/// A load on its way.
#[derive(Debug)]
pub(super) struct Loading {
    pub(super) channel: Channel,
    generation: Generation,
    walk: Walk,
    rows: Vec<(RowId, CachedRow)>,
}

impl Loading {
    pub(super) fn new(channel: Channel, generation: Generation) -> Self {
        let (walk, rows) = (Walk::default(), Vec::new());
        Self {
            channel,
            generation,
            walk,
            rows,
        }
    }
}

impl Cache {
    /// Its header, or that there is none; or no answer.
    pub(super) fn header(&self) -> Result<Option<Header>, ()> {
        let state = self.0.borrow();
        if state.down {
            Err(())
        } else {
            Ok(state.header())
        }
    }

    /// Reads the next page; when that was the last one, or there is none, what the load came to.
    pub(super) fn page(&self, load: &mut Loading) -> Option<Load> {
        let state = self.0.borrow();
        if state.down {
            return Some(Load::Failed);
        }
        let current = state.kept.current.as_ref();
        let Some(fold) = current.filter(|&current| *current == load.generation) else {
            return Some(Load::Elsewhere(state.header().map(Box::new)));
        };
        let fold = &state.kept.folds[fold];
        let nothing = CachedChannel::default();
        let channel = fold.channels.get(&load.channel).unwrap_or(&nothing);
        if channel.lost {
            return Some(Load::Lost);
        }
        let after = load.walk.after().cloned();
        let behind = channel.rows.iter();
        let mut behind = behind.filter(|(id, _)| after.as_ref().is_none_or(|after| *id > after));
        let rows: Vec<_> = behind
            .by_ref()
            .take(PAGE)
            .map(|(id, row)| (id.clone(), row.clone()))
            .collect();
        let page = RowsPage {
            header: fold.header.clone(),
            last_change: channel.last_change.clone(),
            more: behind.next().is_some(),
            rows,
        };
        if load.walk.take(&page).is_err() {
            return Some(Load::Elsewhere(state.header().map(Box::new)));
        }
        load.rows.extend(page.rows);
        load.walk.is_whole().then(|| {
            let walk = Box::new(std::mem::take(&mut load.walk));
            Load::Rows(walk, std::mem::take(&mut load.rows), Box::new(page.header))
        })
    }

    /// What happens to a cache in a tick.
    pub(super) fn trouble(&self, chance: usize, dice: &mut Dice) -> Option<&'static str> {
        let mut state = self.0.borrow_mut();
        if dice.percent(5) {
            state.backup = state.kept.clone();
        }
        if state.down && dice.percent(if state.long { 1 } else { 25 }) {
            state.down = false;
            return Some("answers again");
        }
        if !dice.percent(chance) {
            return None;
        }
        match dice.below(4) {
            0 => {
                (state.down, state.long) = (true, dice.percent(50));
                Some("does not answer")
            }
            1 => {
                state.kept = state.backup.clone();
                Some("goes back")
            }
            2 => {
                state.kept = Kept::default();
                Some("is emptied")
            }
            _ => {
                let current = state.kept.current.clone()?;
                let fold = state.kept.folds.get_mut(&current)?;
                let at = dice.below(fold.channels.len());
                let channel = fold.channels.values_mut().nth(at)?;
                (channel.rows, channel.lost) = (BTreeMap::new(), true);
                Some("loses a channel")
            }
        }
    }

    pub(super) fn calm(&self) {
        self.0.borrow_mut().down = false;
    }

    fn new_name(&self) -> Generation {
        let mut state = self.0.borrow_mut();
        state.names += 1;
        format!("g{}", state.names).parse().expect("a word")
    }
}

/// Folds a log into its cache.
#[derive(Debug, Default)]
pub(super) struct Materializer {
    /// The header that it saw or wrote last.
    seen: Option<Header>,
    /// What was the current header when it began a fold of its own, and that one's name.
    building: Option<(Option<Header>, Generation)>,
}

/// A log, and what of it is gone.
pub(super) type Log<'a> = (&'a Arc<EmbeddedLog>, &'a Cleaned);

impl Materializer {
    /// Reads a batch and writes it.
    pub(super) fn step(
        &mut self,
        cache: &Cache,
        log: Log<'_>,
        now_ms: i64,
        dice: &mut Dice,
        calm: bool,
    ) {
        if cache.0.borrow().down {
            return;
        }
        if !calm && dice.percent(2) {
            *self = Self::default();
        }
        if self.seen.is_none() && self.building.is_none() {
            self.seen = cache.0.borrow().header();
        }
        if self.must_build(cache, log.0, now_ms) {
            let base = cache.0.borrow().header();
            self.building = Some((base, cache.new_name()));
            self.seen = None;
        }
        let (header, fetch) = self.read(log, now_ms, calm || dice.percent(85));
        let reached = fetch.upto >= fetch.head;
        if !cache.write(self.seen.as_ref(), &header, &fetch) {
            *self = Self::default();
            return;
        }
        self.seen = Some(header.clone());
        if reached && let Some((base, name)) = self.building.take() {
            let mut state = cache.0.borrow_mut();
            if state.header() == base {
                state.kept.current = Some(name.clone());
                state.kept.folds.retain(|other, _| *other == name);
            } else {
                drop(state);
                *self = Self::default();
            }
        }
    }

    fn must_build(&self, cache: &Cache, log: &EmbeddedLog, now_ms: i64) -> bool {
        let Some(seen) = &self.seen else {
            return self.building.is_none();
        };
        let state = cache.0.borrow();
        let current = state.kept.current.as_ref();
        let current = current.and_then(|name| state.kept.folds.get(name));
        let lost = current.is_some_and(|fold| fold.channels.values().any(|channel| channel.lost));
        let outlasted = COMPACTION.may_lack_tombstones(seen.proven_ms, now_ms);
        let start: DecimalOffset = log.extent().1.into();
        seen.epoch != *log.epoch()
            || seen.applied < start
            || outlasted
            || (self.building.is_none() && (lost || !seen.complete))
    }

    fn read(
        &self,
        (log, cleaned): Log<'_>,
        now_ms: i64,
        complete: bool,
    ) -> (Header, tidegate::source::Fetch) {
        let at = |offset: Offset| DecimalOffset::from(offset);
        let after = self
            .seen
            .as_ref()
            .map(|seen| Offset::try_from(&seen.applied).expect("ours"));
        let fetch = cleaned.read(log, after);
        let mut header = self.seen.clone().unwrap_or_else(|| Header {
            epoch: fetch.epoch.clone(),
            generation: self
                .building
                .as_ref()
                .map_or_else(|| "g0".parse().expect("a word"), |(_, name)| name.clone()),
            fold_id: FOLD_ID.to_owned(),
            applied: at(fetch.start),
            lineage: String::new(),
            proven_ms: now_ms,
            since: at(fetch.head),
            settled: at(Offset::BEFORE_ALL),
            complete: complete && fetch.start == Offset::BEFORE_ALL,
            written_at_ms: now_ms,
        });
        let when = ReadAt {
            sent_ms: now_ms,
            answered_ms: now_ms,
        };
        if COMPACTION.may_have_torn(fetch.records.first(), when) {
            header.settled = header.settled.max(at(fetch.head));
        }
        header.applied = at(fetch.upto);
        let last = fetch.records.last().map(|last| proven_by(last, when));
        header.proven_ms = if fetch.upto >= fetch.head {
            now_ms
        } else {
            header.proven_ms.max(last.unwrap_or(i64::MIN))
        };
        (header, fetch)
    }
}

impl Cache {
    /// A batch, if the generation's header is still the expected one.
    fn write(
        &self,
        expected: Option<&Header>,
        header: &Header,
        fetch: &tidegate::source::Fetch,
    ) -> bool {
        let mut state = self.0.borrow_mut();
        let there = state.kept.folds.get(&header.generation);
        if there.map(|fold| &fold.header) != expected {
            return false;
        }
        let fold = state.kept.folds.entry(header.generation.clone());
        let fold = fold.or_insert_with(|| Generated {
            header: header.clone(),
            channels: BTreeMap::new(),
        });
        let pointer = |text: &str| KeyPart::Pointer(text.into());
        let mut decoder = Decoder::new(STREAM, pointer("/0"), Some(pointer("/1")), true);
        let changes: Vec<_> = fetch
            .records
            .iter()
            .filter_map(|record| Some((decoder.decode(record).ok()?, record.offset)))
            .collect();
        if changes.iter().any(|(change, _)| {
            fold.channels
                .get(&change.channel)
                .is_some_and(|channel| channel.lost)
        }) {
            return false;
        }
        fold.header = header.clone();
        for (change, offset) in changes {
            let channel = fold.channels.entry(change.channel).or_default();
            channel.last_change = Some(offset.into());
            match change.data {
                Some(data) => {
                    let row = CachedRow {
                        offset: offset.into(),
                        ts_ms: change.ts_ms,
                        data,
                    };
                    channel.rows.insert(change.row, row);
                }
                None => drop(channel.rows.remove(&change.row)),
            }
        }
        true
    }
}
