//! Buffers that are used again: a fresh one of such a size would be mapped, faulted in and zeroed for each piece.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// The buffers of one stream; clones share them. There are as many as were ever in use at the same time.
#[derive(Debug, Clone, Default)]
pub(super) struct Buffers {
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Buffers {
    /// A buffer with room for so many bytes, of whatever content.
    pub(super) fn take(&self, length: usize) -> Buffer {
        let mut bytes = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        if bytes.len() < length {
            bytes = vec![0; length];
        }
        Buffer { bytes, length, home: self.clone() }
    }
}

/// A buffer in use; it goes back when it is dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    length: usize,
    home: Buffers,
}

impl Buffer {
    /// Where to put the bytes.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }

    /// Its first bytes, so many of which were put there. The buffer goes back when the last clone of them is dropped.
    pub(super) fn filled(mut self, length: usize) -> Bytes {
        self.length = length.min(self.length);
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.idle.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_when_its_bytes_are_not_needed_any_more() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(3);
        buffer.room().copy_from_slice(b"abc");
        let bytes = buffer.filled(2);
        let (clone, place) = (bytes.clone(), bytes.as_ptr());
        assert_eq!(bytes, b"ab"[..]);
        drop(bytes);
        assert_ne!(buffers.take(3).as_ref().as_ptr(), place, "somebody still reads it");
        assert_eq!(clone, b"ab"[..]);
        drop(clone);
        assert_eq!(buffers.take(1).as_ref().as_ptr(), place);
    }
}
