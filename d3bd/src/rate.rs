//! A bound on what goes on beside the service and is not to be felt there: so many bytes a second, whoever moves them.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What was not used for so long is not made up for.
const BURST: Duration = Duration::from_millis(100);

/// A token bucket. Whoever has bytes to move asks how long to wait first; those who ask share what there is.
#[derive(Debug)]
pub struct Rate {
    bytes_per_second: u64,
    /// When all bytes that were asked for so far will have been moved; never before `now - BURST`.
    busy_until: Mutex<Option<Instant>>,
}

impl Rate {
    /// So many bytes a second; 0 sets no bound.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Rate {
        Rate { bytes_per_second, busy_until: Mutex::default() }
    }

    /// How long to wait before so many bytes may be moved. They count as moved from here on.
    #[must_use]
    pub fn wait(&self, bytes: u64, now: Instant) -> Duration {
        if self.bytes_per_second == 0 {
            return Duration::ZERO;
        }
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let time = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut busy_until = self.busy_until.lock().unwrap_or_else(PoisonError::into_inner);
        let until = busy_until.map_or(now, |until| until.max(earliest)) + time;
        *busy_until = Some(until);
        until.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    /// Lets some move pieces of these sizes as fast as they may, for a minute; returns the moments and sizes.
    fn move_pieces(rate: &Rate, sizes: &[u64], start: Instant) -> Vec<(Instant, u64)> {
        let mut ready: Vec<Instant> = sizes.iter().map(|size| start + rate.wait(*size, start)).collect();
        let mut moved = Vec::new();
        loop {
            let (who, now) = ready.iter().copied().enumerate().min_by_key(|(_, at)| *at).expect("somebody");
            if now > start + Duration::from_secs(60) {
                return moved;
            }
            moved.push((now, sizes[who]));
            ready[who] = now + rate.wait(sizes[who], now);
        }
    }

    #[track_caller]
    fn check(bytes_per_second: u64, sizes: &[u64]) {
        let rate = Rate::new(bytes_per_second);
        let moved = move_pieces(&rate, sizes, Instant::now());
        // Whatever stretch of time is looked at.
        for (first, (from, _)) in moved.iter().enumerate().step_by(7) {
            let mut total = 0;
            for (to, bytes) in &moved[first..] {
                total += bytes;
                let largest = sizes.iter().max().expect("sizes");
                let allowed = (*to - *from + BURST).as_secs_f64() * bytes_per_second as f64 + *largest as f64;
                assert!(total as f64 <= allowed + 1.0, "{total} bytes in {:?}", *to - *from);
            }
        }
        let all: u64 = moved.iter().map(|(_, bytes)| bytes).sum();
        assert!(all >= bytes_per_second * 58, "what is allowed is also used: {all}");
    }

    #[test]
    fn no_more_goes_through_than_is_allowed_however_many_ask() {
        check(1 << 20, &[256 * KIB]);
        check(1 << 20, &[256 * KIB, 64 * KIB, 256 * KIB, KIB]);
        check(10 << 20, &[256 * KIB; 9]);
    }

    #[test]
    fn what_was_not_used_is_not_made_up_for() {
        let rate = Rate::new(1_000);
        let start = Instant::now();
        assert_eq!(rate.wait(1_000, start), Duration::from_secs(1));
        let later = start + Duration::from_secs(3_600);
        assert_eq!(rate.wait(1_000, later), Duration::from_secs(1) - BURST);
        assert_eq!(rate.wait(1_000, later), Duration::from_secs(2) - BURST);
    }

    #[test]
    fn without_a_bound_nobody_waits() {
        let rate = Rate::new(0);
        assert_eq!(rate.wait(u64::MAX, Instant::now()), Duration::ZERO);
    }
}
