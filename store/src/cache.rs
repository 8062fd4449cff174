//! Which cached content goes first: S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: FIFO queues are all you need for cache
//! eviction, SOSP 2023), with sizes in bytes. No IO, no clock, no randomness: what is kept and where is the caller's.
//!
//! A newcomer enters a small queue, a tenth of the bytes. What is wanted again while it is there goes on to the main
//! queue; the rest goes, and only its key is remembered for a while: who comes back in that time enters the main queue
//! at once. In the main queue, what was wanted since its last turn gets another one.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

/// The small queue's part of the bytes: one in ten, as in the paper.
const SMALL_PART: u64 = 10;
/// How often something counts as wanted, at most: two bits, as in the paper.
const MAX_WANTED: u8 = 3;
/// From so many requests on it moves from the small queue to the main one, as in the paper.
const TO_MAIN: u8 = 2;
/// Turns that an entry can get in one search for something to evict.
const MAX_TURNS: usize = MAX_WANTED as usize + 2;

/// The order of eviction of entries that are kept elsewhere. All methods take constant time, amortised.
#[derive(Clone, Debug)]
pub struct S3Fifo<K> {
    capacity: u64,
    small: Queue<K>,
    main: Queue<K>,
    /// Keys of what left the small queue, with the sizes it had.
    ghost: VecDeque<(K, u64, u64)>,
    ghost_bytes: u64,
    /// The newest number of each key in `ghost`.
    ghosts: HashMap<K, u64>,
    entries: HashMap<K, Entry>,
    next: u64,
}

#[derive(Clone, Debug)]
struct Queue<K> {
    /// The oldest first; numbers that are not an entry's any more are passed over.
    keys: VecDeque<(K, u64)>,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    size: u64,
    wanted: u8,
    in_main: bool,
    number: u64,
}

impl<K: Clone + Eq + Hash> S3Fifo<K> {
    /// An empty order for a cache of `capacity` bytes. The capacity sets the shares of the queues; when to evict is the
    /// caller's decision.
    pub fn new(capacity: u64) -> Self {
        let queue = || Queue { keys: VecDeque::new(), bytes: 0 };
        S3Fifo {
            capacity,
            small: queue(),
            main: queue(),
            ghost: VecDeque::new(),
            ghost_bytes: 0,
            ghosts: HashMap::new(),
            entries: HashMap::new(),
            next: 0,
        }
    }

    /// Bytes of all entries.
    pub fn bytes(&self) -> u64 {
        self.small.bytes + self.main.bytes
    }

    /// Whether there is such an entry.
    pub fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// Notes that an entry was wanted; false if there is none.
    pub fn hit(&mut self, key: &K) -> bool {
        let Some(entry) = self.entries.get_mut(key) else { return false };
        entry.wanted = (entry.wanted + 1).min(MAX_WANTED);
        true
    }

    /// Adds an entry of `size` bytes. One that is there gets the new size and keeps its place.
    pub fn insert(&mut self, key: K, size: u64) {
        if let Some(entry) = self.entries.get_mut(&key) {
            let queue = if entry.in_main { &mut self.main } else { &mut self.small };
            queue.bytes = queue.bytes - entry.size + size;
            entry.size = size;
            return;
        }
        let in_main = self.ghosts.remove(&key).is_some();
        self.push(key, Entry { size, wanted: 0, in_main, number: 0 });
    }

    /// Forgets an entry, without a trace; false if there was none.
    pub fn remove(&mut self, key: &K) -> bool {
        let Some(entry) = self.entries.remove(key) else { return false };
        let queue = if entry.in_main { &mut self.main } else { &mut self.small };
        queue.bytes -= entry.size;
        true
    }

    /// Takes out the entry that is to go first, with its size. Entries that `keep` names stay. `None` if nothing may
    /// go.
    pub fn evict(&mut self, keep: impl Fn(&K) -> bool) -> Option<(K, u64)> {
        for _ in 0..(self.small.keys.len() + self.main.keys.len() + 1) * MAX_TURNS {
            let small_is_full = self.small.bytes >= self.capacity / SMALL_PART;
            let from_main = !small_is_full && self.main.bytes > 0 || self.small.keys.is_empty();
            let queue = if from_main { &mut self.main } else { &mut self.small };
            let (key, number) = match queue.keys.pop_front() {
                Some(oldest) => oldest,
                None if self.entries.is_empty() => return None,
                None => continue,
            };
            // Removed, or counted anew since.
            let Some(mut entry) = self.entries.get(&key).copied().filter(|entry| entry.number == number) else {
                continue;
            };
            queue.bytes -= entry.size;
            if keep(&key) {
                self.push(key, entry);
            } else if from_main && entry.wanted > 0 {
                entry.wanted -= 1;
                self.push(key, entry);
            } else if !from_main && entry.wanted >= TO_MAIN {
                (entry.wanted, entry.in_main) = (0, true);
                self.push(key, entry);
            } else {
                self.entries.remove(&key);
                if !from_main {
                    self.remember(key.clone(), entry.size);
                }
                return Some((key, entry.size));
            }
        }
        None
    }

