//! Who runs the driver: whoever brings it an event.
//!
//! A thread that has something to tell puts it into the queue and, unless another one is at it, takes a turn itself: the
//! driver's decisions cost microseconds, and to wake a thread for them costs more. A thread of the driver's own looks
//! after its timers, and takes over when a turn leaves more to do than its bringer should have to.
//!
//! An event that could only wait is left in the queue: a write while the log is being written (it belongs to the next
//! batch, and the end of this one is an event), a read while a round of the leader's is under way. Under load many of
//! them share one turn.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use d3b_paxos::types::Ticks;
use tokio::sync::watch;

use crate::driver::{Driver, DriverStatus, Event};
use crate::executor::Executor;
use crate::log::LogReader;
use crate::run::{Clock, Stop};

/// How many events may wait; beyond that clients are told to come back, and peers' messages are dropped.
const EVENTS_MAX: usize = 16_384;
/// How many events are taken before it is looked at what is to be done.
const BURST_MAX: usize = 1_024;
/// How many turns whoever brings an event takes at most, before the driver's own thread goes on.
const TURNS_MAX: u32 = 4;
/// The driver's own thread looks up at least so often, to see whether it is to stop.
const LOOK_UP: Duration = Duration::from_millis(100);
/// How old what is published may be, as long as neither the leader nor the part that this replica takes has changed.
const PUBLISHED_FOR: Ticks = Ticks(10);

/// Kinds of events, by what they may have to wait for.
const AT_ONCE: u8 = 1;
const WITH_LOG: u8 = 2;
const WITH_ROUND: u8 = 4;

/// Why an event was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Too many wait.
    Full,
    /// The driver has ended.
    Closed,
}

/// The way to the driver; clones share it.
#[derive(Clone)]
pub(crate) struct Events {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// `None` before it has begun and after it has ended.
    driving: Mutex<Option<Driving>>,
    /// The kinds of events that can only wait. Changed only by who drives.
    waiting: AtomicU8,
    /// The driver's own.
    thread: OnceLock<Thread>,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    /// The kinds that are among them.
    kinds: u8,
    closed: bool,
}

/// The driver, and what carries out its decisions.
pub(crate) struct Driving {
    pub(crate) driver: Driver<LogReader>,
    pub(crate) executor: Executor,
    pub(crate) clock: Clock,
    pub(crate) status: watch::Sender<Arc<DriverStatus>>,
    pub(crate) stop: Arc<Stop>,
    /// When its own thread will look at it.
    pub(crate) looks_at: Ticks,
    pub(crate) published_at: Ticks,
}

fn kind(event: &Event) -> u8 {
    match event {
        Event::Write(_) => WITH_LOG,
        Event::Read(_) => WITH_ROUND,
        _ => AT_ONCE,
    }
}

impl Events {
    /// Nobody drives yet: what comes is kept.
    pub(crate) fn new() -> Events {
        let shared = Shared {
            queue: Mutex::default(),
            driving: Mutex::new(None),
            waiting: AtomicU8::new(0),
            thread: OnceLock::new(),
        };
        Events { shared: Arc::new(shared) }
    }

    /// Begins to drive. The thread ends when the process is to stop, and gives the executor back.
    pub(crate) fn start(&self, driving: Driving) -> std::io::Result<JoinHandle<Option<Executor>>> {
        let stop = Arc::clone(&driving.stop);
        *self.shared.driving.lock().expect("nobody drives yet") = Some(driving);
        let shared = Arc::clone(&self.shared);
        let thread =
            std::thread::Builder::new().name("d3bd-driver".to_owned()).spawn(move || shared.look_after(&stop))?;
        let _ = self.shared.thread.set(thread.thread().clone());
        Ok(thread)
    }

    /// An event of a kind of which only few can be under way; it is always taken, until the driver has ended.
    pub(crate) fn send(&self, event: Event) {
        if self.shared.push(event, usize::MAX).is_ok() {
            // Whoever sends such has other work to do.
            self.shared.drive(1);
        }
    }

    /// An event that may be refused.
    pub(crate) fn try_send(&self, event: Event) -> Result<(), Refused> {
        self.shared.push(event, EVENTS_MAX)?;
        self.shared.drive(TURNS_MAX);
        Ok(())
    }

    /// Takes out what waits, where nobody drives.
    #[cfg(test)]
    pub(crate) fn take(&self) -> Vec<Event> {
        self.shared.queue().events.drain(..).collect()
    }

