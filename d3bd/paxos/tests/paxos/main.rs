//! The core against a network, disks and clocks that do their worst, and its rules one by one.

mod changes;
mod disk;
mod leading;
mod one;
mod random;
mod rules;
mod world;

#[cfg(feature = "planted-bugs")]
mod planted;
