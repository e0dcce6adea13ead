//! The harness that end-to-end tests share.

pub mod binary;
pub mod fuzz;
pub mod http;
pub mod simulation;
