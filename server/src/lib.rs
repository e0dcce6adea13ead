//! Tidegate: a real-time push gateway.
//!
//! `Record → Change → Update → Frame → socket`: a function that turns one of these into the next lives in the room
//! between them. `ARCHITECTURE.md` has the map.

pub mod auth;
pub mod cache;
pub mod clock;
pub mod config;
pub mod decode;
pub mod frame;
pub mod model;
pub mod partition;
pub mod protocol;
pub mod session;
pub mod source;
pub mod streams;
