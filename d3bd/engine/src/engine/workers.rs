//! The threads that share the work of a run with the one that called the engine.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Something that any thread can do.
pub(super) trait Job: Send + 'static {
    /// Does it.
    fn run(&mut self);
}

/// A few threads, which sleep while there is nothing to do.
///
/// Invariant: between two calls of [`Workers::run`] nothing waits, and nothing runs.
pub(super) struct Workers<J> {
    shared: Arc<Shared<J>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<J> {
    state: Mutex<State<J>>,
    /// Something waits, or the threads are to end.
    work: Condvar,
    /// Nothing runs any more.
    ended: Condvar,
}

struct State<J> {
    waiting: VecDeque<J>,
    done: Vec<J>,
    /// How many jobs run on the threads of the pool.
    running: usize,
    panicked: bool,
    closed: bool,
}

impl<J: Job> Workers<J> {
    /// Starts so many threads; fewer where the system gives no more.
    pub fn start(count: usize) -> Workers<J> {
        let state = State { waiting: VecDeque::new(), done: Vec::new(), running: 0, panicked: false, closed: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), work: Condvar::new(), ended: Condvar::new() });
        let start = |number: usize| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("d3bd-apply-{number}")).spawn(move || shared.work())
        };
        let mut threads = Vec::with_capacity(count);
        for number in 1..=count {
            match start(number) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    tracing::warn!(%error, number, "there are fewer threads than wanted to apply entries");
                    break;
                }
            }
        }
        Workers { shared, threads }
    }

    /// How many threads there are.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Does all jobs, on this thread and on so many of the pool; the first ones are begun first. They come back in any
    /// order.
    ///
    /// # Panics
    /// One of them has.
    pub fn run(&mut self, mut jobs: Vec<J>, helpers: usize) -> Vec<J> {
        if helpers.min(self.threads.len()) == 0 {
            jobs.iter_mut().for_each(Job::run);
            return jobs;
        }
        self.shared.state().waiting = jobs.into();
        for _ in 0..helpers {
            self.shared.work.notify_one();
        }
        loop {
            // Nothing is held while a job runs.
            let next = self.shared.state().waiting.pop_front();
            let Some(mut job) = next else { break };
            job.run();
            self.shared.state().done.push(job);
        }
        let state = self.shared.state();
        let mut state =
            self.shared.ended.wait_while(state, |state| state.running > 0).unwrap_or_else(PoisonError::into_inner);
        let (done, panicked) = (std::mem::take(&mut state.done), state.panicked);
        drop(state);
        if panicked && let Some(panic) = self.close() {
            resume_unwind(panic);
        }
        done
    }
}

impl<J> Workers<J> {
    /// Ends the threads, and tells with what one of them has panicked.
    fn close(&mut self) -> Option<Box<dyn Any + Send>> {
        {
            let mut state = self.shared.state();
            state.closed = true;
            state.waiting.clear();
        }
        self.shared.work.notify_all();
        // All of them are waited for: they have databases open.
        self.threads.drain(..).fold(None, |panic, thread| panic.or(thread.join().err()))
    }
}

impl<J> Shared<J> {
    fn state(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J: Job> Shared<J> {
    /// What a thread of the pool does all its life.
    fn work(&self) {
        while let Some(mut job) = self.next() {
            let running = Running { shared: self };
            job.run();
            self.state().done.push(job);
            drop(running);
        }
    }

    /// Waits for a job, which then runs; there is none any more when the pool is closed.
    fn next(&self) -> Option<J> {
        let idle = |state: &mut State<J>| state.waiting.is_empty() && !state.closed;
        let mut state = self.work.wait_while(self.state(), idle).unwrap_or_else(PoisonError::into_inner);
        let job = state.waiting.pop_front()?;
        state.running += 1;
        Some(job)
    }
}

/// A job that runs on a thread of the pool. Whoever waits for its end hears of it also when it panics.
struct Running<'s, J> {
    shared: &'s Shared<J>,
}

impl<J> Drop for Running<'_, J> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.running -= 1;
        state.panicked |= std::thread::panicking();
        if state.running == 0 {
            self.shared.ended.notify_all();
        }
    }
}

impl<J> Drop for Workers<J> {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;

    use super::*;

    /// Ends only when as many run at a time as meet at the barrier.
    struct Meeting {
        barrier: Arc<Barrier>,
        panics: bool,
        met: bool,
    }

    impl Job for Meeting {
        fn run(&mut self) {
            self.barrier.wait();
            let helps = std::thread::current().name().is_some_and(|name| name.starts_with("d3bd-apply-"));
            assert!(!(self.panics && helps), "planted");
            self.met = true;
        }
    }

    fn meetings(count: usize, panics: bool) -> Vec<Meeting> {
        let barrier = Arc::new(Barrier::new(count));
        (0..count).map(|_| Meeting { barrier: Arc::clone(&barrier), panics, met: false }).collect()
    }

    #[test]
    fn jobs_run_side_by_side_and_all_come_back() {
        let mut workers = Workers::start(3);
        for count in [4, 1, 2, 3] {
            let done = workers.run(meetings(count, false), count - 1);
            assert_eq!(done.iter().filter(|meeting| meeting.met).count(), count);
        }
        assert!(workers.run(Vec::new(), 3).is_empty());
    }

    #[test]
    fn without_threads_the_caller_does_everything() {
        let mut workers = Workers::start(0);
        let jobs = (0..5).flat_map(|_| meetings(1, false)).collect();
        assert!(workers.run(jobs, 3).iter().all(|meeting| meeting.met));
    }

    #[test]
    fn a_panic_of_a_helper_is_one_of_the_caller() {
        let mut workers = Workers::start(1);
        let run = AssertUnwindSafe(|| workers.run(meetings(2, true), 1).len());
        let panic = catch_unwind(run).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"planted"));
    }
}
