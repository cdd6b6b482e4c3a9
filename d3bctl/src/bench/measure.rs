//! What was measured: latencies, a timeline, the longest silence, what failed, and what measuring cost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// The longest latency that is told apart, in microseconds: an hour.
const LATENCY_MAX: u64 = 3_600_000_000;
/// Messages about failures that are kept.
const EXAMPLES_MAX: usize = 5;

/// Latencies, in microseconds with three digits.
#[derive(Debug, Clone)]
pub struct Latency(Histogram<u64>);

impl Latency {
    /// None yet, with this many digits.
    fn with_digits(digits: u8) -> Latency {
        Latency(Histogram::new_with_bounds(1, LATENCY_MAX, digits).expect("the bounds are in order"))
    }

    /// None yet.
    #[must_use]
    pub fn new() -> Latency {
        Latency::with_digits(3)
    }

    /// Adds one.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(LATENCY_MAX).max(1));
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency, in microseconds, that this part of all (0 to 1) does not exceed; 0 if there is none.
    #[must_use]
    pub fn quantile(&self, part: f64) -> u64 {
        if self.0.is_empty() { 0 } else { self.0.value_at_quantile(part).min(self.0.max()) }
    }

    /// The longest one, in microseconds, as exactly as it was recorded; 0 if there is none.
    #[must_use]
    pub fn max(&self) -> u64 {
        if self.0.is_empty() { 0 } else { self.0.max() }
    }

    /// The mean, in microseconds.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.0.mean()
    }

    /// Adds those of another one.
    pub fn add(&mut self, other: &Latency) {
        self.0.add(&other.0).expect("both have the same bounds");
    }
}

impl Default for Latency {
    fn default() -> Latency {
        Latency::new()
    }
}

/// One second, in little room.
#[derive(Debug, Clone, Default)]
struct Second {
    /// Latencies in microseconds, and how often each came.
    counts: Vec<(u64, u64)>,
}

/// One second of the timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Operations that were done.
    pub done: u64,
    /// Their median latency in microseconds, with two digits, as are the others.
    pub p50: u64,
    /// That of the slowest hundredth.
    pub p99: u64,
    /// That of the slowest one.
    pub max: u64,
}

/// The seconds of a run.
#[derive(Debug)]
struct Timeline {
    past: Vec<Second>,
    current: Latency,
}

impl Timeline {
    fn new() -> Timeline {
        Timeline { past: Vec::new(), current: Latency::with_digits(2) }
    }

    /// Adds an operation that was done this long after the beginning.
    fn record(&mut self, at: Duration, latency: Duration) {
        let second = usize::try_from(at.as_secs()).unwrap_or(usize::MAX);
        while self.past.len() < second {
            self.close();
        }
        self.current.record(latency);
    }

    fn close(&mut self) {
        let counts = self.current.0.iter_recorded();
        let counts = counts.map(|value| (value.value_iterated_to(), value.count_at_value())).collect();
        self.past.push(Second { counts });
        self.current.0.reset();
    }
}

/// What one kind of operation came to.
#[derive(Debug, Clone)]
pub struct KindOutcome {
    /// What it is called.
    pub name: &'static str,
    /// Operations that were done while it was measured.
    pub done: u64,
    /// Rows or files that they wrote or read.
    pub rows: u64,
    /// Latencies of those that began, or were due, while it was measured.
    pub latency: Latency,
}

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    /// For how long it was measured.
    pub measured: Duration,
    /// Kind by kind.
    pub kinds: Vec<KindOutcome>,
    /// Second by second; the last one may be a part of a second.
    pub timeline: Vec<Moment>,
    /// The longest time without an acknowledged write, from the beginning to the end; `None` if nothing writes.
    pub gap: Option<Duration>,
    /// Operations that ended with a wrong answer, also during warm-up, as the next three.
    pub errors: u64,
    /// The first few messages about them, and about connections that were lost.
    pub examples: Vec<String>,
    /// Answers that said to ask again later.
    pub refused: u64,
    /// Operations of which nobody knows whether they were done.
    pub unknown: u64,
    /// Connections that were lost or could not be made.
    pub reconnects: u64,
    /// Of an open loop, the most requests that were due and waited for a free client.
    pub backlog_max: u64,
    /// Of an open loop, those that were due and never sent. Their age at the end is among the latencies.
    pub unsent: u64,
    /// Processor time of the load's threads while it was measured.
    pub cpu: Duration,
    /// Whether it was ended before its time.
    pub interrupted: bool,
}

