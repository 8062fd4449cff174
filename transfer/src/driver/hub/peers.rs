//! The hub's half that deals with peers: dialling, connections, what they say, introductions. No fetch is moved on here
//! beyond telling its core what a peer has.

use super::*;
use crate::driver::link::{PROTOCOL_FAULT, SILENT};
use shoal_content::Manifest;
use shoal_net::CLOSE_NORMAL;

/// A peer may make this side look at each leaf of a root so often in [`TOLL_SPAN`], by coming, going and saying what it has;
/// about four times is what it takes to come, get everything and be a seeder.
const TOLL_ROUNDS: u64 = 16;
const TOLL_SPAN: Duration = Duration::from_secs(60);
/// That much in any case, and what a newcomer costs however small the root is: others are told of it.
const TOLL_LEAST: u64 = 1 << 16;
const TOLL_NEWCOMER: u64 = 1 << 10;

/// What a peer hears that told lies before.
const BANNED: &str = "refused: you sent wrong bytes or broke the protocol";

impl Hub {
    pub(super) fn add_peers(&mut self, root: Cid, peers: Vec<PeerAddr>, pause: Duration) {
        let (me, limit, not_before) = (self.me, self.config.limits.known_peers_per_root, self.now() + pause);
        let Some(r) = self.roots.get_mut(&root) else { return };
        let now = self.origin.elapsed();
        for hint in peers.into_iter().filter(|h| h.peer != me) {
            if !self.bans.holds(&hint.peer, now) {
                r.learn(hint, limit, not_before);
            }
        }
        self.dial(root);
    }

    /// Dials who is due, as far as the limits go; joins those who are connected for another root.
    pub(super) fn dial(&mut self, root: Cid) {
        let now = self.now();
        let Some(r) = self.roots.get(&root) else { return };
        if r.fetch.is_none() {
            return;
        }
        let (due, mut members) = (r.due(now), r.members.len());
        for peer in due {
            if let Some(id) = self.by_peer.get(&peer).copied() {
                self.join(id, root, true);
                continue;
            }
            if self.dials >= MAX_DIALS || members >= self.config.limits.peers_per_root {
                return;
            }
            let Some(known) = self.roots.get_mut(&root).and_then(|r| r.book.get_mut(&peer)) else { continue };
            known.dialing = true;
            self.dials += 1;
            members += 1;
            let (endpoint, inbox, addrs) = (self.endpoint.clone(), self.inbox.clone(), known.addrs.clone());
            self.tasks.spawn(async move {
                let mut why = String::from("no address");
                for addr in addrs {
                    match endpoint.connect(addr, peer).await {
                        Ok(connection) => {
                            let _gone = inbox.send(Input::Connected(connection)).await;
                            return;
                        }
                        Err(error) => why = error.to_string(),
                    }
                }
                let _gone = inbox.send(Input::DialFailed(root, peer, why)).await;
            });
        }
    }

    // ---- connections ----

    pub(super) fn connected(&mut self, connection: Connection) {
        let (peer, dialer) = (connection.peer(), connection.is_dialer());
        if dialer {
            self.dials = self.dials.saturating_sub(1);
        }
        if self.bans.holds(&peer, self.origin.elapsed()) {
            return connection.close(CLOSE_NORMAL, BANNED.as_bytes());
        }
        self.roots.values_mut().for_each(|r| r.reached(&peer));
        if let Some(old) = self.by_peer.get(&peer).copied() {
            // both sides keep the one that the peer with the smaller id dialled; of two by one dialler, the newer
            let dialled_by = |c: &Connection| if c.is_dialer() { self.me } else { peer };
            let stays = self.links.get(&old).is_some_and(|l| {
                dialled_by(&l.connection) < dialled_by(&connection) && l.connection.quinn().close_reason().is_none()
            });
            if stays {
                return connection.close(CLOSE_NORMAL, b"duplicate");
            }
            self.closed(old, "duplicate");
        }
        let id = LinkId(self.number());
        let shared = Arc::new(LinkShared::new(&connection));
        let out = link::start(
            &mut self.tasks,
            id,
            connection.clone(),
            shared.clone(),
            self.server.clone(),
            self.inbox.clone(),
        );
        let mut link = Link {
            connection,
            shared,
            out,
            outbox: vec![],
            said: self.said.clone(),
            ours: BTreeMap::new(),
            theirs: BTreeMap::new(),
            agent: String::new(),
            addrs: vec![],
            announced: BTreeMap::new(),
            tolls: BTreeMap::new(),
            refuses: false,
        };
        let addrs = self.endpoint.listen_multiaddrs();
        let addrs = addrs.iter().filter_map(from_multiaddr).map(|a| a.0).collect();
        link.say(&link::hello(&self.config.agent, addrs, self.config.compression != Compression::Off));
        self.links.insert(id, link);
        self.by_peer.insert(peer, id);
        let fetched: Vec<Cid> = self.roots.iter().filter(|(_, r)| r.fetch.is_some()).map(|(c, _)| *c).collect();
        for root in fetched {
            self.join(id, root, true);
            // Somebody said that this peer has it. Asking at once saves the round trip until it says so itself.
            if dialer && self.roots.get(&root).is_some_and(|r| r.book.contains_key(&peer)) {
                self.offer(root, peer, id);
            }
        }
    }

