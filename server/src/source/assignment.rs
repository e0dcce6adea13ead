//! Which partitions of a stream this process has, as whoever shares them out says.

/// The partitions that are this process's now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Which sharing out it comes from; none: this process belongs to nobody, and has nothing.
    pub generation: Option<i32>,
    /// The partitions, in order.
    pub partitions: Vec<u32>,
}
