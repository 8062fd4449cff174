//! The provider records: ours without bound by others, those of strangers within the limits. Values are not stored:
//! nothing here uses them, and a stranger's value is only a cost.

use crate::DhtLimits;
use libp2p::{
    PeerId,
    kad::{
        ProviderRecord, Record, RecordKey,
        store::{Error, RecordStore, Result},
    },
};
use std::{
    borrow::Cow,
    collections::{HashMap, hash_map},
    iter,
    time::Instant,
};

/// Kademlia's record store.
pub(crate) struct Providers {
    us: PeerId,
    limits: DhtLimits,
    own: HashMap<RecordKey, ProviderRecord>,
    /// No empty vectors.
    foreign: HashMap<RecordKey, Vec<ProviderRecord>>,
    /// How many of `foreign` each provider has. No zeros.
    by_provider: HashMap<PeerId, usize>,
    foreign_count: usize,
}

impl Providers {
    pub(crate) fn new(us: PeerId, limits: DhtLimits) -> Self {
        Providers {
            us,
            limits,
            own: HashMap::new(),
            foreign: HashMap::new(),
            by_provider: HashMap::new(),
            foreign_count: 0,
        }
    }

    /// Records of strangers.
    #[cfg(test)]
    fn foreign_count(&self) -> usize {
        self.foreign_count
    }

    /// Drops what has expired. Called when a limit is reached, and now and then.
    pub(crate) fn expire(&mut self, now: Instant) {
        let (by_provider, count) = (&mut self.by_provider, &mut self.foreign_count);
        self.foreign.retain(|_, records| {
            records.retain(|record| {
                let keep = !record.is_expired(now);
                if !keep {
                    forget(by_provider, count, &record.provider);
                }
                keep
            });
            !records.is_empty()
        });
    }

    fn add_foreign(&mut self, mut record: ProviderRecord) -> Result<()> {
        record.addresses.truncate(self.limits.addrs_per_peer);
        let known = self.foreign.get_mut(&record.key);
        if let Some(old) = known.and_then(|records| records.iter_mut().find(|r| r.provider == record.provider)) {
            *old = record;
            return Ok(());
        }
        if self.is_full_for(&record) {
            self.expire(Instant::now());
            if self.is_full_for(&record) {
                return Err(Error::MaxProvidedKeys);
            }
        }
        *self.by_provider.entry(record.provider).or_default() += 1;
        self.foreign_count += 1;
        self.foreign.entry(record.key.clone()).or_default().push(record);
        Ok(())
    }

    fn is_full_for(&self, record: &ProviderRecord) -> bool {
        self.foreign_count >= self.limits.foreign_records
            || self.by_provider.get(&record.provider).is_some_and(|n| *n >= self.limits.records_per_provider)
            || self.foreign.get(&record.key).is_some_and(|r| r.len() >= self.limits.records_per_key)
    }
}

fn forget(by_provider: &mut HashMap<PeerId, usize>, count: &mut usize, provider: &PeerId) {
    *count = count.saturating_sub(1);
    if let hash_map::Entry::Occupied(mut entry) = by_provider.entry(*provider) {
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}

type Provided<'a> =
    iter::Map<hash_map::Values<'a, RecordKey, ProviderRecord>, fn(&'a ProviderRecord) -> Cow<'a, ProviderRecord>>;

impl RecordStore for Providers {
    type RecordsIter<'a> = iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = Provided<'a>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        iter::empty()
    }

    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        if record.key.as_ref().len() > self.limits.key_bytes {
            return Err(Error::ValueTooLarge);
        }
        if record.provider != self.us {
            return self.add_foreign(record);
        }
        if self.own.len() >= self.limits.own_keys && !self.own.contains_key(&record.key) {
            return Err(Error::MaxProvidedKeys);
        }
        self.own.insert(record.key.clone(), record);
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        self.own.get(key).into_iter().chain(self.foreign.get(key).into_iter().flatten()).cloned().collect()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        self.own.values().map(Cow::Borrowed)
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        if *provider == self.us {
            self.own.remove(key);
            return;
        }
        let hash_map::Entry::Occupied(mut entry) = self.foreign.entry(key.clone()) else { return };
        if let Some(at) = entry.get().iter().position(|r| r.provider == *provider) {
            entry.get_mut().swap_remove(at);
            forget(&mut self.by_provider, &mut self.foreign_count, provider);
            if entry.get().is_empty() {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn record(key: u32, provider: PeerId) -> ProviderRecord {
        ProviderRecord::new(RecordKey::new(&key.to_be_bytes()), provider, Vec::new())
    }

    fn store(limits: DhtLimits) -> (Providers, PeerId) {
        let us = PeerId::random();
        (Providers::new(us, limits), us)
    }

    #[test]
    fn strangers_fill_their_share_and_never_ours() {
        let (mut store, us) = store(DhtLimits { foreign_records: 4, own_keys: 2, ..DhtLimits::default() });
        for key in 0..9 {
            let result = store.add_provider(record(key, PeerId::random()));
            assert_eq!(result.is_ok(), key < 4);
        }
        store.add_provider(record(100, us)).unwrap();
        store.add_provider(record(101, us)).unwrap();
        store.add_provider(record(101, us)).unwrap();
        assert!(store.add_provider(record(102, us)).is_err());
        assert_eq!((store.foreign_count(), store.provided().count()), (4, 2));
        store.remove_provider(&RecordKey::new(&100u32.to_be_bytes()), &us);
        assert_eq!(store.provided().count(), 1);
    }

    #[test]
    fn one_stranger_and_one_key_have_bounds_of_their_own() {
        let limits = DhtLimits { records_per_provider: 2, records_per_key: 3, ..DhtLimits::default() };
        let (mut store, _) = store(limits);
        let greedy = PeerId::random();
        assert_eq!((0..5).filter(|key| store.add_provider(record(*key, greedy)).is_ok()).count(), 2);
        assert_eq!((0..5).filter(|_| store.add_provider(record(9, PeerId::random())).is_ok()).count(), 3);
        store.remove_provider(&record(0, greedy).key, &greedy);
        store.remove_provider(&record(0, greedy).key, &greedy);
        assert_eq!(store.by_provider.get(&greedy), Some(&1));
        store.add_provider(record(7, greedy)).unwrap();
    }

    #[test]
    fn the_expired_make_room() {
        let (mut store, _) = store(DhtLimits { foreign_records: 2, ..DhtLimits::default() });
        for key in 0..2 {
            let mut old = record(key, PeerId::random());
            old.expires = Instant::now().checked_sub(Duration::from_secs(1));
            store.add_provider(old).unwrap();
        }
        store.add_provider(record(9, PeerId::random())).unwrap();
        assert_eq!((store.foreign_count(), store.by_provider.len(), store.foreign.len()), (1, 1, 1));
    }

    #[test]
    fn values_and_oversized_keys_are_refused() {
        let (mut store, _) = store(DhtLimits::default());
        assert!(store.put(Record::new(RecordKey::new(&[1]), vec![2])).is_err());
        let long = ProviderRecord::new(RecordKey::new(&[7; 129]), PeerId::random(), Vec::new());
        assert!(store.add_provider(long).is_err());
    }
}
