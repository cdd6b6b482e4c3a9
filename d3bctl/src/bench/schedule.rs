//! When requests of an open loop are due.

use std::time::{Duration, Instant};

/// Requests at fixed times, whether or not earlier ones were answered. What is due and was not taken is the backlog; it
/// takes no memory, for it is a range of numbers.
#[derive(Debug)]
pub(super) struct Schedule {
    start: Instant,
    /// Requests a second.
    rate: f64,
    /// The next one that nobody has taken.
    next: u64,
    backlog_max: u64,
}

impl Schedule {
    /// So many a second from `start` on.
    pub(super) fn new(start: Instant, rate: f64) -> Schedule {
        Schedule { start, rate, next: 0, backlog_max: 0 }
    }

    fn due_at(&self, number: u64) -> Instant {
        self.start + Duration::from_secs_f64(number as f64 / self.rate)
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Instant {
        self.due_at(self.next)
    }

    /// Takes the next one, if it is due, and tells when it was.
    pub(super) fn take(&mut self, now: Instant) -> Option<Instant> {
        let due = self.next_due();
        (due <= now).then(|| {
            self.next += 1;
            due
        })
    }

    /// How many are due and were not taken.
    pub(super) fn backlog(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.start).as_secs_f64();
        let due = (elapsed * self.rate).floor() as u64 + 1;
        due.saturating_sub(self.next)
    }

    /// Takes note of how many wait because no client is free.
    pub(super) fn note_backlog(&mut self, now: Instant) {
        self.backlog_max = self.backlog_max.max(self.backlog(now));
    }

    /// The most that ever waited.
    pub(super) fn backlog_max(&self) -> u64 {
        self.backlog_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_due_at_fixed_times_however_late_they_are_taken() {
        let start = Instant::now();
        let at = |milliseconds: u64| start + Duration::from_millis(milliseconds);
        let mut schedule = Schedule::new(start, 100.0);
        assert_eq!(schedule.take(at(0)), Some(at(0)));
        assert_eq!(schedule.take(at(9)), None);
        assert_eq!(schedule.next_due(), at(10));
        // A stall of a tenth of a second: what was due meanwhile is still due at its own time.
        assert_eq!(schedule.backlog(at(105)), 10);
        schedule.note_backlog(at(105));
        let taken: Vec<Instant> = std::iter::from_fn(|| schedule.take(at(105))).collect();
        assert_eq!(taken, (1..=10).map(|number| at(number * 10)).collect::<Vec<_>>());
        assert_eq!((schedule.backlog(at(105)), schedule.backlog_max()), (0, 10));
    }
}
