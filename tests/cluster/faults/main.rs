//! Clusters of real processes among faults: networks that lose and cut, disks that fill, fail, lie and lose power,
//! memory that is not to be had, processes that are paused and killed, clocks that jump.
//!
//! Most tests let the recorder's clients work meanwhile and then demand what `d3b_tests::recorder` demands. They print
//! the seed that decided what was done to whom; `D3B_FAULTS_SEED` sets it, and with `D3B_FAULTS_MINUTES` each test goes
//! on for so long with fresh seeds. What a machine lacks for a test is said on stderr, in a line that begins with
//! `skipped: `.

mod clock;
mod disk;
mod memory;
mod mixed;
mod network;
mod power;
mod process;
