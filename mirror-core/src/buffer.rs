//! Payload memory that travels from socket to disk and from disk to socket without a copy.
//!
//! The engine never looks for memory: it receives filled [`Buffer`]s in events and passes clones of
//! the handle on in effects. A handle is reference-counted and read-only; the memory goes back to
//! whoever provided it when the last clone is dropped.

use std::fmt;
use std::ops::Deref;
use std::rc::Rc;

/// Where a [`Buffer`]'s bytes live: pooled aligned memory in the daemon, a vector in the simulator.
///
/// `bytes` returns the same place and contents for as long as the value lives: the kernel reads
/// from there while the handle is elsewhere.
pub trait Memory {
    fn bytes(&self) -> &[u8];
}

impl Memory for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// A shared, read-only piece of payload.
#[derive(Clone)]
pub struct Buffer {
    memory: Rc<dyn Memory>,
    start: usize,
    length: usize,
}

impl Buffer {
    pub fn new(memory: Rc<dyn Memory>) -> Self {
        let length = memory.bytes().len();
        Self {
            memory,
            start: 0,
            length,
        }
    }

    /// A view of `length` bytes from `start`. Panics when the view leaves the buffer.
    pub fn slice(&self, start: usize, length: usize) -> Self {
        assert!(start + length <= self.length, "buffer view out of range");
        Self {
            memory: Rc::clone(&self.memory),
            start: self.start + start,
            length,
        }
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(Rc::new(bytes))
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory.bytes()[self.start..self.start + self.length]
    }
}

impl PartialEq for Buffer {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

impl Eq for Buffer {}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.length)
    }
}
