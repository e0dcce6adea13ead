//! The harness that end-to-end tests share.

pub mod fuzz;
pub mod gateway;
pub mod simulation;
pub mod sse;
pub mod websocket;
pub mod wire;