    /// Takes part in a root's swarm on a connection: says so, and what is here.
    pub(super) fn join(&mut self, id: LinkId, root: Cid, answer: bool) {
        if !answer || self.links.get(&id).is_some_and(|link| !link.ours.contains_key(&root)) {
            self.say_join(id, root, answer);
        }
    }

    /// The same on a connection where that was said already: with `answer`, the other side says again what it has.
    pub(super) fn say_join(&mut self, id: LinkId, root: Cid, answer: bool) {
        let (Some(link), Some(r)) = (self.links.get_mut(&id), self.roots.get(&root)) else { return };
        if link.ours.len() >= self.config.limits.roots_per_connection {
            return;
        }
        let next = link.ours.values().max().map_or(0, |c| c + 1);
        let channel = *link.ours.entry(root).or_insert(next);
        let leaves = r.manifest.as_ref().map_or(0, |m| m.leaves().len() as u32);
        link.say(&Message::Join { channel, root, leaves, answer });
        for leaves in LeafSet::pack(r.have.ones().map(|l| l as u32)) {
            link.say(&Message::Have { channel, leaves });
        }
    }

    /// A connection is gone, whoever ended it.
    pub(super) fn closed(&mut self, id: LinkId, why: &str) {
        let Some(link) = self.links.remove(&id) else { return };
        let peer = link.connection.peer();
        tracing::debug!(%peer, why, "connection closed");
        link.connection.close(CLOSE_NORMAL, why.as_bytes());
        self.bytes_in += link.shared.bytes_in.load(Ordering::Relaxed);
        self.bytes_out += link.shared.bytes_out.load(Ordering::Relaxed);
        if self.by_peer.get(&peer) == Some(&id) {
            self.by_peer.remove(&peer);
        }
        let now = self.now();
        let verdicts = self.choker.handle_gone(now, id);
        self.choke(verdicts);
        if why.starts_with(PROTOCOL_FAULT) {
            self.bans.add(peer, now + self.config.limits.ban);
        }
        let member_of: Vec<Cid> = self
            .roots
            .iter()
            .filter(|(_, r)| r.members.get(&peer).is_some_and(|m| m.link == id))
            .map(|(c, _)| *c)
            .collect();
        for root in member_of {
            self.member_gone(root, peer, Some(why));
        }
        for r in self.roots.values_mut() {
            // a peer that was dialled for a fetch and broke the protocol before it took part is named as well
            if (why.starts_with(PROTOCOL_FAULT) || why == SILENT)
                && let Some(f) = &mut r.fetch
                && r.book.remove(&peer).is_some()
            {
                f.blame(peer, why.to_owned());
            }
            r.failed(peer, now);
            if why.ends_with(BANNED) {
                // it will not listen soon
                r.book.remove(&peer);
            }
        }
    }

    /// Ends a connection for a reason that the peer should hear.
    pub(super) fn let_go(&mut self, peer: &PeerId, why: &str) {
        let Some(id) = self.by_peer.get(peer).copied() else { return };
        if let Some(link) = self.links.get_mut(&id) {
            link.say(&Message::Goodbye { reason: why.to_owned() });
        }
        self.flush(id);
        self.closed(id, why);
    }

    /// A peer that told lies is refused for a while, and dialled for no root.
    pub(super) fn ban(&mut self, peer: PeerId) {
        self.bans.add(peer, self.origin.elapsed() + self.config.limits.ban);
        self.roots.values_mut().for_each(|r| drop(r.book.remove(&peer)));
    }

