//! Open files for reading, least recently used first out. Most reads hit the same big file or pack again and again.
//! Opening is the caller's business: nothing here does IO, so its lock is only held for moments.

use std::{fs::File, sync::Arc};

use crate::value::Place;

/// Files kept open. A swarm reads from few files at a time; the rest of the descriptors belong to connections.
pub(crate) const MAX_HANDLES: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Handles {
    /// With the time of the last use; searched linearly, 64 short comparisons cost less than a system call.
    open: Vec<(Place, Arc<File>, u64)>,
    clock: u64,
}

impl Handles {
    pub(crate) fn get(&mut self, place: Place) -> Option<Arc<File>> {
        self.clock += 1;
        let (_, file, used) = self.open.iter_mut().find(|(p, ..)| *p == place)?;
        *used = self.clock;
        Some(Arc::clone(file))
    }

    /// Keeps a file open. Returns the one it replaces, to be closed outside the lock.
    #[must_use]
    pub(crate) fn insert(&mut self, place: Place, file: Arc<File>) -> Option<Arc<File>> {
        self.clock += 1;
        let slot = match self.open.iter().position(|(p, ..)| *p == place) {
            Some(slot) => slot,
            None if self.open.len() < MAX_HANDLES => {
                self.open.push((place, file, self.clock));
                return None;
            }
            None => self.open.iter().enumerate().min_by_key(|(_, (.., used))| *used)?.0,
        };
        Some(std::mem::replace(&mut self.open[slot], (place, file, self.clock)).1)
    }

    pub(crate) fn forget(&mut self, place: Place) {
        self.open.retain(|(p, ..)| *p != place);
    }

    pub(crate) fn clear(&mut self) {
        self.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut handles = Handles::default();
        for i in 0..MAX_HANDLES as u32 {
            assert!(handles.insert(Place::Pack(i), Arc::clone(&file)).is_none());
        }
        assert!(handles.get(Place::Pack(0)).is_some());
        assert!(handles.insert(Place::Pack(1000), Arc::clone(&file)).is_some());
        assert!(handles.get(Place::Pack(0)).is_some());
        assert!(handles.get(Place::Pack(1)).is_none());
        handles.forget(Place::Pack(0));
        assert!(handles.get(Place::Pack(0)).is_none());
    }
}
