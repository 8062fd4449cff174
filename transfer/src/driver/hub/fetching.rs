//! The hub's half that moves fetches on: from stage to stage, with every answer, to the end. No connection is opened here.

use super::*;
use crate::{driver::link::PROTOCOL_FAULT, swarm::ReaderIx, wire::feature};

impl Hub {
    pub(super) fn fetch_mut(&mut self, root: &Cid, fetch: u64) -> Option<&mut FetchState> {
        self.roots.get_mut(root)?.fetch.as_deref_mut().filter(|f| f.id == fetch)
    }

    pub(super) fn fetch(&mut self, request: FetchRequest, events: mpsc::Sender<FetchEvent>) {
        let root = request.root;
        if self.roots.get(&root).and_then(|r| r.fetch.as_ref()).is_some_and(|f| f.on_demand) {
            // its readers join this one
            self.fail(root, FetchError::Cancelled);
        }
        self.begin(request, events, false);
    }

    pub(super) fn begin(&mut self, request: FetchRequest, events: mpsc::Sender<FetchEvent>, on_demand: bool) {
        let (root, now, id) = (request.root, self.now(), self.number());
        let hold = Arc::new(self.store.hold());
        let r = self.roots.entry(root).or_default();
        if r.fetch.is_some() {
            let (offers, _) = mpsc::channel(1);
            let refused = FetchState::new(id, now, request, events, offers, hold);
            self.tasks.spawn(refused.end(FetchEvent::Failed(FetchError::Busy(root))));
            return;
        }
        let peers = request.peers.clone();
        let (offers, waiting) = mpsc::channel(resolve::MAX_OFFERS);
        let mut state = FetchState::new(id, now, request, events, offers, hold.clone());
        state.on_demand = on_demand;
        r.fetch = Some(Box::new(state));
        let (store, inbox) = (self.store.clone(), self.inbox.clone());
        let compression = self.config.compression;
        self.tasks
            .spawn(Resolver { root, fetch: id, store, hold, offers: waiting, compression, bytes_in: 0, inbox }.run());
        let connected: Vec<LinkId> = self.links.keys().copied().collect();
        for link in connected {
            // what they said they have, an earlier fetch of the root was told
            self.say_join(link, root, true);
        }
        self.add_peers(root, peers, Duration::ZERO);
    }

    pub(super) fn resolved(&mut self, root: Cid, id: u64, result: Result<resolve::Resolved, FetchError>) {
        let resolve::Resolved { manifest, bytes_in } = match result {
            Ok(resolved) => resolved,
            Err(error) => return self.fail_if(root, id, error),
        };
        let (store, inbox) = (self.store.clone(), self.inbox.clone());
        let Some(f) = self.fetch_mut(&root, id) else { return };
        f.stage = Stage::Preparing;
        f.bytes_of_nodes = bytes_in;
        f.tell(FetchEvent::Manifest {
            bytes_total: manifest.total_bytes(),
            files: manifest.file_count() as u64,
            leaves: manifest.leaves().len() as u32,
        });
        let (request, on_demand, cancel) = (f.request.clone(), f.on_demand, f.cancel.clone());
        if let Some(r) = self.roots.get_mut(&root) {
            r.manifest = Some(manifest.clone());
        }
        self.tasks.spawn(async move {
            let prepared =
                tokio::task::spawn_blocking(move || fetch::prepare(&store, manifest, &request, on_demand, cancel))
                    .await;
            let result = prepared.unwrap_or(Err(FetchError::ShuttingDown));
            let _gone = inbox.send(Input::Prepared(root, id, result)).await;
        });
    }