impl Outcome {
    /// Operations that were done while it was measured.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.done).sum()
    }

    /// Operations a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.done() as f64 / self.measured.as_secs_f64().max(f64::EPSILON)
    }

    /// Latencies of all kinds together.
    #[must_use]
    pub fn latency(&self) -> Latency {
        let mut all = Latency::new();
        self.kinds.iter().for_each(|kind| all.add(&kind.latency));
        all
    }

    /// Processor time of the generator for each operation.
    #[must_use]
    pub fn cpu_per_operation(&self) -> Duration {
        Duration::from_secs_f64(self.cpu.as_secs_f64() / self.done().max(1) as f64)
    }
}

/// From when to when it is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) begin: Instant,
    pub(super) end: Instant,
}

impl Window {
    pub(super) fn contains(&self, at: Instant) -> bool {
        self.begin <= at && at < self.end
    }
}

/// The longest silence between acknowledged writes of all threads.
#[derive(Debug)]
pub(super) struct Silence {
    window: Window,
    /// The latest write, in nanoseconds after the beginning.
    last: AtomicU64,
    longest: AtomicU64,
}

impl Silence {
    pub(super) fn new(window: Window) -> Silence {
        Silence { window, last: AtomicU64::new(0), longest: AtomicU64::new(0) }
    }

    /// A write was acknowledged.
    pub(super) fn broken(&self, at: Instant) {
        let Some(since) = at.checked_duration_since(self.window.begin) else { return };
        let since = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let last = self.last.fetch_max(since, Ordering::Relaxed);
        self.longest.fetch_max(since.saturating_sub(last), Ordering::Relaxed);
    }

    /// The longest one, at the end.
    pub(super) fn longest(&self, end: Instant) -> Duration {
        self.broken(end);
        Duration::from_nanos(self.longest.load(Ordering::Relaxed))
    }
}

/// What one thread measures.
#[derive(Debug)]
pub(super) struct Measure {
    window: Window,
    kinds: Vec<KindOutcome>,
    timeline: Timeline,
    pub(super) errors: u64,
    examples: Vec<String>,
    pub(super) refused: u64,
    pub(super) unknown: u64,
    pub(super) reconnects: u64,
    pub(super) backlog_max: u64,
    pub(super) unsent: u64,
    pub(super) cpu: Duration,
}

impl Measure {
    pub(super) fn new(window: Window, kinds: impl Iterator<Item = &'static str>) -> Measure {
        let kinds = kinds.map(|name| KindOutcome { name, done: 0, rows: 0, latency: Latency::new() }).collect();
        Measure {
            window,
            kinds,
            timeline: Timeline::new(),
            errors: 0,
            examples: Vec::new(),
            refused: 0,
            unknown: 0,
            reconnects: 0,
            backlog_max: 0,
            unsent: 0,
            cpu: Duration::ZERO,
        }
    }

    /// Cuts the window short.
    pub(super) fn end_at(&mut self, end: Instant) {
        self.window.end = self.window.end.min(end);
    }

    /// An operation that began, or was due, then was done now.
    pub(super) fn done(&mut self, kind: usize, began: Instant, now: Instant, rows: u64) {
        let latency = now.saturating_duration_since(began);
        let kind = &mut self.kinds[kind];
        if self.window.contains(began) {
            kind.latency.record(latency);
        }
        if self.window.contains(now) {
            kind.done += 1;
            kind.rows += rows;
            self.timeline.record(now - self.window.begin, latency);
        }
    }

    /// A request that was due then was never sent: it would have taken this long at least.
    pub(super) fn unsent(&mut self, kind: usize, due: Instant, now: Instant) {
        self.unsent += 1;
        if self.window.contains(due) {
            self.kinds[kind].latency.record(now.saturating_duration_since(due));
        }
    }

    /// Keeps a message, if it is one of the first.
    pub(super) fn example(&mut self, message: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES_MAX {
            let message = message();
            if !self.examples.contains(&message) {
                self.examples.push(message);
            }
        }
    }
}

/// Puts together what the threads have measured.
pub(super) fn collect(parts: Vec<Measure>, measured: Duration, gap: Option<Duration>, interrupted: bool) -> Outcome {
    let mut parts = parts.into_iter();
    let mut first = parts.next().expect("there is a thread at least");
    first.timeline.close();
    let mut seconds = std::mem::take(&mut first.timeline.past);
    for mut part in parts {
        for (kind, other) in first.kinds.iter_mut().zip(&part.kinds) {
            kind.done += other.done;
            kind.rows += other.rows;
            kind.latency.add(&other.latency);
        }
        part.timeline.close();
        for (at, second) in part.timeline.past.into_iter().enumerate() {
            if seconds.len() <= at {
                seconds.resize_with(at + 1, Second::default);
            }
            seconds[at].counts.extend(second.counts);
        }
        first.errors += part.errors;
        first.refused += part.refused;
        first.unknown += part.unknown;
        first.reconnects += part.reconnects;
        first.backlog_max += part.backlog_max;
        first.unsent += part.unsent;
        first.cpu += part.cpu;
        part.examples.into_iter().for_each(|message| first.example(|| message));
    }
    // A second in which nothing was done is a second all the same.
    let length = usize::try_from(measured.as_millis().div_ceil(1000)).unwrap_or(usize::MAX);
    seconds.resize_with(length, Second::default);
    Outcome {
        measured,
        kinds: first.kinds,
        timeline: seconds.iter().map(moment).collect(),
        gap,
        errors: first.errors,
        examples: first.examples,
        refused: first.refused,
        unknown: first.unknown,
        reconnects: first.reconnects,
        backlog_max: first.backlog_max,
        unsent: first.unsent,
        cpu: first.cpu,
        interrupted,
    }
}

