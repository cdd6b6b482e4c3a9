//! Turns at something that many threads bring events to: whoever brings one takes a turn, unless another one is at it.
//!
//! Decisions cost microseconds, and to wake a thread for them costs more. A thread of its own looks after timers, and
//! takes over when a turn leaves more to do than its bringer should have to.
//!
//! An event that could only wait is left in the queue, and shares the turn of the event that it waits for. Under load
//! many of them share one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How many turns whoever brings an event takes at most, before the thread goes on.
const TURNS_MAX: u32 = 4;
/// How many events are taken in one turn.
const BURST_MAX: usize = 1_024;
/// The thread looks up at least so often, to see whether it is to stop.
const LOOK_UP: Duration = Duration::from_millis(100);

/// What a turn leaves behind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct After {
    /// The kinds of events that can only wait now, until an event of another kind comes; one bit each.
    pub(crate) waiting: u8,
    /// When the next turn is due, whatever comes.
    pub(crate) due: Instant,
}

/// Something that takes turns.
pub(crate) trait Turn: Send + 'static {
    /// What is brought to it.
    type Event: Send;

    /// The kind of an event: one bit. One of [`After::waiting`] is put off.
    fn kind(event: &Self::Event) -> u8;

    /// Takes what has come. It may bring events to itself, which wait for the next turn.
    fn turn(&mut self, burst: VecDeque<Self::Event>) -> After;
}

/// Why an event was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Too many wait.
    Full,
    /// It has ended.
    Closed,
}

/// The way to it; clones share it.
pub(crate) struct Turns<T: Turn> {
    shared: Arc<Shared<T>>,
}

impl<T: Turn> Clone for Turns<T> {
    fn clone(&self) -> Turns<T> {
        Turns { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<T: Turn> {
    events_max: usize,
    queue: Mutex<Queue<T::Event>>,
    /// `None` before it has begun and after it has ended.
    place: Mutex<Option<Place<T>>>,
    /// See [`After::waiting`]; changed only by who holds the place.
    waiting: AtomicU8,
    thread: OnceLock<Thread>,
}

struct Queue<E> {
    events: VecDeque<E>,
    /// The kinds that are among them.
    kinds: u8,
    closed: bool,
}

struct Place<T> {
    work: T,
    /// When the thread will look by itself.
    looks_at: Instant,
}

impl<T: Turn> Turns<T> {
    /// Nobody takes turns yet: what comes is kept. Up to `events_max` events may wait.
    pub(crate) fn new(events_max: usize) -> Turns<T> {
        let queue = Queue { events: VecDeque::new(), kinds: 0, closed: false };
        let shared = Shared {
            events_max,
            queue: Mutex::new(queue),
            place: Mutex::new(None),
            waiting: AtomicU8::new(0),
            thread: OnceLock::new(),
        };
        Turns { shared: Arc::new(shared) }
    }

    /// Begins. The thread ends soon after `is_over` says so, and gives the work back; nothing if it panicked.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(crate) fn start(
        &self,
        name: &str,
        work: T,
        is_over: impl Fn() -> bool + Send + 'static,
    ) -> std::io::Result<JoinHandle<Option<T>>> {
        *self.shared.place.lock().expect("nobody takes turns yet") = Some(Place { work, looks_at: Instant::now() });
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || shared.look_after(&is_over))?;
        let _ = self.shared.thread.set(thread.thread().clone());
        Ok(thread)
    }

    /// Brings an event of which only few can be under way: it is always taken, until the end. Who brings such has other
    /// work to do, and takes one turn at most.
    pub(crate) fn send(&self, event: T::Event) {
        if self.shared.push(event, usize::MAX).is_ok() {
            self.shared.take_turns(1);
        }
    }

    /// Brings an event that may be refused.
    ///
    /// # Errors
    /// Why it was.
    pub(crate) fn try_send(&self, event: T::Event) -> Result<(), Refused> {
        self.shared.push(event, self.shared.events_max)?;
        self.shared.take_turns(TURNS_MAX);
        Ok(())
    }

    /// Looks at it between two turns. Nothing before it has begun, and after it has ended.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&mut T) -> R) -> Option<R> {
        let mut place = self.shared.place.lock().ok()?;
        place.as_mut().map(|place| look(&mut place.work))
    }