    pub(super) fn member_gone(&mut self, root: Cid, peer: PeerId, why: Option<&str>) {
        let now = self.now();
        let Some(r) = self.roots.get_mut(&root) else { return };
        let Some(member) = r.dismiss(&peer) else { return };
        let Some(f) = &mut r.fetch else { return };
        if let Stage::Finishing(running) = &f.stage {
            // what it brought counts in the report, which is made when all is on disk
            let account = running.swarm.account(member.ix);
            f.credit(peer, account);
        }
        if let Some(running) = f.running() {
            let account = running.swarm.account(member.ix);
            running.swarm.handle_gone(now, member.ix);
            let ended: Vec<BatchId> =
                running.batches.iter().filter(|(_, (ix, _))| *ix == member.ix).map(|(b, _)| *b).collect();
            for batch in ended {
                if let Some((_, task)) = running.batches.remove(&batch) {
                    task.abort();
                }
            }
            f.credit(peer, account);
        }
        // the two ends of a double dial and polite leave-takings are nobody's fault
        if let Some(why) = why
            && why != "duplicate"
            && !matches!(f.stage, Stage::Finishing(_))
        {
            f.blame(peer, why.to_owned());
        }
        self.touched.insert(root);
    }

    pub(super) fn message(&mut self, id: LinkId, message: Message) {
        let now = self.now();
        let Some(link) = self.links.get_mut(&id) else { return };
        let peer = link.connection.peer();
        let root_of = |link: &Link, channel: &u32| link.theirs.get(channel).copied();
        match message {
            Message::Hello(hello) => {
                link.agent = hello.agent;
                link.addrs = hello.addrs;
            }
            Message::Join { channel, root, leaves, answer } => {
                if !link.theirs.contains_key(&channel) && link.theirs.len() >= self.config.limits.roots_per_connection {
                    return self.let_go(&peer, "protocol fault: too many roots on one connection");
                }
                link.theirs.insert(channel, root);
                let leaves_known = self.roots.get(&root).map_or(0, |r| r.have.len() as u64);
                self.charged(id, root, TOLL_NEWCOMER + leaves_known, |hub| hub.joined(id, peer, root, leaves, answer));
            }
            Message::Leave { channel } => {
                let Some(root) = link.theirs.remove(&channel) else { return };
                self.charged(id, root, 0, |hub| hub.member_gone(root, peer, None));
            }
            Message::Have { channel, leaves } => {
                let Some(root) = root_of(link, &channel) else { return };
                if is_past_the_end(self.roots.get(&root), &leaves) {
                    return self.let_go(&peer, "protocol fault: has leaves that do not exist");
                }
                let ranges = leaves.ranges();
                if let Some(manifest) = self.roots.get(&root).and_then(|r| r.manifest.as_deref()) {
                    let announced = link.announced.entry(root).or_default();
                    *announced = manifest.total_bytes().min(announced.saturating_add(bytes_of(manifest, &ranges)));
                }
                // Without the tree nothing is done with each leaf yet, nor is it known how many there may be.
                let count = match self.roots.get(&root).and_then(|r| r.manifest.as_ref()) {
                    Some(_) => ranges.iter().map(|r| r.len() as u64).sum(),
                    None => ranges.len() as u64,
                };
                self.charged(id, root, count, |hub| hub.they_have(root, peer, ranges));
            }
            Message::DontHave { channel, leaves } => {
                let Some(root) = root_of(link, &channel) else { return };
                if is_past_the_end(self.roots.get(&root), &leaves) {
                    return self.let_go(&peer, "protocol fault: lacks leaves that do not exist");
                }
                self.charged(id, root, 1, |hub| {
                    if let Some((swarm, ix)) = hub.swarm_of(&root, &peer) {
                        swarm.handle_dont_have(now, ix, &leaves.ranges());
                        hub.touched.insert(root);
                    }
                });
            }
            Message::Load { channel, wait_ms } => {
                let Some(root) = root_of(link, &channel) else { return };
                if let Some((swarm, ix)) = self.swarm_of(&root, &peer) {
                    swarm.handle_load(now, ix, Duration::from_millis(wait_ms.into()));
                }
            }
            Message::Reach { channel, yes } => {
                let Some(root) = root_of(link, &channel) else { return };
                self.charged(id, root, 1, |hub| {
                    if let Some(member) = hub.roots.get_mut(&root).and_then(|r| r.members.get_mut(&peer)) {
                        member.reaches = yes;
                    }
                    if let Some((swarm, ix)) = hub.swarm_of(&root, &peer) {
                        swarm.handle_reach(now, ix, yes);
                        hub.touched.insert(root);
                    }
                });
            }
            Message::Interested { channel, yes } => {
                // slots are dealt per connection: a peer that wants anything of any root takes one
                if root_of(link, &channel).is_some() {
                    let verdicts = self.choker.handle_interested(now, id, yes);
                    self.choke(verdicts);
                }
            }
            Message::Choke { channel, yes } => {
                let Some(root) = root_of(link, &channel) else { return };
                link.refuses = yes;
                if let Some((swarm, ix)) = self.swarm_of(&root, &peer) {
                    swarm.handle_choke(now, ix, yes);
                    self.touched.insert(root);
                }
            }
            Message::Peers { channel, peers } => {
                let Some(root) = root_of(link, &channel) else { return };
                let (polite, eager): (Vec<_>, Vec<_>) = peers
                    .into_iter()
                    .map(|h| PeerAddr { peer: h.peer, addrs: h.addrs })
                    .partition(|h| h.peer < self.me);
                self.add_peers(root, eager, Duration::ZERO);
                self.add_peers(root, polite, POLITE_PAUSE);
            }
            // the link's task ends the connection
            Message::Goodbye { .. } => {}
        }
    }

