//! Real services, each started by the test that needs it, on loopback and on a free port.
//!
//! Does: starts them, hurts them as tests ask, ends them. Owns: the processes and the folders that it made. Never knows: what
//! the tests are about. A service that is not installed is installed by `tools/setup.sh`, or the test fails and says so.

pub mod redis;
