//! The driver at work: events go in by whoever brings them (see [`crate::turns`]), and what it decides is carried out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use d3b_paxos::types::Ticks;
use tokio::sync::watch;

use crate::driver::{Driver, DriverStatus, Event};
use crate::executor::Executor;
use crate::log::LogReader;
use crate::peer::PeerMessage;
use crate::run::{Clock, Stop};
use crate::turns::{After, Turn, Turns};

/// How many events may wait; beyond that clients are told to come back, and peers' messages are dropped.
pub(crate) const EVENTS_MAX: usize = 16_384;
/// How old what is published may be, as long as neither the leader nor the part that this replica takes has changed.
const PUBLISHED_FOR: Ticks = Ticks(10);

/// A write that comes while the log is written belongs to the next batch, and the end of this one is an event.
const WITH_LOG: u8 = 1;
/// A read that comes during a round of the leader's belongs to the next one.
const WITH_ROUND: u8 = 2;
/// All others.
const AT_ONCE: u8 = 4;

/// The way to the driver.
pub(crate) type Events = Turns<Driving>;

/// The driver, and what carries out its decisions.
pub(crate) struct Driving {
    pub(crate) driver: Driver<LogReader>,
    pub(crate) executor: Executor,
    pub(crate) clock: Clock,
    pub(crate) status: watch::Sender<Arc<DriverStatus>>,
    pub(crate) stop: Arc<Stop>,
    pub(crate) published_at: Ticks,
}

impl Turn for Driving {
    type Event = Event;

    fn kind(event: &Event) -> u8 {
        match event {
            Event::Write(_) | Event::Peer { message: PeerMessage::Forward { .. }, .. } => WITH_LOG,
            Event::Read(_) => WITH_ROUND,
            _ => AT_ONCE,
        }
    }

    fn turn(&mut self, burst: VecDeque<Event>) -> After {
        if let Err(error) = self.decide(burst) {
            self.stop.fatal(format!("the log cannot be read: {error}"));
        }
        let pending = self.driver.pending();
        let waiting = if pending.log { WITH_LOG } else { 0 } | if pending.round { WITH_ROUND } else { 0 };
        let idle = self.driver.next_tick().0.saturating_sub(self.clock.now().ticks.0);
        After { waiting, due: Instant::now() + Duration::from_millis(idle) }
    }
}

impl Driving {
    /// Takes in a burst of events, and carries out what follows from it.
    fn decide(&mut self, burst: VecDeque<Event>) -> Result<(), d3b_paxos::StorageError> {
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

    /// Publishes what there is to know of the driver now.
    pub(crate) fn publish(&mut self) {
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
