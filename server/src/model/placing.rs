//! Where others place a stream's channels: the rule by which whoever reads a record sees that its channel belongs elsewhere.

use super::{Channel, partition_of};

/// In how many partitions others place channels by their names; by default every channel belongs everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placing(Option<u32>);

impl Placing {
    /// Among so many partitions. In a single one nothing can be misplaced.
    #[must_use]
    pub fn among(partitions: u32) -> Self {
        Self(Some(partitions).filter(|partitions| *partitions > 1))
    }

    /// Among how many partitions; none where nothing can be misplaced.
    #[must_use]
    pub const fn partitions(self) -> Option<u32> {
        self.0
    }

    /// Where a channel that was found `here` belongs, if that is elsewhere: then who follows it does not look here, and
    /// nobody may show or keep what it says.
    #[must_use]
    pub fn elsewhere(self, channel: &Channel, here: u32) -> Option<u32> {
        let home = partition_of(channel.name(), "", self.0?);
        (home != here).then_some(home)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_belongs_into_one_of_several_partitions_and_anywhere_else_by_default() {
        // Of 16 partitions JFK is in 3.
        let channel: Channel = "s/JFK".parse().unwrap();
        assert_eq!(Placing::among(16).elsewhere(&channel, 3), None);
        assert_eq!(Placing::among(16).elsewhere(&channel, 4), Some(3));
        for anywhere in [Placing::among(1), Placing::default()] {
            assert_eq!(anywhere.elsewhere(&channel, 7), None);
            assert_eq!(anywhere.partitions(), None);
        }
    }
}
