//! How long nothing was acknowledged because of an event.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A time without acknowledged writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    /// From the event to its end.
    pub until: Duration,
    /// From its own beginning.
    pub length: Duration,
}

/// When writes were acknowledged.
#[derive(Debug, Default)]
pub struct Acknowledged(Mutex<Vec<Instant>>);

impl Acknowledged {
    /// A write was acknowledged, not earlier than the last one.
    pub fn note(&self, at: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(at);
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The longest silence of those that begin between an event and `caused`, a time shortly after it, once all of them
    /// are over. Later ones have other causes, such as a replica that comes back.
    #[must_use]
    pub fn silence(&self, event: Instant, caused: Instant) -> Option<Silence> {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if times.last().is_none_or(|last| *last <= caused) {
            return None;
        }
        let after = &times[times.partition_point(|time| *time < event)..];
        let begins = std::iter::once(&event).chain(after).take_while(|begin| **begin <= caused);
        let silences = begins.zip(after).map(|(begin, end)| Silence { until: *end - event, length: *end - *begin });
        silences.max_by_key(|silence| silence.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Acknowledgements at some milliseconds; the event comes at 100, and what it causes begins until 130.
    #[track_caller]
    fn check(times: &[u64], expected: Option<(u64, u64)>) {
        let start = Instant::now();
        let at = |milliseconds: u64| start + Duration::from_millis(milliseconds);
        let acknowledged = Acknowledged::default();
        times.iter().for_each(|time| acknowledged.note(at(*time)));
        let found = acknowledged.silence(at(100), at(130));
        let expected = expected.map(|(until, length)| Silence {
            until: Duration::from_millis(until),
            length: Duration::from_millis(length),
        });
        assert_eq!(found, expected, "{times:?}");
    }

    #[test]
    fn the_silence_that_an_event_causes_is_found() {
        check(&[98, 99, 101, 102, 180, 181], Some((80, 78)));
        check(&[99, 180, 181], Some((80, 80)));
    }

    #[test]
    fn silences_of_other_causes_do_not_count() {
        check(&[10, 99, 101, 150, 151, 900], Some((50, 49)));
    }

    #[test]
    fn a_silence_that_is_not_over_is_waited_for() {
        check(&[98, 99], None);
        check(&[98, 99, 101, 120], None);
        check(&[], None);
    }
}
