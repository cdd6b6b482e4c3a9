//! How large the log is and how old, at any moment and without looking: what decides where it is to be cut.

use std::collections::VecDeque;

use d3b::Slot;
use d3b_paxos::types::Record;

/// A stretch of the log ends after so many records or bytes, whichever comes first. The log is cut between stretches.
const STRETCH_RECORDS: u64 = 1_000;
const STRETCH_BYTES: u64 = 1 << 20;
/// What a row takes beside its entry, roughly.
pub(super) const ROW_BYTES: u64 = 32;

/// What one record takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// Its slot.
    pub(super) slot: Slot,
    /// Log time of its stamp, in milliseconds since 1970.
    pub(super) time_ms: u64,
    /// On disk, roughly.
    pub(super) bytes: u64,
}

impl Size {
    pub(super) fn of(record: &Record) -> Size {
        let bytes = record.entry.size() as u64 + ROW_BYTES;
        Size { slot: record.slot, time_ms: record.entry.stamp.time_ms, bytes }
    }
}

/// A run of records.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    first: Slot,
    /// When the first was stamped.
    time_ms: u64,
    records: u64,
    bytes: u64,
}

/// The log as stretches. What it says of a record that was accepted again is what it said at first.
#[derive(Debug, Default)]
pub(super) struct Extent {
    stretches: VecDeque<Stretch>,
    bytes: u64,
    /// Whether what was there at the start is among them.
    complete: bool,
}

impl Extent {
    /// Takes the next record.
    pub(super) fn add(&mut self, size: Size) {
        self.bytes += size.bytes;
        match self.stretches.back_mut() {
            Some(last) if last.records < STRETCH_RECORDS && last.bytes < STRETCH_BYTES => {
                last.records += 1;
                last.bytes += size.bytes;
            }
            Some(_) | None => {
                let Size { slot: first, time_ms, bytes } = size;
                self.stretches.push_back(Stretch { first, time_ms, records: 1, bytes });
            }
        }
    }

    /// Puts what was there at the start before what has come since.
    pub(super) fn complete(&mut self, mut older: Extent) {
        self.bytes += older.bytes;
        older.stretches.append(&mut self.stretches);
        self.stretches = older.stretches;
        self.complete = true;
    }

    /// Forgets the stretches that lie below a slot.
    pub(super) fn cut(&mut self, base: Slot) {
        while self.stretches.get(1).is_some_and(|second| second.first <= base) {
            self.bytes -= self.stretches.pop_front().map_or(0, |gone| gone.bytes);
        }
    }

    /// Where the log is to begin, if somewhere else than now, so that it holds no more than so many bytes and nothing older.
    /// The last stretch always stays.
    pub(super) fn cut_due(&self, bytes_max: u64, oldest_ms: u64) -> Option<Slot> {
        if !self.complete {
            return None;
        }
        let mut left = self.bytes;
        let mut begin = None;
        for (stretch, next) in self.stretches.iter().zip(self.stretches.iter().skip(1)) {
            if left <= bytes_max && next.time_ms >= oldest_ms {
                break;
            }
            left -= stretch.bytes;
            begin = Some(next.first);
        }
        begin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(slots: std::ops::RangeInclusive<u64>, bytes: u64) -> Extent {
        let mut extent = Extent::default();
        for slot in slots {
            extent.add(Size { slot: Slot(slot), time_ms: slot, bytes });
        }
        extent
    }

    fn complete(mut extent: Extent) -> Extent {
        extent.complete(Extent::default());
        extent
    }

    #[test]
    fn what_is_too_much_or_too_old_is_cut_off() {
        let extent = complete(extent(1..=5_000, 100));
        assert_eq!(extent.cut_due(500_000, 0), None);
        assert_eq!(extent.cut_due(499_999, 0), Some(Slot(1_001)));
        assert_eq!(extent.cut_due(250_000, 0), Some(Slot(3_001)));
        assert_eq!(extent.cut_due(u64::MAX, 1_001), None, "one of the second stretch is young enough");
        assert_eq!(extent.cut_due(u64::MAX, 1_002), Some(Slot(1_001)));
        assert_eq!(extent.cut_due(250_000, 4_500), Some(Slot(4_001)));
        assert_eq!(extent.cut_due(0, u64::MAX), Some(Slot(4_001)), "the last stretch stays");
    }

    #[test]
    fn large_records_make_short_stretches() {
        assert_eq!(complete(extent(1..=100, 1 << 20)).cut_due(10 << 20, 0), Some(Slot(91)));
    }

    #[test]
    fn nothing_is_due_before_everything_is_known() {
        let mut later = extent(2_501..=4_000, 100);
        assert_eq!(later.cut_due(0, 0), None);
        later.complete(extent(1..=2_500, 100));
        assert_eq!(later.cut_due(399_999, 0), Some(Slot(1_001)));
        later.cut(Slot(1_500));
        assert_eq!(later.cut_due(399_999, 0), None, "a stretch is gone");
        assert_eq!(later.cut_due(250_000, 0), Some(Slot(2_001)));
        later.cut(Slot(9_999));
        assert_eq!(later.cut_due(0, 0), None);
    }
}
