//! The harness that end-to-end tests share.

pub mod binary;
#[cfg(feature = "services")]
pub mod fleet;
pub mod fuzz;
pub mod gateway;
pub mod http;
pub mod measure;
#[cfg(feature = "services")]
pub mod services;
pub mod simulation;
pub mod sse;
pub mod steady;
pub mod traced;
pub mod websocket;
pub mod wire;
