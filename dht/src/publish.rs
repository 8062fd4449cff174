//! Which of our keys are to be announced now, and who waits for it. Decides only; the actor runs the queries.

use crate::DhtError;
use libp2p::kad::{QueryId, RecordKey};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Instant,
};
use tokio::sync::oneshot;

type Reply = oneshot::Sender<Result<(), DhtError>>;

/// The announcements. Every collection holds at most our own keys, which are bounded.
#[derive(Debug)]
pub(crate) struct Publish {
    at_once: usize,
    waiting: VecDeque<RecordKey>,
    running: HashMap<QueryId, RecordKey>,
    /// Keys that no peer was told of.
    untold: HashSet<RecordKey>,
    replies: HashMap<RecordKey, Vec<(Instant, Reply)>>,
}

impl Publish {
    pub(crate) fn new(at_once: usize) -> Self {
        Publish {
            at_once,
            waiting: VecDeque::new(),
            running: HashMap::new(),
            untold: HashSet::new(),
            replies: HashMap::new(),
        }
    }

    /// Announce this key, and answer when it is done or at `until`; at once when we are `alone`.
    pub(crate) fn add(&mut self, key: RecordKey, alone: bool, until: Instant, reply: Reply) {
        if alone {
            self.untold.insert(key);
            answer(vec![(until, reply)]);
            return;
        }
        self.replies.entry(key.clone()).or_default().push((until, reply));
        self.enqueue(key);
    }

    /// Forget this key; who waits for it is answered.
    pub(crate) fn remove(&mut self, key: &RecordKey) {
        self.waiting.retain(|waiting| waiting != key);
        self.untold.remove(key);
        answer(self.replies.remove(key).unwrap_or_default());
    }

    /// There are peers now: what nobody was told of is to be announced.
    pub(crate) fn tell_untold(&mut self) {
        let keys: Vec<_> = self.untold.drain().collect();
        for key in keys {
            self.enqueue(key);
        }
    }

    /// Answers who has waited long enough; the announcements go on.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.replies.retain(|_, waiting| {
            for (_, reply) in waiting.extract_if(.., |(until, _)| *until <= now) {
                answer(vec![(now, reply)]);
            }
            !waiting.is_empty()
        });
    }

    /// When [`Publish::expire`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.replies.values().flatten().map(|(until, _)| *until).min()
    }

    /// Whether some keys are known to nobody.
    pub(crate) fn has_untold(&self) -> bool {
        !self.untold.is_empty()
    }

    /// The next key to start a query for. Follow with [`Publish::started`] or [`Publish::failed`].
    pub(crate) fn next(&mut self) -> Option<RecordKey> {
        if self.running.len() >= self.at_once { None } else { self.waiting.pop_front() }
    }

    pub(crate) fn started(&mut self, query: QueryId, key: RecordKey) {
        self.running.insert(query, key);
    }

    /// The key could not even be registered.
    pub(crate) fn failed(&mut self, key: &RecordKey) {
        self.remove(key);
    }

    /// A query has ended; `told` says whether any peer answered in it. Gives the key, if the query was one of ours.
    pub(crate) fn finished(&mut self, query: QueryId, told: bool) -> bool {
        let Some(key) = self.running.remove(&query) else { return false };
        answer(self.replies.remove(&key).unwrap_or_default());
        if !told {
            self.untold.insert(key);
        }
        true
    }

    fn enqueue(&mut self, key: RecordKey) {
        self.untold.remove(&key);
        if !self.waiting.contains(&key) {
            self.waiting.push_back(key);
        }
    }
}

fn answer(replies: Vec<(Instant, Reply)>) {
    for (_, reply) in replies {
        // The caller may have stopped waiting.
        reply.send(Ok(())).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn key(n: u8) -> RecordKey {
        RecordKey::new(&[n])
    }

    #[test]
    fn alone_is_answered_at_once_and_told_later() {
        let mut publish = Publish::new(2);
        let (reply, mut answer) = oneshot::channel();
        publish.add(key(1), true, Instant::now(), reply);
        assert!(answer.try_recv().unwrap().is_ok());
        assert!(publish.has_untold() && publish.next().is_none());
        publish.tell_untold();
        assert_eq!(publish.next(), Some(key(1)));
        assert!(!publish.has_untold());
    }

    #[test]
    fn a_key_is_announced_once_for_all_who_wait() {
        let mut publish = Publish::new(1);
        let (first, mut one) = oneshot::channel();
        let (second, mut two) = oneshot::channel();
        let now = Instant::now();
        let (third, mut late) = oneshot::channel();
        publish.add(key(1), false, now + Duration::from_secs(1), first);
        publish.add(key(1), false, now + Duration::from_secs(1), second);
        publish.add(key(1), false, now, third);
        assert_eq!(publish.next_deadline(), Some(now));
        publish.expire(now);
        assert!(late.try_recv().is_ok(), "patience has an end");
        assert_eq!(publish.next(), Some(key(1)));
        assert_eq!(publish.next(), None);
        assert!(one.try_recv().is_err());
        publish.remove(&key(1));
        assert!(one.try_recv().is_ok() && two.try_recv().is_ok(), "a forgotten key keeps nobody waiting");
    }
}
