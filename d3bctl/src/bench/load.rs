//! The loop that drives clients.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use super::connection::Connection;
use super::measure::{Measure, Outcome, Silence, Window, collect, thread_cpu};
use super::schedule::Schedule;
use super::timer::Timer;
use super::work::{Lost, Verdict, Work};

/// How often a thread looks at what no event tells: answers that do not come, the end.
const LOOK: Duration = Duration::from_millis(20);
/// Pauses before a client tries the next server again.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(320);
/// How often the caller is told how it goes.
const TELL: Duration = Duration::from_millis(120);

/// How to load.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Clients, each with a connection of its own; at least one a thread.
    pub clients: usize,
    /// Threads that drive them.
    pub threads: usize,
    /// Requests a second of an open loop; a closed loop if `None`.
    pub rate: Option<f64>,
    /// What comes before it is measured.
    pub warm_up: Duration,
    /// For how long it is measured.
    pub duration: Duration,
    /// How long an answer is awaited before its connection is given up.
    pub patience: Duration,
    /// Whether the clients begin at all targets in turn, or all of them at the first one.
    pub spread: bool,
}

/// A server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where it is.
    pub address: SocketAddr,
    /// Its name for the `Host` header.
    pub host: String,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Since the first request.
    pub elapsed: Duration,
    /// Operations that were done, also during warm-up.
    pub done: u64,
}

/// What all threads share.
struct Shared<'a> {
    plan: &'a Plan,
    targets: &'a [Target],
    start: Instant,
    window: Window,
    stop: &'a AtomicBool,
    done: AtomicU64,
    silence: Silence,
}

/// The number of clients of each thread.
#[must_use]
pub fn shares(clients: usize, threads: usize) -> Vec<usize> {
    (0..threads).map(|thread| clients / threads + usize::from(thread < clients % threads)).collect()
}

/// Runs a load, with one [`Work`] for each thread ([`shares`] tells for how many clients each is), until its time is
/// over or `stop` is set; then waits for the answers that are awaited. `tell` is called now and then.
///
/// # Errors
/// The operating system gives no poll or no timer.
///
/// # Panics
/// Without targets, or when there are not as many works as threads.
pub fn run<W: Work>(
    plan: &Plan,
    targets: &[Target],
    works: Vec<W>,
    stop: &AtomicBool,
    mut tell: impl FnMut(Progress),
) -> io::Result<(Outcome, Vec<W>)> {
    assert!(!targets.is_empty() && works.len() == plan.threads, "a work for each thread, and somebody to ask");
    let writes = works.iter().any(|work| work.kinds().iter().any(|kind| kind.writes));
    let start = Instant::now();
    let begin = start + plan.warm_up;
    let window = Window { begin, end: begin + plan.duration };
    let silence = Silence::new(window);
    let shared = Shared { plan, targets, start, window, stop, done: AtomicU64::new(0), silence };
    let results: Vec<io::Result<Finished<W>>> = std::thread::scope(|scope| {
        let (sender, receiver) = channel::<()>();
        let mut first = 0;
        let threads: Vec<_> = works
            .into_iter()
            .zip(shares(plan.clients, plan.threads))
            .map(|(work, clients)| {
                let (shared, sender, base) = (&shared, sender.clone(), first);
                first += clients;
                scope.spawn(move || {
                    // Dropped at the end, which the receiver notices.
                    let _sender = sender;
                    Driver::new(shared, work, base, clients)?.run()
                })
            })
            .collect();
        drop(sender);
        while receiver.recv_timeout(TELL) == Err(RecvTimeoutError::Timeout) {
            tell(Progress { elapsed: start.elapsed(), done: shared.done.load(Ordering::Relaxed) });
        }
        threads.into_iter().map(|thread| thread.join().expect("the load's threads do not panic")).collect()
    });
    let finished: Vec<Finished<W>> = results.into_iter().collect::<io::Result<_>>()?;
    let end = finished.iter().map(|finished| finished.end).max().unwrap_or(window.end);
    let interrupted = end < window.end;
    let gap = writes.then(|| shared.silence.longest(end));
    let (measures, works) = finished.into_iter().map(|finished| (finished.measure, finished.work)).unzip();
    Ok((collect(measures, end.saturating_duration_since(begin), gap, interrupted), works))
}

/// What a thread gives back.
struct Finished<W> {
    work: W,
    measure: Measure,
    /// When it was over, at most the planned end.
    end: Instant,
}

/// An operation that is under way.
#[derive(Debug, Clone, Copy)]
struct Operation {
    kind: usize,
    /// When it began, or was due.
    began: Instant,
}

struct Client {
    connection: Connection,
    /// The index of its server.
    target: usize,
    operation: Option<Operation>,
    /// When the answer is given up, while one is awaited.
    deadline: Instant,
    /// When it tries again, while it does not try.
    resume: Option<Instant>,
    /// Failures in a row.
    failures: u32,
}

