//! How long the disk takes, by itself.

use std::io::Write as _;
use std::time::{Duration, Instant};

/// Writes of one look.
const WRITES: usize = 200;
/// Bytes of one write.
const BYTES: usize = 4 << 10;

/// Times of small writes, each with an fdatasync, while nothing else runs.
#[derive(Debug, Default)]
pub struct Probe {
    times: Vec<Duration>,
}

impl Probe {
    /// Takes a look.
    pub fn take(&mut self) {
        let mut file = tempfile::tempfile().expect("a temporary file");
        let bytes = vec![7; BYTES];
        for _ in 0..WRITES {
            let began = Instant::now();
            file.write_all(&bytes).and_then(|()| file.sync_data()).expect("a file of ours can be written");
            self.times.push(began.elapsed());
        }
        self.times.sort();
    }

    /// The time, in microseconds, that this part of all did not exceed.
    pub fn quantile(&self, part: f64) -> u128 {
        let at = ((self.times.len() as f64 * part) as usize).min(self.times.len().saturating_sub(1));
        self.times.get(at).map_or(0, Duration::as_micros)
    }
}
