//! The updates of a tail in order, and an index of them by channel.
//!
//! An update has a number that counts on through the life of the tail. Each channel has a *strand*: the numbers of its
//! updates, oldest first, in runs without a gap. So what one channel has after an offset is found by halving, whatever the
//! other channels have, and the oldest update leaves both ends without a search. An update costs the index at most twenty
//! bytes, and where a channel has the partition for itself four.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use crate::{
    frame::Shared,
    model::{Channel, Offset},
};

/// Numbers that follow each other: from the first up to the end, which is not among them.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u64,
    end: u64,
}

/// A strand that has become much smaller gives its room back beyond so many runs.
const STRAND_KEPT: usize = 64;

/// What a tail holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    updates: VecDeque<(Arc<Shared>, u32)>,
    /// The number of the first of them.
    first: u64,
    bytes: usize,
    by_channel: HashMap<Channel, u32>,
    strands: Vec<VecDeque<Run>>,
    unused: Vec<u32>,
}

impl Held {
    /// Bytes that the updates pin, about.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.updates.len()
    }

    pub(super) fn oldest(&self) -> Option<&Arc<Shared>> {
        self.updates.front().map(|(shared, _)| shared)
    }

    /// Appends updates, newer than all others. Most follow one of their own channel: those look nothing up.
    pub(super) fn extend(&mut self, batch: Vec<Arc<Shared>>) {
        self.updates.reserve(batch.len());
        let newest = self.updates.back();
        let mut before = newest.map(|(newest, strand)| (name_of(newest), *strand));
        for shared in batch {
            let name = name_of(&shared);
            let strand = match before {
                Some((same, strand)) if std::ptr::eq(same, name) => strand,
                _ => self.strand_of(&shared.update.change.channel),
            };
            before = Some((name, strand));
            let number = self.first + self.updates.len() as u64;
            let runs = &mut self.strands[strand as usize];
            match runs.back_mut() {
                Some(run) if run.end == number => run.end += 1,
                _ => runs.push_back(Run {
                    first: number,
                    end: number + 1,
                }),
            }
            self.bytes += shared.weight();
            self.updates.push_back((shared, strand));
        }
    }

    fn strand_of(&mut self, channel: &Channel) -> u32 {
        if let Some(&strand) = self.by_channel.get(channel) {
            return strand;
        }
        let strand = self.unused.pop().unwrap_or_else(|| {
            self.strands.push(VecDeque::new());
            u32::try_from(self.strands.len() - 1).unwrap_or(u32::MAX)
        });
        self.by_channel.insert(channel.clone(), strand);
        strand
    }

    /// Lets the oldest go.
    pub(super) fn pop(&mut self) -> Option<Arc<Shared>> {
        let (oldest, at) = self.updates.pop_front()?;
        self.first += 1;
        self.bytes -= oldest.weight();
        let runs = &mut self.strands[at as usize];
        if let Some(run) = runs.front_mut() {
            run.first += 1;
            if run.first == run.end {
                runs.pop_front();
                self.rest(at, &oldest.update.change.channel);
            }
        }
        Some(oldest)
    }

    /// After a run has gone: a strand without any goes too, a small one gives room back.
    fn rest(&mut self, at: u32, channel: &Channel) {
        let runs = &mut self.strands[at as usize];
        if runs.is_empty() {
            *runs = VecDeque::new();
            self.by_channel.remove(channel);
            self.unused.push(at);
        } else if runs.capacity() > STRAND_KEPT && runs.len() < runs.capacity() / 4 {
            runs.shrink_to(runs.len() * 2);
        }
    }

    /// How many there are up to `offset`.
    fn upto(&self, offset: Offset) -> usize {
        self.updates
            .partition_point(|(shared, _)| shared.update.position.offset <= offset)
    }

    /// Those after `offset`, of all channels, in order.
    pub(super) fn after(&self, offset: Offset) -> impl ExactSizeIterator<Item = &Arc<Shared>> {
        let first = self.upto(offset);
        self.updates.range(first..).map(|(shared, _)| shared)
    }

    /// Those of one channel after `offset`, in order.
    pub(super) fn of_channel_after(
        &self,
        channel: &Channel,
        offset: Offset,
    ) -> impl DoubleEndedIterator<Item = &Arc<Shared>> {
        let after = self.first + self.upto(offset) as u64;
        let strand = self.by_channel.get(channel);
        let strand = strand.map(|&strand| &self.strands[strand as usize]);
        strand.into_iter().flat_map(move |runs| {
            let begin = runs.partition_point(|run| run.end <= after);
            let numbers = move |run: &Run| run.first.max(after)..run.end;
            let numbers = runs.range(begin..).flat_map(numbers);
            numbers.map(|number| self.numbered(number))
        })
    }

    fn numbered(&self, number: u64) -> &Arc<Shared> {
        // A tail never holds more than fits in memory.
        &self.updates[usize::try_from(number - self.first).unwrap_or(usize::MAX)].0
    }
}

/// Where its channel's name lies: the same place is the same channel, another one may be too. It is only compared.
fn name_of(shared: &Shared) -> *const str {
    &raw const *shared.update.change.channel
}

#[cfg(test)]
mod tests {
    use super::{super::tests::shared, *};

    fn offsets<'a>(found: impl Iterator<Item = &'a Arc<Shared>>) -> Vec<u64> {
        found
            .map(|shared| shared.update.position.offset.number())
            .collect()
    }

    #[test]
    fn the_index_finds_what_a_search_through_everything_finds() {
        let mut held = Held::default();
        let mut random = 7u64;
        let mut next = |below: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 33) % below
        };
        for offset in 1..3000u64 {
            let batch = 1 + next(3);
            let many = (0..batch).map(|n| shared(offset * 4 + n, &format!("s/{}", next(20))));
            held.extend(many.collect());
            if held.len() as u64 > 20 + next(200) {
                (0..next(40)).for_each(|_| drop(held.pop()));
            }
            let (channel, after) = (
                format!("s/{}", next(21)).parse().unwrap(),
                Offset::new(offset),
            );
            let all = held
                .after(after)
                .filter(|one| one.update.change.channel == channel);
            let expected = offsets(all);
            assert_eq!(offsets(held.of_channel_after(&channel, after)), expected);
        }
        let weight: usize = held.after(Offset::BEFORE_ALL).map(|one| one.weight()).sum();
        assert_eq!(held.bytes(), weight);
    }

    #[test]
    fn an_empty_tail_keeps_nothing_of_channels_that_have_gone() {
        let mut held = Held::default();
        for offset in 1..=1000 {
            held.extend(vec![shared(offset, &format!("s/{offset}"))]);
            if held.len() > 10 {
                held.pop();
            }
        }
        assert_eq!((held.by_channel.len(), held.strands.len()), (10, 11));
        while held.pop().is_some() {}
        assert_eq!((held.by_channel.len(), held.bytes()), (0, 0));
        assert!(held.strands.iter().all(|strand| strand.capacity() == 0));
    }
}