    /// Does what a peer's message asks for, and has the peer pay for the leaves that were looked at for it; for `least` in any
    /// case. One that makes more work than it can have reason to is let go.
    fn charged(&mut self, id: LinkId, root: Cid, least: u64, change: impl FnOnce(&mut Hub)) {
        let work = |hub: &mut Hub| {
            let running = hub.roots.get_mut(&root)?.fetch.as_mut()?.running()?;
            Some(running.swarm.work())
        };
        let before = work(self);
        change(self);
        let work = work(self).zip(before).map_or(0, |(after, before)| after.saturating_sub(before)).max(least);
        let now = self.now();
        let (Some(link), Some(r)) = (self.links.get_mut(&id), self.roots.get(&root)) else { return };
        let most = TOLL_LEAST + TOLL_ROUNDS * r.manifest.as_ref().map_or(0, |m| m.leaves().len() as u64);
        let toll = link.tolls.entry(root).or_default();
        let over = now.saturating_sub(toll.at).as_secs_f64() / TOLL_SPAN.as_secs_f64();
        toll.work = toll.work.saturating_sub((most as f64 * over) as u64) + work;
        toll.at = now;
        if toll.work > most {
            let peer = link.connection.peer();
            self.let_go(&peer, "comes, goes, announces and withdraws more than there is");
        }
    }

    /// A peer takes part in a root.
    pub(super) fn joined(&mut self, id: LinkId, peer: PeerId, root: Cid, leaves: u32, answer: bool) {
        let ix = PeerIx(self.number() as u32);
        let now = self.now();
        let Some(r) = self.roots.get_mut(&root) else { return };
        if let Some(manifest) = &r.manifest
            && leaves != 0
            && leaves as usize != manifest.leaves().len()
        {
            return self.let_go(&peer, "protocol fault: counts other leaves than there are");
        }
        if r.members.len() >= self.config.limits.peers_per_root && !r.members.contains(&peer) {
            return;
        }
        let newcomer = !r.members.contains(&peer);
        if newcomer {
            r.admit(peer, Member { ix, link: id, early: vec![], reaches: true });
            self.store.touch(&root);
            if let Some(f) = &mut r.fetch {
                f.last_news = now;
            }
        }
        let rtt = self.links.get(&id).map(|l| l.connection.quinn().rtt()).unwrap_or_default();
        if newcomer && let Some((swarm, ix)) = self.swarm_of(&root, &peer) {
            swarm.handle_peer(now, ix, tag(&peer), rtt);
            self.touched.insert(root);
        }
        if answer {
            self.join(id, root, false);
        } else {
            self.join(id, root, true);
        }
        if leaves > 0 {
            self.offer(root, peer, id);
        }
        if newcomer {
            self.introduce(root, peer, id);
        }
    }