    /// Publishes what there is to know of the driver now.
    pub(crate) fn publish(&self) {
        if let Ok(mut driving) = self.shared.driving.lock()
            && let Some(driving) = &mut *driving
        {
            driving.publish();
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no panic while held")
    }

    fn push(&self, event: Event, max: usize) -> Result<(), Refused> {
        let kind = kind(&event);
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

    /// Whether an event is there that need not wait. Who has changed what is waited for looks after that, and who has put
    /// an event into the queue looks after that: one of them sees both.
    fn is_due(&self) -> bool {
        let kinds = self.queue().kinds;
        kinds & !self.waiting.load(Ordering::SeqCst) != 0
    }

    /// Takes turns as long as there is something to do, but not for ever.
    fn drive(&self, turns_max: u32) {
        for _ in 0..turns_max {
            if !self.is_due() {
                return;
            }
            // Whoever drives looks into the queue once more when it is done.
            let Some(mut driving) = self.try_driving() else { return };
            let Some(driving) = &mut *driving else { return };
            self.turn(driving);
        }
        if self.is_due() {
            self.wake();
        }
    }

    fn try_driving(&self) -> Option<MutexGuard<'_, Option<Driving>>> {
        match self.driving.try_lock() {
            Ok(driving) => Some(driving),
            Err(TryLockError::WouldBlock) => None,
            // It panicked; its own thread sees to the rest.
            Err(TryLockError::Poisoned(_)) => {
                self.wake();
                None
            }
        }
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Takes what waits, decides, and carries it out.
    fn turn(&self, driving: &mut Driving) {
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
        if let Err(error) = driving.turn(burst) {
            driving.stop.fatal(format!("the log cannot be read: {error}"));
        }
        let pending = driving.driver.pending();
        let waiting = if pending.log { WITH_LOG } else { 0 } | if pending.round { WITH_ROUND } else { 0 };
        self.waiting.store(waiting, Ordering::SeqCst);
        if driving.driver.next_tick() < driving.looks_at || driving.stop.asked() {
            driving.looks_at = driving.driver.next_tick();
            self.wake();
        }
    }

    /// The driver's own thread.
    fn look_after(&self, stop: &Stop) -> Option<Executor> {
        while !stop.asked() {
            let idle = {
                let Ok(mut driving) = self.driving.lock() else {
                    stop.fatal("the driver panicked".to_owned());
                    break;
                };
                let driving = driving.as_mut()?;
                self.turn(driving);
                driving.looks_at = driving.driver.next_tick();
                let now = driving.clock.now().ticks;
                Duration::from_millis(driving.looks_at.0.saturating_sub(now.0))
            };
            if !self.is_due() {
                std::thread::park_timeout(idle.min(LOOK_UP));
            }
        }
        let queue = {
            let mut queue = self.queue();
            queue.closed = true;
            std::mem::take(&mut queue.events)
        };
        drop(queue);
        let mut driving = self.driving.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Driving { executor, .. } = driving.take()?;
        // Nothing is decided any more: whoever waits is told so now, and not when his time is up.
        executor.waiting.close();
        Some(executor)
    }
}

impl Driving {
    /// One burst of events, and what follows from it.
    fn turn(&mut self, burst: VecDeque<Event>) -> Result<(), d3b_paxos::StorageError> {
        let now = self.clock.now();
        for event in burst {
            self.driver.handle(now, event)?;
        }
        if now.ticks >= self.driver.next_tick() {
            self.driver.tick(now)?;
        }
        crate::supervisor::alive(now.ticks);
        self.driver.pump()?;
        let mut effects = self.driver.take_effects();
        while !effects.is_empty() {
            for effect in effects {
                if let Some(event) = self.executor.carry_out(effect) {
                    self.driver.handle(self.clock.now(), event)?;
                }
            }
            self.driver.pump()?;
            effects = self.driver.take_effects();
        }
        self.executor.peers.flush();
        if self.is_news() || now.ticks.0 >= self.published_at.0 + PUBLISHED_FOR.0 {
            self.published_at = now.ticks;
            self.publish();
        }
        Ok(())
    }

    /// Whether something has changed that others wait for.
    fn is_news(&self) -> bool {
        self.driver.outline() != self.status.borrow().outline()
    }

    fn publish(&mut self) {
        let status = self.driver.status();
        self.status.send_if_modified(|published| {
            let modified = **published != status;
            if modified {
                *published = Arc::new(status);
            }
            modified
        });
    }
}
