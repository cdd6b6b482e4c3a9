//! What is asked of a server, and whether its answers are right.

use super::answer::Answer;

/// A kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// What it is called in reports.
    pub name: &'static str,
    /// Whether it writes: the silence between acknowledged writes is measured.
    pub writes: bool,
}

/// What an answer means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It was done, and so many rows or files were written or read.
    Done(u64),
    /// It was not done, for now; asking again is worth it.
    Refused,
    /// Nobody knows whether it was done. It counts as ended.
    Unknown,
    /// Nobody knows whether it was done, and the same request again tells.
    Repeat,
    /// An answer that should not be, and why. It counts as ended.
    Wrong(String),
}

/// What becomes of an operation whose request was sent, at least in part, and whose answer will not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// It is sent again, for it does no harm to do it twice.
    Repeat,
    /// It counts as ended, with an unknown outcome.
    Unknown,
}

/// The operations of some clients. A client has one operation under way at a time; clients are told apart by their
/// number, which is that among the clients of one thread.
pub trait Work: Send {
    /// The kinds of operations that there are.
    fn kinds(&self) -> &[Kind];

    /// Chooses a client's next operation, and gives the index of its kind.
    fn begin(&mut self, client: usize) -> usize;

    /// Writes the request of a client's operation, head and body, to the end of `out`. Called again for each repeat.
    fn request(&mut self, client: usize, host: &str, out: &mut Vec<u8>);

    /// Judges the answer to a client's operation.
    fn judge(&mut self, client: usize, answer: &Answer<'_>) -> Verdict;

    /// Says what becomes of a client's operation that was sent and has got no answer. `finally`: it will not be sent
    /// again, whatever this says.
    fn lost(&mut self, client: usize, finally: bool) -> Lost;
}

impl<W: Work + ?Sized> Work for Box<W> {
    fn kinds(&self) -> &[Kind] {
        (**self).kinds()
    }

    fn begin(&mut self, client: usize) -> usize {
        (**self).begin(client)
    }

    fn request(&mut self, client: usize, host: &str, out: &mut Vec<u8>) {
        (**self).request(client, host, out);
    }

    fn judge(&mut self, client: usize, answer: &Answer<'_>) -> Verdict {
        (**self).judge(client, answer)
    }

    fn lost(&mut self, client: usize, finally: bool) -> Lost {
        (**self).lost(client, finally)
    }
}