    /// Offers a peer that knows the tree to the resolution that waits for one.
    pub(super) fn offer(&mut self, root: Cid, peer: PeerId, id: LinkId) {
        let (Some(r), Some(link)) = (self.roots.get_mut(&root), self.links.get(&id)) else { return };
        if let Some(f) = &mut r.fetch
            && let Stage::Resolving(offers) = &f.stage
        {
            // full: enough others wait for their turn
            let _full = offers.try_send((peer, link.connection.clone()));
        }
    }

    /// Tells a newcomer of the others, and the others of it.
    pub(super) fn introduce(&mut self, root: Cid, newcomer: PeerId, id: LinkId) {
        let Some(r) = self.roots.get(&root) else { return };
        let others: Vec<(PeerId, LinkId)> =
            r.members.iter().map(|(p, m)| (*p, m.link)).filter(|(p, _)| *p != newcomer).collect();
        let hint = |links: &BTreeMap<LinkId, Link>, peer: PeerId, id: &LinkId| -> Option<PeerHint> {
            let link = links.get(id)?;
            // where it was seen comes first: one port serves both directions
            let mut addrs = vec![link.connection.remote_addr()];
            addrs.extend(link.addrs.iter().copied().filter(|a| *a != link.connection.remote_addr()));
            addrs.truncate(crate::wire::MAX_ADDRS);
            Some(PeerHint { peer, addrs })
        };
        let known: Vec<PeerHint> =
            others.iter().filter_map(|(p, l)| hint(&self.links, *p, l)).take(MAX_PEER_HINTS).collect();
        let Some(news) = hint(&self.links, newcomer, &id) else { return };
        if known.is_empty() {
            return;
        }
        if let Some(link) = self.links.get_mut(&id) {
            link.say_of(&root, |channel| Message::Peers { channel, peers: known });
        }
        for (_, other) in others {
            if let Some(link) = self.links.get_mut(&other) {
                link.say_of(&root, |channel| Message::Peers { channel, peers: vec![news.clone()] });
            }
        }
    }

    pub(super) fn they_have(&mut self, root: Cid, peer: PeerId, ranges: Vec<Range<u32>>) {
        let now = self.now();
        let Some(r) = self.roots.get_mut(&root) else { return };
        let Some(member) = r.members.get_mut(&peer) else { return };
        let Some(f) = &mut r.fetch else { return };
        match &mut f.stage {
            Stage::Resolving(_) | Stage::Preparing => member.note_early(ranges),
            Stage::Running(running) => {
                f.last_news = now;
                if !running.swarm.handle_have(now, member.ix, &ranges) {
                    return self.let_go(&peer, "protocol fault: has leaves that do not exist");
                }
                self.touched.insert(root);
            }
            Stage::Finishing(_) => {}
        }
    }

    pub(super) fn swarm_of(&mut self, root: &Cid, peer: &PeerId) -> Option<(&mut Swarm, PeerIx)> {
        let r = self.roots.get_mut(root)?;
        let ix = r.members.get(peer)?.ix;
        Some((&mut r.fetch.as_mut()?.running()?.swarm, ix))
    }

    pub(super) fn choke(&mut self, verdicts: Vec<Verdict<LinkId>>) {
        for Verdict { peer, choke } in verdicts {
            let Some(link) = self.links.get_mut(&peer) else { continue };
            link.shared.choked.store(choke, Ordering::Relaxed);
            let channels: Vec<u32> = link.ours.values().copied().collect();
            for channel in channels {
                link.say(&Message::Choke { channel, yes: choke });
            }
        }
    }
}

/// Whether a set names leaves that a root whose tree is known does not have.
fn is_past_the_end(root: Option<&Root>, leaves: &LeafSet) -> bool {
    let known = root.and_then(|r| r.manifest.as_ref()).map(|m| m.leaves().len());
    known.is_some_and(|known| leaves.ranges().last().is_some_and(|r| r.end as usize > known))
}

/// Bytes of the leaves in these ranges, as far as there are such leaves.
fn bytes_of(manifest: &Manifest, ranges: &[Range<u32>]) -> u64 {
    let leaves = manifest.leaves();
    let there = |r: &Range<u32>| leaves.get(r.start as usize..leaves.len().min(r.end as usize)).unwrap_or_default();
    ranges.iter().flat_map(there).map(|leaf| u64::from(leaf.len)).sum()
}
