//! What an operator may have done at once that a replica does by itself in time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use d3b::api::{Compared, LogDamage, LogVerified, Verified};
use d3b::{Code, Problem, Slot};
use tokio::sync::oneshot;

use super::{Handle, blocking, stopping};
use crate::catch_up::Order;
use crate::driver::DriverStatus;
use crate::log::{Checked, LogReader};

/// Between two looks whether the log was cut.
const LOOK: Duration = Duration::from_millis(20);
/// How much of the log is read at once.
const PIECE: u64 = 1 << 20;

impl Handle {
    /// Makes everything that is applied durable in the databases of this replica; the last such slot.
    ///
    /// # Errors
    /// `overloaded`, `request-timeout`, or that this replica stops.
    pub async fn checkpoint(&self, deadline: Instant) -> Result<Slot, Problem> {
        let (reply, done) = oneshot::channel();
        self.order(Order::Checkpoint(reply), done, deadline).await
    }

    /// Cuts this replica's log at a slot, or as near below it as is safe; the first slot that it holds then.
    ///
    /// # Errors
    /// `overloaded`, `request-timeout`, or that this replica stops.
    pub async fn compact(&self, upto: Slot, deadline: Instant) -> Result<Slot, Problem> {
        let (reply, done) = oneshot::channel();
        let base = self.order(Order::Cut { upto, reply }, done, deadline).await?;
        // The driver and the log's writer have yet to hear of it.
        while self.parts().log.base() < base {
            if Instant::now() >= deadline {
                return Err(late());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(self.parts().log.base())
    }

    async fn order(&self, order: Order, done: oneshot::Receiver<Slot>, deadline: Instant) -> Result<Slot, Problem> {
        let orders = &self.parts().orders;
        orders.try_send(order).map_err(|_| Problem::new(Code::Overloaded, "this replica is asked for too much"))?;
        match tokio::time::timeout_at(deadline.into(), done).await {
            Ok(done) => done.map_err(|_| stopping()),
            Err(_) => Err(late()),
        }
    }

    /// What this replica has compared with the others, and where it differs from them; `log` has it read its log from end
    /// to end as well.
    ///
    /// # Errors
    /// `overloaded` while the log is being read for another one; `internal` when it cannot be.
    pub async fn verify(&self, log: bool) -> Result<Verified, Problem> {
        let parts = self.parts();
        let (readers, here) = (parts.readers.clone(), self.cluster());
        let databases = blocking(move || readers.ids()).await?.map_err(Problem::from)?.len() as u64;
        let status = DriverStatus::clone(&parts.status.borrow());
        let others = status.members.iter().filter(|member| member.id != parts.replica);
        let compared =
            others.map(|member| Compared { replica: member.id.0, databases: (member.compared as u64).min(databases) });
        let compared = compared.collect();
        let log = if log {
            let place = Arc::clone(&self.parts().verifying).try_acquire_owned();
            let place = place.map_err(|_| Problem::new(Code::Overloaded, "the log is being read for somebody else"))?;
            let reader = parts.log.clone();
            let read = blocking(move || {
                let _place = place;
                read_log(&reader)
            });
            Some(read.await??)
        } else {
            None
        };
        let (replica, state, applied, divergent) = (here.replica, here.state, here.applied, here.divergent);
        Ok(Verified { replica, state, applied, databases, compared, divergent, log })
    }
}

fn late() -> Problem {
    Problem::new(Code::RequestTimeout, "this replica is at work still").with_hint("it goes on; ask again later")
}

/// Reads every record, and compares it with its checksum.
fn read_log(log: &LogReader) -> Result<LogVerified, Problem> {
    let (mut base, last) = (log.base(), log.last());
    let mut next = base;
    let mut damaged = None;
    while next <= last {
        match log.check(next, last, PIECE) {
            Checked::Sound { last: end, .. } if end >= next => next = end.next(),
            Checked::Sound { .. } => break,
            Checked::Damaged { slot, .. } if slot < log.base() => {
                // It was cut meanwhile.
                base = log.base();
                next = next.max(base);
            }
            Checked::Damaged { slot, problem } => {
                damaged = Some(LogDamage { slot: slot.0, problem });
                break;
            }
            Checked::Unread(problem) => {
                return Err(Problem::new(Code::Internal, format!("the log cannot be read: {problem}")));
            }
        }
    }
    Ok(LogVerified { base: base.0, last: last.0, damaged })
}