    /// The entries with their sizes, in the order in which they would go if nothing were wanted any more.
    pub fn iter(&self) -> impl Iterator<Item = (&K, u64)> {
        let queues = self.small.keys.iter().chain(&self.main.keys);
        queues.filter_map(|(key, number)| {
            let entry = self.entries.get(key).filter(|entry| entry.number == *number)?;
            Some((key, entry.size))
        })
    }

    fn push(&mut self, key: K, entry: Entry) {
        self.next += 1;
        let queue = if entry.in_main { &mut self.main } else { &mut self.small };
        queue.keys.push_back((key.clone(), self.next));
        queue.bytes += entry.size;
        self.entries.insert(key, Entry { number: self.next, ..entry });
        // What was removed leaves its number behind.
        if self.small.keys.len() + self.main.keys.len() > 2 * self.entries.len() + 16 {
            let current = |(key, number): &(K, u64)| self.entries.get(key).is_some_and(|entry| entry.number == *number);
            self.small.keys.retain(current);
            self.main.keys.retain(current);
        }
    }

    /// Remembers the key of what left the small queue, for as long as the main queue's bytes would have kept it.
    fn remember(&mut self, key: K, size: u64) {
        self.next += 1;
        self.ghost.push_back((key.clone(), size, self.next));
        self.ghost_bytes += size;
        self.ghosts.insert(key, self.next);
        while self.ghost_bytes > self.capacity - self.capacity / SMALL_PART {
            let Some((key, size, number)) = self.ghost.pop_front() else { return };
            self.ghost_bytes -= size;
            if self.ghosts.get(&key) == Some(&number) {
                self.ghosts.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// A cache of unit sizes that is used as a cache is: a miss makes room and enters.
    fn request(cache: &mut S3Fifo<u32>, capacity: u64, key: u32) -> bool {
        if cache.hit(&key) {
            return true;
        }
        while cache.bytes() + 1 > capacity {
            cache.evict(|_| false).unwrap();
        }
        cache.insert(key, 1);
        false
    }

    #[test]
    fn a_scan_does_not_wash_out_what_is_wanted_again_and_again() {
        let mut cache = S3Fifo::new(100);
        for _ in 0..4 {
            (0..50).for_each(|key| _ = request(&mut cache, 100, key));
        }
        (1000..3000).for_each(|key| _ = request(&mut cache, 100, key));
        let kept = (0..50).filter(|key| cache.contains(key)).count();
        assert_eq!(kept, 50, "LRU would keep none");
    }

    #[test]
    fn who_comes_back_soon_enters_the_main_queue() {
        let mut cache = S3Fifo::new(20);
        (0..60).for_each(|key| _ = request(&mut cache, 20, key));
        let gone = (0..60).rev().find(|key| !cache.contains(key)).unwrap();
        request(&mut cache, 20, gone);
        // Two newcomers push everything else out of the small queue, but not this.
        (100..140).for_each(|key| _ = request(&mut cache, 20, key));
        assert!(cache.contains(&gone));
    }

    #[test]
    fn what_must_stay_stays_and_the_search_ends() {
        let mut cache = S3Fifo::new(10);
        (0..10u32).for_each(|key| cache.insert(key, 1));
        assert_eq!(cache.evict(|key| *key != 7), Some((7, 1)));
        assert_eq!(cache.evict(|_| true), None);
        assert_eq!(cache.bytes(), 9);
    }

    proptest! {
        /// Bytes are those of the entries, whatever happens; nothing is evicted twice or out of nowhere.
        #[test]
        fn counts_agree(steps in prop::collection::vec((0..4u8, 0..30u32, 1..50u64), 0..300)) {
            let mut cache = S3Fifo::new(200);
            let mut there = HashMap::new();
            for (what, key, size) in steps {
                match what {
                    0 | 1 => {
                        cache.insert(key, size);
                        there.insert(key, size);
                    }
                    2 => prop_assert_eq!(cache.hit(&key), there.contains_key(&key)),
                    _ if size % 2 == 0 => prop_assert_eq!(cache.remove(&key), there.remove(&key).is_some()),
                    _ => {
                        let evicted = cache.evict(|_| false);
                        prop_assert_eq!(evicted.is_some(), !there.is_empty());
                        if let Some((key, size)) = evicted {
                            prop_assert_eq!(there.remove(&key), Some(size));
                        }
                    }
                }
                prop_assert_eq!(cache.bytes(), there.values().sum::<u64>());
                let listed: HashSet<u32> = cache.iter().map(|(key, _)| *key).collect();
                prop_assert_eq!(listed, there.keys().copied().collect::<HashSet<u32>>());
                prop_assert!(cache.ghost_bytes <= 180);
            }
        }
    }
}
