//! The command line of d3b.
fn main() {}
