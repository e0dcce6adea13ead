//! Tidegate: a real-time push gateway.
//!
//! `Record → Change → Update → Frame → socket`: a function that turns one of these into the next lives in the room
//! between them. `ARCHITECTURE.md` has the map.

pub mod admin;
pub mod auth;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod decode;
pub mod demo;
pub mod frame;
pub mod gateway;
pub mod materializer;
pub mod model;
pub mod partition;
pub mod protocol;
pub mod publish;
pub mod session;
pub mod source;
pub mod streams;
pub mod telemetry;
pub mod transport;
pub mod upstream;
pub mod worker;
