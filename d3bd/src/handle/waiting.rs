//! Answers of the driver on their way to the tasks that wait for them.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use d3b::{Outcome, Slot};
use tokio::sync::oneshot;

use crate::driver::{Ticket, Unavailable, WriteFailure};
use crate::media::Kept;
use crate::peer::MemberFailure;

type WriteResult = Result<(Slot, Outcome), WriteFailure>;
type ReadResult = Result<Slot, Unavailable>;
type MemberResult = Result<Slot, MemberFailure>;

/// A write whose answer is awaited.
#[derive(Debug)]
struct ExpectedWrite {
    sender: oneshot::Sender<WriteResult>,
    /// Its blob is kept until the driver is done with it, also when nobody listens any more.
    _kept: Option<Kept>,
}

#[derive(Debug, Default)]
struct Books {
    closed: bool,
    writes: HashMap<Ticket, ExpectedWrite>,
    reads: HashMap<Ticket, oneshot::Sender<ReadResult>>,
    member_requests: HashMap<Ticket, oneshot::Sender<MemberResult>>,
}

/// Who waits for what. The driver ends every write and every read that it was sent, at its deadline at the latest; once
/// it has ended itself, nobody waits any more.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    books: Mutex<Books>,
}

impl Waiting {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().expect("no panic while held")
    }

    /// The answer to a write that is about to be sent to the driver. It stays in the books until it is done, even if
    /// its client goes away: the write may be proposed all the same.
    pub(super) fn expect_write(&self, ticket: Ticket, kept: Option<Kept>) -> oneshot::Receiver<WriteResult> {
        let (sender, receiver) = oneshot::channel();
        let mut books = self.books();
        if !books.closed {
            books.writes.insert(ticket, ExpectedWrite { sender, _kept: kept });
        }
        receiver
    }

    /// A write that was not sent after all.
    pub(super) fn forget_write(&self, ticket: Ticket) {
        let forgotten = self.books().writes.remove(&ticket);
        drop(forgotten);
    }

    /// The answer to a read that is about to be sent to the driver. Dropping it takes it out of the books.
    pub(super) fn expect_read(self: &Arc<Self>, ticket: Ticket) -> ExpectedRead {
        let (sender, receiver) = oneshot::channel();
        let mut books = self.books();
        if !books.closed {
            books.reads.insert(ticket, sender);
        }
        drop(books);
        ExpectedRead { waiting: Arc::clone(self), ticket, receiver }
    }

    /// The answer to a request for other members that is about to be sent to the driver.
    pub(super) fn expect_member_request(&self, ticket: Ticket) -> oneshot::Receiver<MemberResult> {
        let (sender, receiver) = oneshot::channel();
        let mut books = self.books();
        if !books.closed {
            books.member_requests.insert(ticket, sender);
        }
        receiver
    }

    /// Wakes the task that waits for it.
    pub(crate) fn member_request_done(&self, ticket: Ticket, result: MemberResult) {
        let sender = self.books().member_requests.remove(&ticket);
        if let Some(sender) = sender {
            let _ = sender.send(result);
        }
    }

    /// Wakes the task that waits for a write.
    pub(crate) fn write_done(&self, ticket: Ticket, result: WriteResult) {
        let expected = self.books().writes.remove(&ticket);
        if let Some(ExpectedWrite { sender, _kept }) = expected {
            // The client may have gone away; the outcome stands in the database all the same.
            let _ = sender.send(result);
        }
    }

    /// Wakes the task that waits for a read index.
    pub(crate) fn read_done(&self, ticket: Ticket, result: ReadResult) {
        let sender = self.books().reads.remove(&ticket);
        if let Some(sender) = sender {
            let _ = sender.send(result);
        }
    }

    /// The driver has ended: wakes everyone, without an answer.
    pub(crate) fn close(&self) {
        let ended = std::mem::replace(&mut *self.books(), Books { closed: true, ..Books::default() });
        drop(ended);
    }
}

/// A read's answer to come; `None` when the driver has ended.
pub(super) struct ExpectedRead {
    waiting: Arc<Waiting>,
    ticket: Ticket,
    receiver: oneshot::Receiver<ReadResult>,
}

impl Future for ExpectedRead {
    type Output = Option<ReadResult>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ReadResult>> {
        Pin::new(&mut self.receiver).poll(cx).map(Result::ok)
    }
}

impl Drop for ExpectedRead {
    fn drop(&mut self) {
        self.waiting.books().reads.remove(&self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_read_that_nobody_waits_for_leaves_the_books() {
        let waiting = Arc::new(Waiting::default());
        drop(waiting.expect_read(Ticket(1)));
        assert!(waiting.books().reads.is_empty());
        let read = waiting.expect_read(Ticket(2));
        waiting.read_done(Ticket(2), Ok(Slot(7)));
        assert_eq!(read.await, Some(Ok(Slot(7))));
    }

    #[tokio::test]
    async fn nobody_waits_for_a_driver_that_has_ended() {
        let waiting = Arc::new(Waiting::default());
        let (write, read) = (waiting.expect_write(Ticket(1), None), waiting.expect_read(Ticket(2)));
        waiting.close();
        assert!(write.await.is_err());
        assert_eq!(read.await, None);
        assert!(waiting.expect_write(Ticket(3), None).await.is_err());
        assert_eq!(waiting.expect_read(Ticket(4)).await, None);
    }
}
