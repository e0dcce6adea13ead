//! `tidegate`: arguments → configuration → gateway → exit code.
fn main() {}
