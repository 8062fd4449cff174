//! The searches for providers: what was delivered, what is still being looked for. Decides only; the actor runs the
//! queries and the dials.

use crate::{DhtLimits, Provider};
use libp2p::{
    PeerId,
    kad::{QueryId, RecordKey},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    time::Instant,
};
use tokio::sync::mpsc;

/// Names a search while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SearchId(u64);

/// One search.
#[derive(Debug)]
struct Search {
    key: RecordKey,
    /// Has room for all that may be delivered.
    found: mpsc::Sender<Provider>,
    state: State,
    seen: HashSet<PeerId>,
    /// Providers whose addresses are being looked for.
    resolving: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No peer is known yet; wait until then.
    Held(Instant),
    Running(QueryId),
    Ended,
}

/// A provider without a usable address.
#[derive(Debug)]
struct Resolving {
    until: Instant,
    searches: Vec<SearchId>,
    /// The lookup of the peer itself, the second way.
    lookup: Option<QueryId>,
}

/// All searches. At most `limits.searches`, each with at most `limits.providers_per_search` providers.
#[derive(Debug)]
pub(crate) struct Searches {
    limits: DhtLimits,
    last: u64,
    searches: BTreeMap<SearchId, Search>,
    by_query: HashMap<QueryId, SearchId>,
    resolving: HashMap<PeerId, Resolving>,
}

impl Searches {
    pub(crate) fn new(limits: DhtLimits) -> Self {
        Searches { limits, last: 0, searches: BTreeMap::new(), by_query: HashMap::new(), resolving: HashMap::new() }
    }

    /// A new search, held until [`Searches::started`] or `until`. `None` when there are too many.
    pub(crate) fn add(&mut self, key: RecordKey, until: Instant) -> Option<(SearchId, mpsc::Receiver<Provider>)> {
        if self.searches.len() >= self.limits.searches {
            return None;
        }
        self.last += 1;
        let id = SearchId(self.last);
        let (found, receiver) = mpsc::channel(self.limits.providers_per_search);
        let search = Search { key, found, state: State::Held(until), seen: HashSet::new(), resolving: 0 };
        self.searches.insert(id, search);
        Some((id, receiver))
    }

    /// The searches that wait for a first peer, with their keys.
    pub(crate) fn held(&self) -> Vec<(SearchId, RecordKey)> {
        let held = self.searches.iter().filter(|(_, s)| matches!(s.state, State::Held(_)));
        held.map(|(id, s)| (*id, s.key.clone())).collect()
    }

    pub(crate) fn started(&mut self, id: SearchId, query: QueryId) {
        if let Some(search) = self.searches.get_mut(&id) {
            search.state = State::Running(query);
            self.by_query.insert(query, id);
        }
    }

    /// The search behind a query, and its key.
    pub(crate) fn by_query(&self, query: QueryId) -> Option<(SearchId, RecordKey)> {
        let id = *self.by_query.get(&query)?;
        Some((id, self.searches.get(&id)?.key.clone()))
    }

    /// Whether a search should hear of this provider: not twice, and not too many.
    pub(crate) fn is_new(&mut self, id: SearchId, peer: PeerId) -> bool {
        let max = self.limits.providers_per_search;
        self.searches.get_mut(&id).is_some_and(|search| search.seen.len() < max && search.seen.insert(peer))
    }

    /// Delivers a provider.
    pub(crate) fn deliver(&mut self, id: SearchId, peer: PeerId, addrs: Vec<SocketAddr>) {
        if let Some(search) = self.searches.get_mut(&id) {
            // It has room for all of `seen`; it fails only when nobody listens, and then the search is about to end.
            search.found.try_send(Provider { peer, addrs }).ok();
        }
    }

    /// Remembers that the addresses of a provider are looked for. True when that has to begin.
    pub(crate) fn resolve(&mut self, id: SearchId, peer: PeerId, until: Instant) -> bool {
        let Some(search) = self.searches.get_mut(&id) else { return false };
        search.resolving += 1;
        let mut begin = false;
        let entry = self.resolving.entry(peer).or_insert_with(|| {
            begin = true;
            Resolving { until, searches: Vec::new(), lookup: None }
        });
        entry.searches.push(id);
        begin
    }

    pub(crate) fn is_resolving(&self, peer: &PeerId) -> bool {
        self.resolving.contains_key(peer)
    }

    /// Whether the peer may still be looked up by its id; it is then marked as being so.
    pub(crate) fn may_look_up(&self, peer: &PeerId) -> bool {
        self.resolving.get(peer).is_some_and(|r| r.lookup.is_none())
    }

    pub(crate) fn looking_up(&mut self, peer: PeerId, query: QueryId) {
        if let Some(resolving) = self.resolving.get_mut(&peer) {
            resolving.lookup = Some(query);
        }
    }

    /// Which peer a lookup was for.
    pub(crate) fn looked_up(&self, query: QueryId) -> Option<PeerId> {
        self.resolving.iter().find(|(_, r)| r.lookup == Some(query)).map(|(peer, _)| *peer)
    }

