//! Redis Streams as a source and as the log that publishing appends to, on real servers: what is followed, what goes wrong, and that
//! nobody takes a log that went back for the one that he read.

#[path = "redis_streams/alone.rs"]
mod alone;
#[path = "redis_streams/appending.rs"]
mod appending;
#[path = "redis_streams/common.rs"]
mod common;
#[path = "redis_streams/continuity.rs"]
mod continuity;
#[path = "redis_streams/faults.rs"]
mod faults;
#[path = "redis_streams/following.rs"]
mod following;
#[path = "redis_streams/topologies.rs"]
mod topologies;