/// One thread.
struct Driver<'a, W> {
    shared: &'a Shared<'a>,
    work: W,
    poll: Poll,
    timer: Timer,
    /// What the timer is set to.
    armed: Option<Instant>,
    clients: Vec<Client>,
    /// Clients of an open loop that have nothing to do.
    free: VecDeque<usize>,
    schedule: Option<Schedule>,
    measure: Measure,
    /// Whether no operation is begun any more.
    ending: bool,
}

impl<'a, W: Work> Driver<'a, W> {
    fn new(shared: &'a Shared<'a>, work: W, base: usize, clients: usize) -> io::Result<Driver<'a, W>> {
        let poll = Poll::new()?;
        let timer = Timer::new(&poll, Token(clients))?;
        let targets = shared.targets.len();
        let client = |client: usize| Client {
            connection: Connection::new(shared.start),
            target: if shared.plan.spread { (base + client) % targets } else { 0 },
            operation: None,
            deadline: shared.start,
            resume: None,
            failures: 0,
        };
        let share = clients as f64 / shared.plan.clients as f64;
        let schedule = shared.plan.rate.map(|rate| Schedule::new(shared.start, rate * share));
        let measure = Measure::new(shared.window, work.kinds().iter().map(|kind| kind.name));
        let clients = (0..clients).map(client).collect();
        Ok(Driver {
            shared,
            work,
            poll,
            timer,
            clients,
            free: VecDeque::new(),
            armed: None,
            schedule,
            measure,
            ending: false,
        })
    }

    fn run(mut self) -> io::Result<Finished<W>> {
        let mut events = Events::with_capacity(1024);
        let mut cpu_before = None;
        let mut end = self.shared.window.end;
        let mut looked = self.shared.start;
        for client in 0..self.clients.len() {
            self.next(client, Instant::now());
        }
        loop {
            let now = Instant::now();
            if cpu_before.is_none() && now >= self.shared.window.begin {
                cpu_before = Some(thread_cpu());
            }
            if !self.ending && (now >= end || self.shared.stop.load(Ordering::Relaxed)) {
                self.ending = true;
                end = end.min(now);
                let cpu = thread_cpu();
                self.measure.cpu = cpu.saturating_sub(cpu_before.unwrap_or(cpu));
                self.measure.end_at(end);
                self.leave_unsent(end);
            }
            if self.ending && self.clients.iter().all(|client| client.operation.is_none()) {
                break;
            }
            self.send_due(now);
            if now.saturating_duration_since(looked) >= LOOK {
                looked = now;
                self.look(now);
            }
            self.arm(now)?;
            match self.poll.poll(&mut events, Some(LOOK)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                if event.token().0 < self.clients.len() {
                    self.moved(event.token().0);
                }
            }
        }
        if let Some(schedule) = &self.schedule {
            self.measure.backlog_max = schedule.backlog_max();
        }
        Ok(Finished { work: self.work, measure: self.measure, end })
    }

    /// Sets the timer to when the next request is due, if a client is free to send it.
    fn arm(&mut self, now: Instant) -> io::Result<()> {
        let Some(schedule) = self.schedule.as_ref().filter(|_| !self.ending && !self.free.is_empty()) else {
            return Ok(());
        };
        let due = schedule.next_due();
        if self.armed == Some(due) {
            return Ok(());
        }
        self.armed = Some(due);
        self.timer.set(due.saturating_duration_since(now))
    }

    /// A client has nothing to do: gives it its next operation, or none.
    fn next(&mut self, client: usize, now: Instant) {
        self.clients[client].operation = None;
        if self.ending || now >= self.shared.window.end {
            return;
        }
        match &mut self.schedule {
            None => self.begin(client, now, now),
            Some(schedule) => match schedule.take(now) {
                Some(due) => self.begin(client, due, now),
                None => self.free.push_back(client),
            },
        }
    }

    /// Of an open loop: sends what is due, as long as clients are free.
    fn send_due(&mut self, now: Instant) {
        let Some(schedule) = self.schedule.as_mut().filter(|_| !self.ending) else { return };
        let mut due = Vec::new();
        while let Some(client) = self.free.pop_front() {
            match schedule.take(now) {
                Some(at) => due.push((client, at)),
                None => {
                    self.free.push_front(client);
                    break;
                }
            }
        }
        if self.free.is_empty() {
            schedule.note_backlog(now);
        }
        for (client, at) in due {
            self.begin(client, at, now);
        }
    }

    /// Of an open loop, at its end: what was due and will not be sent.
    fn leave_unsent(&mut self, end: Instant) {
        let Some(mut schedule) = self.schedule.take() else { return };
        schedule.note_backlog(end);
        // What is due at the very end is not due any more.
        while let Some(due) = schedule.take(end - Duration::from_nanos(1)) {
            // Nothing was chosen for it: it is told with the first kind.
            self.measure.unsent(0, due, end);
        }
        self.schedule = Some(schedule);
    }

    fn begin(&mut self, client: usize, began: Instant, now: Instant) {
        let kind = self.work.begin(client);
        self.clients[client].operation = Some(Operation { kind, began });
        self.attempt(client, now);
    }

    /// Sends a client's operation, on the connection that there is or on a new one.
    fn attempt(&mut self, client: usize, now: Instant) {
        let it = &mut self.clients[client];
        let target = &self.shared.targets[it.target];
        it.deadline = now + self.shared.plan.patience;
        let mut done = Ok(());
        if !it.connection.is_usable(now) {
            done = it.connection.connect(target.address, self.poll.registry(), Token(client));
        }
        it.connection.out.clear();
        it.connection.sent = 0;
        self.work.request(client, &target.host, &mut it.connection.out);
        if let Err(error) = done.and_then(|()| it.connection.send()) {
            self.broken(client, &error, now);
        }
    }

    /// Something has happened to a client's connection.
    fn moved(&mut self, client: usize) {
        let now = Instant::now();
        let it = &mut self.clients[client];
        if it.operation.is_none() || it.resume.is_some() {
            // Nothing is awaited: the server has closed, or has said something that nobody asked for.
            if !matches!(it.connection.receive(now), Ok(false)) || !it.connection.incoming.is_empty() {
                it.connection.close();
            }
            return;
        }
        let sent = if it.connection.sent < it.connection.out.len() { it.connection.send() } else { Ok(()) };
        match sent.and_then(|()| it.connection.receive(now)) {
            Ok(false) => {}
            Ok(true) => self.answered(client, now),
            Err(error) => self.broken(client, &error, now),
        }
    }

    fn answered(&mut self, client: usize, now: Instant) {
        let it = &mut self.clients[client];
        let Some(Operation { kind, began }) = it.operation else { return };
        let verdict = self.work.judge(client, &it.connection.incoming.answer());
        it.connection.answered();
        match verdict {
            Verdict::Done(rows) => {
                it.failures = 0;
                self.measure.done(kind, began, now, rows);
                self.shared.done.fetch_add(1, Ordering::Relaxed);
                if self.work.kinds()[kind].writes {
                    self.shared.silence.broken(now);
                }
                self.next(client, now);
            }
            Verdict::Refused => {
                self.measure.refused += 1;
                self.retreat(client, now);
            }
            Verdict::Repeat => self.retreat(client, now),
            Verdict::Unknown => {
                self.measure.unknown += 1;
                it.operation = None;
                self.retreat(client, now);
            }
            Verdict::Wrong(message) => {
                self.measure.errors += 1;
                self.measure.example(|| message);
                it.operation = None;
                self.retreat(client, now);
            }
        }
    }

    /// A connection was lost, or could not be made.
    fn broken(&mut self, client: usize, error: &io::Error, now: Instant) {
        let it = &mut self.clients[client];
        self.measure.reconnects += 1;
        let target = self.shared.targets[it.target].address;
        self.measure.example(|| format!("{target}: {error}"));
        let sent = it.connection.sent > 0;
        it.connection.close();
        // At the end, `retreat` leaves whatever is not done.
        if sent && !self.ending && it.operation.is_some() && self.work.lost(client, false) == Lost::Unknown {
            self.measure.unknown += 1;
            it.operation = None;
        }
        self.retreat(client, now);
    }

    /// Lets a client pause before it goes on, at the next server.
    fn retreat(&mut self, client: usize, now: Instant) {
        let targets = self.shared.targets.len();
        let it = &mut self.clients[client];
        if self.ending && it.operation.take().is_some() {
            // What is not done by now is left, and what became of it is not known.
            self.work.lost(client, true);
            self.measure.unknown += 1;
        }
        it.connection.close();
        it.target = (it.target + 1) % targets;
        let pause = PAUSE_MIN * 2_u32.pow(it.failures.min(8));
        it.failures += 1;
        it.resume = Some(now + pause.min(PAUSE_MAX));
    }

    /// Lets clients go on that have paused, and gives up answers that do not come.
    fn look(&mut self, now: Instant) {
        for client in 0..self.clients.len() {
            let it = &mut self.clients[client];
            match it.resume {
                Some(resume) if resume <= now => {
                    it.resume = None;
                    if it.operation.is_some() { self.attempt(client, now) } else { self.next(client, now) }
                }
                Some(_) => {}
                None if it.operation.is_some() && it.deadline <= now => {
                    let patience = self.shared.plan.patience;
                    let late = io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {patience:?}"));
                    self.broken(client, &late, now);
                }
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
