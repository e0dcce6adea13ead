//! What no part of the gateway knows: the whole history of every log.

use std::collections::BTreeMap;

use tidegate::model::{Change, Channel, Offset};

/// One record as it was published.
#[derive(Clone, Debug)]
pub(super) struct Fact {
    pub(super) offset: u64,
    pub(super) change: Change,
    pub(super) tick: u64,
    pub(super) number: u64,
}

/// The truth: by epoch and partition, everything that was ever published.
#[derive(Debug, Default)]
pub(super) struct Truth {
    /// By life of the logs, by partition.
    lives: Vec<Vec<Vec<Fact>>>,
    began: Vec<u64>,
    /// Partitions from here on were added later: what they delete leaves a grave.
    first: u32,
}

/// What is left of a row that a partition which was added later has deleted.
pub(super) const GRAVE: &str = "deleted";

impl Truth {
    /// Of a topic that has so many partitions at first.
    pub(super) fn of(first: u32) -> Self {
        Self {
            first,
            ..Self::default()
        }
    }

    /// Whether a partition was added later.
    pub(super) const fn is_later(&self, partition: u32) -> bool {
        partition >= self.first
    }

    pub(super) fn replace(&mut self, tick: u64, partitions: usize) {
        self.lives.push(vec![Vec::new(); partitions]);
        self.began.push(tick);
    }

    pub(super) fn record(
        &mut self,
        partition: usize,
        offset: Offset,
        change: &Change,
        tick: u64,
        number: u64,
    ) {
        if let Some(life) = self.lives.last_mut() {
            life[partition].push(Fact {
                offset: offset.number(),
                change: change.clone(),
                tick,
                number,
            });
        }
    }

    /// `e3p1` → 3.
    pub(super) fn life_of(epoch: &str) -> usize {
        let digits = epoch
            .trim_start_matches('e')
            .split('p')
            .next()
            .unwrap_or("");
        digits.parse().unwrap_or(0)
    }

    pub(super) fn current(&self) -> usize {
        self.lives.len()
    }

    /// When the life began that follows this one.
    pub(super) fn ended(&self, life: usize) -> Option<u64> {
        self.began.get(life).copied()
    }

    pub(super) fn facts<'a>(
        &'a self,
        life: usize,
        partition: u32,
        channel: &'a Channel,
    ) -> impl DoubleEndedIterator<Item = &'a Fact> + 'a {
        let facts = life
            .checked_sub(1)
            .and_then(|life| self.lives.get(life))
            .map_or(&[][..], |life| &life[partition as usize]);
        facts
            .iter()
            .filter(move |fact| fact.change.channel == *channel)
    }

    /// The last changes of all rows that are there and that nobody has changed since `tick`, in order.
    pub(super) fn unchanged(&self, partition: usize, tick: u64) -> Vec<Change> {
        let facts = self.lives.last().map_or(&[][..], |life| &life[partition]);
        let mut last = BTreeMap::new();
        for fact in facts {
            last.insert((&fact.change.channel, &fact.change.row), fact);
        }
        let mut due: Vec<&Fact> = last
            .into_values()
            .filter(|fact| fact.change.data.is_some() && fact.tick < tick)
            .collect();
        due.sort_unstable_by_key(|fact| fact.offset);
        due.into_iter().map(|fact| fact.change.clone()).collect()
    }

    /// The rows of a channel in one partition at one offset.
    pub(super) fn fold(
        &self,
        life: usize,
        partition: u32,
        channel: &Channel,
        upto: u64,
    ) -> BTreeMap<String, String> {
        let mut rows = BTreeMap::new();
        for fact in self
            .facts(life, partition, channel)
            .take_while(|fact| fact.offset <= upto)
        {
            let row = fact.change.row.as_str().to_owned();
            match &fact.change.data {
                Some(data) => rows.insert(row, String::from_utf8_lossy(data).into_owned()),
                None if self.is_later(partition) => rows.insert(row, GRAVE.to_owned()),
                None => rows.remove(&row),
            };
        }
        rows
    }

    /// The view of a channel with all that was ever said: of each row what the newest partition has said of it last.
    pub(super) fn view(&self, channel: &Channel) -> BTreeMap<String, String> {
        let mut rows: BTreeMap<&str, &Fact> = BTreeMap::new();
        // Partitions are in the order in which channels move.
        let facts = self.lives.last().into_iter().flatten().flatten();
        for fact in facts.filter(|fact| fact.change.channel == *channel) {
            rows.insert(fact.change.row.as_str(), fact);
        }
        let data = |fact: &Fact| {
            let data = fact.change.data.as_ref()?;
            Some(String::from_utf8_lossy(data).into_owned())
        };
        let rows = rows.into_iter();
        rows.filter_map(|(row, fact)| Some((row.to_owned(), data(fact)?)))
            .collect()
    }
}
