//! The harness that end-to-end tests share.

pub mod fuzz;
pub mod sse;
pub mod wire;
