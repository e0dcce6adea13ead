//! The harness that end-to-end tests share.

pub mod fuzz;
pub mod http;
pub mod simulation;