fn moment(second: &Second) -> Moment {
    let mut latency = Latency::with_digits(2);
    for (value, count) in &second.counts {
        latency.0.saturating_record_n(*value, *count);
    }
    let (p50, p99) = (latency.quantile(0.5), latency.quantile(0.99));
    Moment { done: latency.count(), p50, p99, max: latency.max() }
}

/// Processor time of the calling thread so far.
pub(super) fn thread_cpu() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the structure is ours, and zeroes are valid in it should the call fail.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |value: libc::timeval| {
        let micros = value.tv_sec * 1_000_000 + value.tv_usec;
        Duration::from_micros(u64::try_from(micros).unwrap_or_default())
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(seconds: u64) -> Window {
        let begin = Instant::now();
        Window { begin, end: begin + Duration::from_secs(seconds) }
    }

    #[test]
    fn quantiles_are_exact_to_three_digits() {
        let mut latency = Latency::new();
        (1..=10_000).for_each(|micros| latency.record(Duration::from_micros(micros)));
        for (part, expected) in [(0.5, 5_000), (0.9, 9_000), (0.99, 9_900), (0.999, 9_990), (1.0, 10_000)] {
            let found = latency.quantile(part);
            assert!(found.abs_diff(expected) * 500 <= expected, "{part}: {found}");
        }
        assert_eq!((latency.count(), Latency::new().quantile(0.5)), (10_000, 0));
    }

    #[test]
    fn what_ends_inside_counts_as_done_and_what_begins_inside_has_its_latency_told() {
        let window = window(2);
        let at = |milliseconds: i64| match u64::try_from(milliseconds) {
            Ok(after) => window.begin + Duration::from_millis(after),
            Err(_) => window.begin - Duration::from_millis(milliseconds.unsigned_abs()),
        };
        let mut measure = Measure::new(window, ["insert"].into_iter());
        measure.done(0, at(-20), at(-10), 1);
        measure.done(0, at(-5), at(5), 1);
        measure.done(0, at(10), at(20), 1);
        measure.done(0, at(1_500), at(1_990), 1);
        // Held up by a stall over the end: its latency must not be forgotten.
        measure.done(0, at(1_500), at(9_000), 1);
        measure.unsent(0, at(1_000), at(2_000));
        let outcome = collect(vec![measure], Duration::from_secs(2), None, false);
        assert_eq!((outcome.done(), outcome.latency().count(), outcome.unsent), (3, 4, 1));
        assert!(outcome.latency().max() >= 7_400_000);
        let done: Vec<u64> = outcome.timeline.iter().map(|moment| moment.done).collect();
        assert_eq!(done, [2, 1]);
    }

    #[test]
    fn threads_are_added_up_second_by_second() {
        let window = window(3);
        let part = |at: u64, latency: u64| {
            let mut measure = Measure::new(window, ["read"].into_iter());
            let now = window.begin + Duration::from_millis(at);
            measure.done(0, now - Duration::from_millis(latency), now, 1);
            measure
        };
        let outcome = collect(vec![part(500, 10), part(2_500, 30), part(600, 20)], Duration::from_secs(3), None, false);
        let told: Vec<(u64, u64)> = outcome.timeline.iter().map(|moment| (moment.done, moment.max / 1000)).collect();
        assert_eq!(told, [(2, 20), (0, 0), (1, 30)]);
    }

    #[test]
    fn silence_is_counted_from_the_beginning_to_the_end() {
        let window = window(10);
        let at = |milliseconds: u64| window.begin + Duration::from_millis(milliseconds);
        let silence = Silence::new(window);
        silence.broken(window.begin - Duration::from_millis(1));
        silence.broken(at(300));
        silence.broken(at(1_300));
        // Another thread was later to say it.
        silence.broken(at(1_200));
        assert_eq!(silence.longest(at(1_400)), Duration::from_secs(1));
        assert_eq!(silence.longest(at(5_400)), Duration::from_secs(4));
    }
}