    pub(super) fn prepared(&mut self, root: Cid, id: u64, result: Result<Prepared, FetchError>) {
        let prepared = match result {
            Ok(prepared) => prepared,
            Err(error) => return self.fail_if(root, id, error),
        };
        let now = self.now();
        let (me, inbox, config) = (tag(&self.me), self.inbox.clone(), self.config.clone());
        let shared = (self.throttle.clone(), self.recent.clone());
        let Some(r) = self.roots.get_mut(&root) else { return };
        let Some(f) = r.fetch.as_deref_mut().filter(|f| f.id == id) else { return };
        let Some(manifest) = r.manifest.clone() else { return };
        let sizes: Arc<[u32]> = manifest.leaves().iter().map(|l| l.len).collect();
        let (wanted, mut have) = fetch::in_place(&prepared.checkout, sizes.len());
        let on_demand = f.on_demand;
        let mut swarm = match on_demand {
            true => Swarm::on_demand(config.swarm, me, sizes),
            false => Swarm::new(config.swarm, me, sizes, &wanted, &have),
        };
        for leaf in &prepared.here {
            swarm.handle_local(now, *leaf);
            have.insert(*leaf as usize);
        }
        let mut liars = vec![];
        for (peer, member) in r.members.iter_mut() {
            let rtt = self.links.get(&member.link).map(|l| l.connection.quinn().rtt()).unwrap_or_default();
            swarm.handle_peer(now, member.ix, tag(peer), rtt);
            swarm.handle_reach(now, member.ix, member.reaches);
            if !swarm.handle_have(now, member.ix, &std::mem::take(&mut member.early)) {
                liars.push(*peer);
            }
        }
        f.tell(FetchEvent::Started {
            bytes_total: swarm.progress().bytes_wanted,
            bytes_resumed: prepared.bytes_resumed,
            bytes_local: prepared.bytes_local,
        });
        f.last_news = now;
        let Prepared { checkout, bytes_resumed, bytes_local, here } = prepared;
        let destination = (checkout, on_demand);
        let mostly_here = bytes_local >= swarm.progress().bytes_wanted / 2;
        let packing = config.compression.packing(mostly_here);
        let sink = Sink::new((root, id), manifest, destination, config.limits.verify_bytes, packing, shared, inbox);
        sink.keep(&here);
        let running = Running::new(swarm, sink, bytes_resumed, bytes_local);
        f.stage = Stage::Running(Box::new(running));
        let readers: Vec<ReaderIx> = f.readers.keys().copied().collect();
        if !r.seeding || r.have.len() != have.len() {
            r.have = have;
        }
        self.publish();
        let joined: Vec<LinkId> =
            self.links.iter().filter(|(_, l)| l.ours.contains_key(&root)).map(|(id, _)| *id).collect();
        for id in joined {
            self.join(id, root, false);
        }
        for ix in readers {
            self.admit(root, id, ix);
        }
        for liar in liars {
            self.let_go(&liar, "protocol fault: has leaves that do not exist");
        }
        self.touched.insert(root);
    }

    pub(super) fn batch(&mut self, root: Cid, id: u64, peer: PeerIx, batch: BatchId, event: BatchEvent) {
        let now = self.now();
        let Some(r) = self.roots.get_mut(&root) else { return };
        let Some(f) = r.fetch.as_deref_mut().filter(|f| f.id == id) else { return };
        // gone meanwhile: what it brought counts all the same
        let who = r.members.by_ix(peer).map(|(p, _)| p);
        let Stage::Running(running) = &mut f.stage else { return };
        self.touched.insert(root);
        let mut served = None;
        let (mut passed, mut kept) = (vec![], vec![]);
        match event {
            BatchEvent::Bytes(n) => {
                running.swarm.handle_bytes(now, peer, n);
                f.last_news = now;
            }
            BatchEvent::Leaves(outcomes) => {
                for (leaf, outcome) in outcomes {
                    match outcome {
                        Outcome::Written => {
                            // a late copy of what was taken back counts all the same: it is in place
                            let _wanted = running.swarm.handle_arrived(now, peer, batch, leaf);
                            running.swarm.handle_verified(now, peer, leaf);
                            served = Some(true);
                            running.dirty = true;
                            f.first_leaf.get_or_insert(now);
                            if running.sink.passes(leaf) {
                                passed.extend((!running.swarm.is_awaited(leaf)).then_some(leaf));
                            } else {
                                kept.push(leaf);
                            }
                        }
                        Outcome::Duplicate => running.swarm.handle_duplicate(now, peer, batch, leaf),
                        Outcome::Refused => running.swarm.handle_refused(now, peer, batch, leaf),
                        Outcome::Corrupt => {
                            let _wanted = running.swarm.handle_arrived(now, peer, batch, leaf);
                            running.swarm.handle_corrupt(now, peer, leaf);
                        }
                    }
                }
            }
            BatchEvent::WriteFailed(error) => self.fail(root, error.into()),
            BatchEvent::Ended(end) => {
                running.batches.remove(&batch);
                match end {
                    // its leaves are on their way through the blocking threads
                    End::Complete => {}
                    End::TurnedDown => {
                        served = Some(false);
                        running.swarm.handle_ended(now, peer, batch, true);
                    }
                    End::Lost => running.swarm.handle_ended(now, peer, batch, false),
                    End::Fault(why) => {
                        running.swarm.handle_ended(now, peer, batch, false);
                        let Some(who) = who else { return };
                        f.blame(who, format!("{PROTOCOL_FAULT}: {why}"));
                        self.ban(who);
                        self.let_go(&who, &why);
                    }
                }
            }
        }
        if let Some(r) = self.roots.get_mut(&root)
            && let Some(f) = r.fetch.as_deref_mut().filter(|f| f.id == id)
        {
            f.let_pass(&passed);
            // what is kept of what is read is served like anything else
            r.seeding |= f.on_demand && !kept.is_empty();
            r.gained(kept);
        }
        if let Some(served) = served
            && let Some(link) = who.and_then(|who| self.by_peer.get(&who)).and_then(|link| self.links.get_mut(link))
        {
            link.refuses = !served;
        }
    }

