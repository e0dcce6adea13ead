//! Tidegate: a real-time push gateway.
//!
//! `Record → Change → Update → Frame → socket`: a function that turns one of these into the next lives in the room
//! between them. `ARCHITECTURE.md` has the map.

pub mod model;