    /// The looking for a provider has ended, with addresses or without.
    pub(crate) fn resolved(&mut self, peer: PeerId, addrs: &[SocketAddr]) {
        let Some(resolving) = self.resolving.remove(&peer) else { return };
        for id in resolving.searches {
            if !addrs.is_empty() {
                self.deliver(id, peer, addrs.to_vec());
            }
            if let Some(search) = self.searches.get_mut(&id) {
                search.resolving -= 1;
            }
            self.end_if_done(id);
        }
    }

    /// A query has ended. Its search ends when nothing is being resolved for it.
    pub(crate) fn query_ended(&mut self, query: QueryId) {
        let Some(id) = self.by_query.remove(&query) else { return };
        if let Some(search) = self.searches.get_mut(&id) {
            search.state = State::Ended;
        }
        self.end_if_done(id);
    }

    /// Drops searches that nobody listens to or that have enough. Gives the queries to be stopped.
    pub(crate) fn reap(&mut self) -> Vec<QueryId> {
        let max = self.limits.providers_per_search;
        let done = |s: &Search| s.found.is_closed() || (s.seen.len() >= max && s.resolving == 0);
        let gone: Vec<_> = self.searches.iter().filter(|(_, s)| done(s)).map(|(id, _)| *id).collect();
        let mut queries = Vec::new();
        for id in gone {
            if let Some(Search { state: State::Running(query), .. }) = self.searches.remove(&id) {
                self.by_query.remove(&query);
                queries.push(query);
            }
        }
        queries
    }

    /// Gives up what has taken too long: searches that were held, providers that were being resolved.
    pub(crate) fn expire(&mut self, now: Instant) {
        let late: Vec<_> = self.resolving.iter().filter(|(_, r)| r.until <= now).map(|(peer, _)| *peer).collect();
        for peer in late {
            self.resolved(peer, &[]);
        }
        self.searches.retain(|_, s| !matches!(s.state, State::Held(until) if until <= now));
    }

    /// When [`Searches::expire`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let held = self.searches.values().filter_map(|s| match s.state {
            State::Held(until) => Some(until),
            _ => None,
        });
        held.chain(self.resolving.values().map(|r| r.until)).min()
    }

    fn end_if_done(&mut self, id: SearchId) {
        if self.searches.get(&id).is_some_and(|s| s.state == State::Ended && s.resolving == 0) {
            self.searches.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::mpsc::error::TryRecvError;

    fn addr() -> SocketAddr {
        "127.0.0.1:1".parse().unwrap()
    }

    #[test]
    fn a_provider_is_delivered_once_and_the_end_waits_for_the_last() {
        let mut searches = Searches::new(DhtLimits::default());
        let now = Instant::now();
        let (id, mut found) = searches.add(RecordKey::new(&[1]), now).unwrap();
        let (here, hidden) = (PeerId::random(), PeerId::random());
        assert!(searches.is_new(id, here));
        assert!(!searches.is_new(id, here));
        searches.deliver(id, here, vec![addr()]);
        assert_eq!(found.try_recv().unwrap().peer, here);
        assert!(searches.is_new(id, hidden) && searches.resolve(id, hidden, now));
        searches.searches.get_mut(&id).unwrap().state = State::Ended;
        searches.end_if_done(id);
        assert_eq!(found.try_recv(), Err(TryRecvError::Empty));
        searches.resolved(hidden, &[addr()]);
        assert_eq!(found.try_recv().unwrap().peer, hidden);
        assert_eq!(found.try_recv(), Err(TryRecvError::Disconnected));
        assert!(searches.searches.is_empty() && searches.resolving.is_empty());
    }

    #[test]
    fn time_outs_end_searches() {
        let mut searches = Searches::new(DhtLimits { searches: 2, ..DhtLimits::default() });
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let (held, mut never_joined) = searches.add(RecordKey::new(&[1]), later).unwrap();
        let (other, mut unresolved) = searches.add(RecordKey::new(&[2]), now + Duration::from_secs(9)).unwrap();
        assert!(searches.add(RecordKey::new(&[3]), later).is_none(), "bounded");
        assert_eq!(searches.held().len(), 2);
        searches.searches.get_mut(&other).unwrap().state = State::Ended;
        searches.resolve(other, PeerId::random(), later);
        assert_eq!(searches.next_deadline(), Some(later));
        searches.expire(now);
        assert!(searches.searches.contains_key(&held));
        searches.expire(later);
        assert_eq!(never_joined.try_recv(), Err(TryRecvError::Disconnected));
        assert_eq!(unresolved.try_recv(), Err(TryRecvError::Disconnected));
        assert_eq!(searches.next_deadline(), None);
    }

    #[test]
    fn a_flood_of_providers_is_cut_and_a_dropped_receiver_ends_the_search() {
        let mut searches = Searches::new(DhtLimits { providers_per_search: 3, ..DhtLimits::default() });
        let (id, found) = searches.add(RecordKey::new(&[1]), Instant::now()).unwrap();
        let fresh = (0..9).filter(|_| searches.is_new(id, PeerId::random())).count();
        assert_eq!(fresh, 3);
        drop(found);
        searches.reap();
        assert!(searches.searches.is_empty());
    }
}
