//! Where a stream's channels are placed, and by how many partitions that was reckoned: the rule by which whoever reads a record sees
//! that its channel belongs elsewhere.

use super::{Channel, partition_of};

/// A topic grows so often at most: each count is at least twice the one before, and the largest is 1,024.
const GENERATIONS_MAX: usize = 11;

/// How many partitions a stream has had, oldest first: its placement generations. Each count is a multiple of the one before, so a
/// channel that moves goes to a partition that is newer than the one it left, and never comes back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Generations {
    counts: [u32; GENERATIONS_MAX],
    known: usize,
}

impl Generations {
    /// Of a stream that has never grown.
    #[must_use]
    pub const fn single(partitions: u32) -> Self {
        let mut counts = [0; GENERATIONS_MAX];
        counts[0] = if partitions == 0 { 1 } else { partitions };
        Self { counts, known: 1 }
    }

    /// Of these counts, oldest first; none where one is not a multiple of the one before.
    #[must_use]
    pub fn of(counts: &[u32]) -> Option<Self> {
        let (&first, later) = counts.split_first()?;
        let first = (first > 0).then(|| Self::single(first))?;
        later.iter().try_fold(first, |known, &to| known.grown(to))
    }

    /// The same, grown to so many partitions; none where they are no multiple of what there was.
    #[must_use]
    pub fn grown(mut self, to: u32) -> Option<Self> {
        let newest = self.newest();
        let fits = to > newest && to.is_multiple_of(newest) && self.known < GENERATIONS_MAX;
        fits.then(|| {
            self.counts[self.known] = to;
            self.known += 1;
            self
        })
    }

    /// The counts, oldest first.
    #[must_use]
    pub fn counts(&self) -> &[u32] {
        &self.counts[..self.known]
    }

    /// How many partitions there were at first.
    #[must_use]
    pub const fn first(&self) -> u32 {
        self.counts[0]
    }

    /// How many there are now.
    #[must_use]
    pub fn newest(&self) -> u32 {
        self.counts().last().copied().unwrap_or(1)
    }

    /// Whether this partition was added later: then every channel in it has moved there from an older one.
    #[must_use]
    pub const fn is_later(&self, partition: u32) -> bool {
        partition >= self.first()
    }

    /// The partitions in which records of a channel may be, each once, oldest first, which is in the order of their numbers.
    pub fn homes<'a>(&'a self, channel: &'a Channel) -> impl Iterator<Item = u32> + Clone + 'a {
        let home = move |count: &u32| partition_of(channel.name(), "", *count);
        let mut last = None;
        self.counts()
            .iter()
            .map(home)
            .filter(move |home| last.replace(*home) != Some(*home))
    }
}

impl std::fmt::Debug for Generations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Generations").field(&self.counts()).finish()
    }
}

/// Among which partitions others place channels by their names; by default every channel belongs everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placing(Option<Generations>);

impl Placing {
    /// Among the partitions of these generations. In a single one nothing can be misplaced.
    #[must_use]
    pub fn among(generations: Generations) -> Self {
        Self(Some(generations).filter(|generations| generations.newest() > 1))
    }

    /// Among how many partitions they were placed at first: what a partition of those holds does not depend on what came later.
    /// None where nothing could be misplaced.
    #[must_use]
    pub fn first(self) -> Option<u32> {
        let first = self.0.as_ref().map(Generations::first);
        first.filter(|first| *first > 1)
    }

    /// The generations; none where nothing can be misplaced.
    #[must_use]
    pub const fn generations(&self) -> Option<&Generations> {
        self.0.as_ref()
    }

    /// Where a channel that was found `here` belongs, if that is elsewhere: then who follows it does not look here, and
    /// nobody may show or keep what it says.
    #[must_use]
    pub fn elsewhere(self, channel: &Channel, here: u32) -> Option<u32> {
        let generations = self.0?;
        let mut homes = generations.homes(channel);
        let newest = partition_of(channel.name(), "", generations.newest());
        (!homes.any(|home| home == here)).then_some(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generations(counts: &[u32]) -> Generations {
        Generations::of(counts).unwrap()
    }

    #[test]
    fn a_channel_belongs_into_one_of_several_partitions_and_anywhere_else_by_default() {
        // Of 16 partitions JFK is in 3.
        let channel: Channel = "s/JFK".parse().unwrap();
        let among = |count| Placing::among(Generations::single(count));
        assert_eq!(among(16).elsewhere(&channel, 3), None);
        assert_eq!(among(16).elsewhere(&channel, 4), Some(3));
        assert_eq!(among(16).first(), Some(16));
        for anywhere in [among(1), Placing::default()] {
            assert_eq!(anywhere.elsewhere(&channel, 7), None);
            assert_eq!(anywhere.first(), None);
        }
    }

    #[test]
    fn counts_grow_to_multiples_and_to_nothing_else() {
        assert_eq!(generations(&[4, 8, 24]).counts(), [4, 8, 24]);
        for wrong in [&[][..], &[0], &[4, 4], &[8, 4], &[4, 6], &[4, 8, 20]] {
            assert_eq!(Generations::of(wrong), None, "{wrong:?}");
        }
        let powers: Vec<u32> = (0..=10).map(|power| 1 << power).collect();
        assert_eq!(generations(&powers).newest(), 1024);
        assert_eq!(generations(&powers).grown(2048), None);
    }

    #[test]
    fn who_moves_goes_to_a_newer_partition_and_who_stays_has_one() {
        let (before, after) = (generations(&[2, 6]), generations(&[2, 6, 12]));
        let mut moved = [0; 3];
        for number in 0..1000 {
            let channel: Channel = format!("s/c{number}").parse().unwrap();
            let homes: Vec<u32> = after.homes(&channel).collect();
            assert!(homes.is_sorted_by(|a, b| a < b), "{homes:?}");
            assert!(!after.is_later(homes[0]), "{homes:?}");
            assert!(homes[1..].iter().all(|home| after.is_later(*home)));
            // What was a home stays one, and the newest is where everybody writes now.
            assert!(before.homes(&channel).all(|home| homes.contains(&home)));
            assert_eq!(
                homes.last().copied(),
                Some(partition_of(channel.name(), "", 12))
            );
            let placing = Placing::among(after);
            for here in 0..12 {
                let is_home = homes.contains(&here);
                assert_eq!(placing.elsewhere(&channel, here).is_none(), is_home);
            }
            moved[homes.len() - 1] += 1;
        }
        assert!(moved.iter().all(|&channels| channels > 100), "{moved:?}");
    }
}
