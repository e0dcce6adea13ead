//! The cache in Redis, on real servers: what is written is read back, and whatever goes wrong is told apart.

#[path = "redis_cache/commands.rs"]
mod commands;
#[path = "redis_cache/common.rs"]
mod common;
#[path = "redis_cache/faults.rs"]
mod faults;
#[path = "redis_cache/folding.rs"]
mod folding;
#[path = "redis_cache/reading.rs"]
mod reading;
#[path = "redis_cache/topologies.rs"]
mod topologies;
