//! Memory that all requests share, so that many large ones together stay within bounds.

use std::sync::Arc;

use bytes::Bytes;
use d3b::{Code, Problem};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Room in memory is taken in steps of so many KiB.
const MEMORY_STEP_KIB: u64 = 64;

/// What one request has of memory that many share. It is taken as the bytes come: what a client announces, or may yet
/// send or be sent, keeps nobody else out.
#[derive(Debug)]
pub(crate) struct Memory {
    shared: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Memory {
    /// None of it yet; a permit of `shared` is one KiB.
    pub(crate) fn new(shared: Arc<Semaphore>) -> Memory {
        Memory { shared, held: None }
    }

    /// Makes room for so many bytes in all.
    ///
    /// # Errors
    /// `overloaded`.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        let wanted = (bytes as u64).div_ceil(MEMORY_STEP_KIB << 10) * MEMORY_STEP_KIB;
        let held = self.held.as_ref().map_or(0, |held| held.num_permits() as u64);
        let missing = u32::try_from(wanted.saturating_sub(held)).unwrap_or(u32::MAX);
        if missing == 0 {
            return Ok(());
        }
        let permit = Arc::clone(&self.shared).try_acquire_many_owned(missing);
        let permit =
            permit.map_err(|_| Problem::new(Code::Overloaded, "too many large requests and results are under way"))?;
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        Ok(())
    }
}

/// Bytes that give their memory back when the last of them is gone: when a client has taken them, say.
pub(crate) fn held(bytes: Vec<u8>, memory: Memory) -> Bytes {
    Bytes::from_owner(Held { bytes, _memory: memory })
}

struct Held {
    bytes: Vec<u8>,
    _memory: Memory,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_taken_as_bytes_come_and_given_back() {
        let shared = Arc::new(Semaphore::new(256));
        let (mut one, mut other) = (Memory::new(Arc::clone(&shared)), Memory::new(Arc::clone(&shared)));
        one.grow(1).unwrap();
        one.grow(64 << 10).unwrap();
        assert_eq!(shared.available_permits(), 192, "by steps");
        other.grow(192 << 10).unwrap();
        assert_eq!(one.grow((64 << 10) + 1).unwrap_err().code, Code::Overloaded);
        drop(other);
        one.grow(256 << 10).unwrap();
        drop(one);
        assert_eq!(shared.available_permits(), 256);
    }

    #[test]
    fn bytes_hold_their_memory_as_long_as_they_are_there() {
        let shared = Arc::new(Semaphore::new(256));
        let mut memory = Memory::new(Arc::clone(&shared));
        memory.grow(100_000).unwrap();
        let whole = held(vec![7; 100_000], memory);
        let part = whole.slice(5..10);
        drop(whole);
        assert_eq!(shared.available_permits(), 128);
        drop(part);
        assert_eq!(shared.available_permits(), 256);
    }
}
