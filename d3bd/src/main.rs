//! The d3b daemon.
fn main() {}