    pub(super) fn finished(&mut self, root: Cid, id: u64, result: Result<fetch::Landed, FetchError>) {
        let landed = match result {
            Ok(landed) => Some(landed),
            Err(error) if self.fetch_mut(&root, id).is_some_and(|f| f.on_demand) => {
                // all of it is here to be read, though not to stay
                tracing::debug!(%error, "what was read is not kept as a whole");
                None
            }
            Err(error) => return self.fail_if(root, id, error),
        };
        let now = self.now();
        let Some(r) = self.roots.get_mut(&root) else { return };
        let Some(mut f) = r.fetch.take_if(|f| f.id == id) else { return };
        r.seeding = true;
        let members: Vec<(PeerId, PeerIx)> = r.members.iter().map(|(p, m)| (*p, m.ix)).collect();
        let stage = std::mem::replace(&mut f.stage, Stage::Preparing);
        if let Stage::Finishing(running) = stage
            && let Some(landed) = landed
        {
            for (peer, ix) in members {
                f.credit(peer, running.swarm.account(ix));
            }
            let report = f.report(now, &running, landed);
            self.tasks.spawn(f.end(FetchEvent::Done(Box::new(report))));
        }
        self.look_for_what_is_missing();
    }

    pub(super) fn fail_if(&mut self, root: Cid, id: u64, error: FetchError) {
        if self.fetch_mut(&root, id).is_some() {
            self.fail(root, error);
        }
    }

    /// Ends a fetch without its content. What is in place is committed and stays.
    pub(super) fn fail(&mut self, root: Cid, error: FetchError) {
        let Some(r) = self.roots.get_mut(&root) else { return };
        let Some(mut f) = r.fetch.take() else { return };
        let seeding = r.seeding;
        let stage = std::mem::replace(&mut f.stage, Stage::Preparing);
        let (error, of_readers) = match f.on_demand {
            true => (FetchError::Cancelled, Arc::new(error)),
            // they go on with the next fetch, if there is time for one
            false if matches!(error, FetchError::ShuttingDown) => (error, Arc::new(FetchError::ShuttingDown)),
            false => (error, Arc::new(FetchError::Cancelled)),
        };
        f.readers.values().for_each(|reader| reader.fail(&of_readers));
        let ended = f.end(FetchEvent::Failed(error));
        let checkout = match stage {
            Stage::Running(mut running) | Stage::Finishing(mut running) => {
                running.abort_all();
                Some(running.sink.checkout.clone())
            }
            _ => None,
        };
        self.tasks.spawn(async move {
            if let Some(checkout) = checkout {
                // the error that is told is the one that ended the fetch; what could not be committed is found again
                // by its hash
                let _failed = tokio::task::spawn_blocking(move || checkout.commit()).await;
            }
            ended.await;
        });
        if seeding {
            self.agenda.note_root(root);
        } else {
            self.forget(root);
        }
    }

