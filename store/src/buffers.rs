//! Buffers that blocks are read into, given back when the last reference to the block's bytes goes.
//! A fresh buffer would be zeroed, and its pages faulted in, for every read; a used one costs neither.

use std::sync::{Arc, Mutex};

use crate::{MAX_BLOCK_BYTES, locks::lock};

/// Memory kept for reuse, in bytes: a few dozen chunks, what a busy uplink has in flight.
const MAX_IDLE_BYTES: usize = 16 << 20;
/// Blocks below this are read into an allocation of their own size: they are cheap, and often kept.
const MIN_POOLED: usize = 16 << 10;
/// Buffers have powers of two from `MIN_POOLED` to `MAX_BLOCK_BYTES`.
const CLASSES: usize = (MAX_BLOCK_BYTES / MIN_POOLED).ilog2() as usize + 1;

#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: Mutex<Idle>,
}

#[derive(Debug, Default)]
struct Idle {
    classes: [Vec<Vec<u8>>; CLASSES],
    bytes: usize,
}

/// Memory for one block.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    pool: Arc<Pool>,
}

impl Pool {
    /// A buffer of `len` bytes, whatever they are. `len` is at most `MAX_BLOCK_BYTES`, as index values are.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let bytes = match class(len) {
            None => vec![0; len],
            Some(class) => {
                let mut idle = lock(&self.idle);
                let reused = idle.classes[class].pop();
                idle.bytes -= reused.as_ref().map_or(0, Vec::len);
                drop(idle);
                reused.unwrap_or_else(|| vec![0; MIN_POOLED << class])
            }
        };
        Buffer { bytes, len, pool: Arc::clone(self) }
    }
}

/// Which class of buffers holds `len` bytes; `None` where there is no pooling.
fn class(len: usize) -> Option<usize> {
    if len < MIN_POOLED {
        return None;
    }
    let class = len.next_power_of_two().ilog2() - MIN_POOLED.ilog2();
    (class < CLASSES as u32).then_some(class as usize)
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(class) = class(self.len) else { return };
        let mut idle = lock(&self.pool.idle);
        if idle.bytes + self.bytes.len() <= MAX_IDLE_BYTES {
            idle.bytes += self.bytes.len();
            idle.classes[class].push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_idle_memory_is_bounded() {
        let pool = Arc::new(Pool::default());
        for len in [0, 1, MIN_POOLED, MIN_POOLED + 1, 300_000, MAX_BLOCK_BYTES] {
            assert_eq!(pool.take(len).as_ref().len(), len);
        }
        let first = pool.take(300_000).as_ref().as_ptr();
        assert_eq!(pool.take(400_000).as_ref().as_ptr(), first, "same class, same memory");
        let many: Vec<_> = (0..20).map(|_| pool.take(MAX_BLOCK_BYTES)).collect();
        drop(many);
        assert!(lock(&pool.idle).bytes <= MAX_IDLE_BYTES);
    }
}