    /// Takes out what waits, where nobody takes turns.
    #[cfg(test)]
    pub(crate) fn take(&self) -> Vec<T::Event> {
        self.shared.queue().events.drain(..).collect()
    }
}

impl<T: Turn> Shared<T> {
    fn queue(&self) -> MutexGuard<'_, Queue<T::Event>> {
        self.queue.lock().expect("no panic while held")
    }

    fn push(&self, event: T::Event, max: usize) -> Result<(), Refused> {
        let kind = T::kind(&event);
        let mut queue = self.queue();
        if queue.closed {
            return Err(Refused::Closed);
        }
        if queue.events.len() >= max {
            return Err(Refused::Full);
        }
        queue.events.push_back(event);
        queue.kinds |= kind;
        Ok(())
    }

    /// Whether there is an event that need not wait. Who has changed what is waited for asks after that, and who has brought
    /// an event asks after that: one of the two sees both.
    fn is_due(&self) -> bool {
        let kinds = self.queue().kinds;
        kinds & !self.waiting.load(Ordering::SeqCst) != 0
    }

    /// Takes turns as long as there is something to do, but not for ever.
    fn take_turns(&self, turns_max: u32) {
        for _ in 0..turns_max {
            if !self.is_due() {
                return;
            }
            match self.place.try_lock() {
                Ok(mut place) => match &mut *place {
                    Some(place) => {
                        self.turn(place);
                    }
                    None => return,
                },
                // Whoever is at it asks once more when he is done.
                Err(TryLockError::WouldBlock) => return,
                // It panicked. The thread sees to the rest.
                Err(TryLockError::Poisoned(_)) => return self.wake(),
            }
        }
        if self.is_due() {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Takes a turn; returns when the next one is due.
    fn turn(&self, place: &mut Place<T>) -> Instant {
        let burst = {
            let mut queue = self.queue();
            if queue.events.len() <= BURST_MAX {
                queue.kinds = 0;
                std::mem::take(&mut queue.events)
            } else {
                // What is left may be of any kind.
                queue.events.drain(..BURST_MAX).collect()
            }
        };
        let After { waiting, due } = place.work.turn(burst);
        self.waiting.store(waiting, Ordering::SeqCst);
        if due < place.looks_at {
            place.looks_at = due;
            self.wake();
        }
        due
    }

    fn look_after(&self, is_over: &impl Fn() -> bool) -> Option<T> {
        while !is_over() {
            let looks_at = {
                // Where a turn has panicked nobody knows what it left behind.
                let Ok(mut place) = self.place.lock() else { break };
                let place = place.as_mut()?;
                // Nobody need wake this thread, which is awake.
                place.looks_at = Instant::now();
                let due = self.turn(place);
                place.looks_at = due.min(Instant::now() + LOOK_UP);
                place.looks_at
            };
            if !self.is_due() {
                std::thread::park_timeout(looks_at.saturating_duration_since(Instant::now()));
            }
        }
        let rest = {
            let mut queue = self.queue();
            queue.closed = true;
            std::mem::take(&mut queue.events)
        };
        drop(rest);
        match self.place.lock() {
            Ok(mut place) => place.take().map(|place| place.work),
            Err(poisoned) => {
                drop(PoisonError::into_inner(poisoned).take());
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64};
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const AT_ONCE: u8 = 1;
    const WITH_OTHERS: u8 = 2;

    enum Event {
        /// Is answered by the end of the round that begins after it came.
        Request(Sender<u64>),
        /// A round has ended.
        Ended,
        Panic,
    }

    /// Something like a log: what comes while it is written is in the next batch.
    struct Rounds {
        begin: Sender<()>,
        under_way: Vec<Sender<u64>>,
        next: Vec<Sender<u64>>,
        turns: Arc<AtomicU64>,
        busy: bool,
    }

    impl Turn for Rounds {
        type Event = Event;

        fn kind(event: &Event) -> u8 {
            match event {
                Event::Request(_) => WITH_OTHERS,
                Event::Ended | Event::Panic => AT_ONCE,
            }
        }

        fn turn(&mut self, burst: VecDeque<Event>) -> After {
            let turn = self.turns.fetch_add(1, Ordering::Relaxed);
            for event in burst {
                match event {
                    Event::Request(answer) => self.next.push(answer),
                    Event::Ended => {
                        self.busy = false;
                        self.under_way.drain(..).for_each(|answer| answer.send(turn).unwrap());
                    }
                    Event::Panic => panic!("as planned"),
                }
            }
            if !self.busy && !self.next.is_empty() {
                self.busy = true;
                self.under_way = std::mem::take(&mut self.next);
                self.begin.send(()).unwrap();
            }
            // Nothing is due for as long as a test may take: what is forgotten stays forgotten.
            let due = Instant::now() + Duration::from_secs(3_600);
            After { waiting: if self.busy { WITH_OTHERS } else { 0 }, due }
        }
    }

    fn rounds() -> (Turns<Rounds>, Receiver<()>, Rounds) {
        let (begin, begun) = channel();
        let work = Rounds { begin, under_way: Vec::new(), next: Vec::new(), turns: Arc::default(), busy: false };
        (Turns::new(10_000), begun, work)
    }

    /// A turn of the thread's own comes every [`LOOK_UP`]; an event that nobody felt responsible for waits for it. Here so
    /// many come one after the other that the test would take minutes.
    #[test]
    fn no_event_is_left_behind() {
        const CLIENTS: u64 = 4;
        const REQUESTS: u64 = 5_000;
        let (turns, begun, work) = rounds();
        let (over, count) = (Arc::new(AtomicBool::new(false)), Arc::clone(&work.turns));
        let is_over = Arc::clone(&over);
        let thread = turns.start("turns", work, move || is_over.load(Ordering::Relaxed)).unwrap();
        let ends = turns.clone();
        let writer = std::thread::spawn(move || begun.into_iter().for_each(|()| ends.send(Event::Ended)));
        let clients = (0..CLIENTS).map(|_| {
            let turns = turns.clone();
            std::thread::spawn(move || {
                for _ in 0..REQUESTS {
                    let (answer, answered) = channel();
                    turns.try_send(Event::Request(answer)).unwrap();
                    answered.recv().unwrap();
                }
            })
        });
        let began = Instant::now();
        clients.collect::<Vec<_>>().into_iter().for_each(|client| client.join().unwrap());
        let looks = began.elapsed().as_millis() / LOOK_UP.as_millis();
        assert!(looks < u128::from(REQUESTS) / 2, "events waited for the thread to look up: {looks} times");
        assert!(count.load(Ordering::Relaxed) > 0);
        over.store(true, Ordering::Relaxed);
        let work = thread.join().unwrap().expect("it did not panic");
        drop(work);
        writer.join().unwrap();
        let (answer, _answered) = channel();
        assert_eq!(turns.try_send(Event::Request(answer)), Err(Refused::Closed));
    }

    #[test]
    fn what_waits_is_bounded() {
        let turns: Turns<Rounds> = Turns::new(2);
        let (answer, _answered) = channel();
        for expected in [Ok(()), Ok(()), Err(Refused::Full)] {
            assert_eq!(turns.try_send(Event::Request(answer.clone())), expected);
        }
        turns.send(Event::Ended);
        assert_eq!(turns.take().len(), 3);
    }

    #[test]
    fn after_a_panic_the_thread_ends() {
        let (turns, _begun, work) = rounds();
        let thread = turns.start("turns", work, || false).unwrap();
        let brings = turns.clone();
        let _ = std::thread::spawn(move || brings.send(Event::Panic)).join();
        assert!(!matches!(thread.join(), Ok(Some(_))), "nobody knows what the turn has left behind");
        let (answer, _answered) = channel();
        while turns.try_send(Event::Request(answer.clone())).is_ok() {
            std::thread::yield_now();
        }
    }
}