    pub(super) fn act(&mut self, root: Cid) {
        loop {
            let now = self.now();
            let Some(r) = self.roots.get_mut(&root) else { return };
            let Some(f) = &mut r.fetch else { return };
            let Some(running) = f.running() else { return };
            let Some(action) = running.swarm.poll_action(now) else { break };
            tracing::trace!(?action, progress = ?running.swarm.progress(), "the scheduler decided");
            let who = |ix: PeerIx| r.members.by_ix(ix);
            match action {
                Action::Request { peer, batch, leaves } => {
                    let link = who(peer).and_then(|(_, link)| self.links.get(&link));
                    let Some(link) = link else {
                        running.swarm.handle_gone(now, peer);
                        continue;
                    };
                    self.server.widen(&link.connection, &link.shared);
                    let run = BatchRun {
                        sink: running.sink.clone(),
                        connection: link.connection.clone(),
                        shared: link.shared.clone(),
                        peer,
                        batch,
                        leaves,
                    };
                    running.batches.insert(batch, (peer, self.tasks.spawn(run.run())));
                }
                Action::Cancel { batch, .. } => {
                    if let Some((_, task)) = running.batches.remove(&batch) {
                        task.abort();
                    }
                }
                Action::Interested { peer, yes } => {
                    if let Some(link) = who(peer).and_then(|(_, link)| self.links.get_mut(&link)) {
                        link.say_of(&root, |channel| Message::Interested { channel, yes });
                    }
                }
                Action::Reach { peer, yes } => {
                    let link = who(peer).and_then(|(_, link)| self.links.get_mut(&link));
                    if let Some(link) = link.filter(|link| link.shared.can(feature::REACH)) {
                        link.say_of(&root, |channel| Message::Reach { channel, yes });
                    }
                }
                Action::Drop { peer, reason } => {
                    let Some((peer, _)) = who(peer) else { continue };
                    f.blame(peer, reason.sentence());
                    match reason {
                        DropReason::Corrupt { .. } => self.ban(peer),
                        // it may be slow, or its path: this root does without it, no more
                        DropReason::Stalled => drop(r.book.remove(&peer)),
                    }
                    self.let_go(&peer, &reason.sentence());
                }
            }
        }
        let Some(r) = self.roots.get_mut(&root) else { return };
        let Some(f) = &mut r.fetch else { return };
        if let Some(running) = f.running() {
            running.sink.note_crowd(running.swarm.leechers() > 0);
        }
        let on_demand = f.on_demand;
        let complete = |running: &mut Running| running.swarm.is_complete() && (!on_demand || running.sink.keeps_all());
        if f.running().is_some_and(complete) {
            return self.complete(root);
        }
        f.tell_readers();
    }

    /// Every wanted leaf is in place: the last step may begin.
    pub(super) fn complete(&mut self, root: Cid) {
        let Some(f) = self.roots.get_mut(&root).and_then(|r| r.fetch.as_deref_mut()) else { return };
        let (id, on_demand) = (f.id, f.on_demand);
        f.stage = match std::mem::replace(&mut f.stage, Stage::Preparing) {
            Stage::Running(mut running) => {
                running.abort_all();
                let (checkout, store, inbox) = (running.sink.checkout.clone(), self.store.clone(), self.inbox.clone());
                self.tasks.spawn(async move {
                    let landed = tokio::task::spawn_blocking(move || match on_demand {
                        true => fetch::finish_on_demand(&store, &checkout),
                        false => fetch::finish(&checkout),
                    })
                    .await;
                    let result = landed.unwrap_or(Err(FetchError::ShuttingDown));
                    let _gone = inbox.send(Input::Finished(root, id, result)).await;
                });
                Stage::Finishing(running)
            }
            other => other,
        };
        f.tell_readers();
    }
}
