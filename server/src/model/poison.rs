//! What is done with a record that means nothing.

use serde::Serialize;

/// What is done with a record that means nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PoisonRule {
    /// It is passed over, and counted.
    #[default]
    Skip,
    /// It is passed over once it is in the dead-letter topic.
    Quarantine,
    /// Its partition is not read past it, until an operator says so.
    Halt,
}
