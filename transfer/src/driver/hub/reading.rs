//! The hub's half that deals with readers: they join a fetch that runs, or begin one of their own, which asks for nothing
//! but what they are about to need and ends with the last of them.

use super::*;
use crate::{
    api::{FetchInto, ReadRequest},
    driver::read::{self, Admitted, Plan, Port, ReaderState, ReaderTask},
    swarm::ReaderIx,
};

impl Hub {
    pub(super) fn read(&mut self, request: ReadRequest, port: Port) {
        let (ix, store, inbox) = (ReaderIx(self.number() as u32), self.store.clone(), self.inbox.clone());
        self.tasks.spawn(ReaderTask { request, ix, store, port, inbox }.run());
    }

    pub(super) fn read_join(&mut self, ix: ReaderIx, state: ReaderState) {
        let ReadRequest { root, peers, name, give_up_after, .. } = state.request.clone();
        let (most, fetch) = (self.config.limits.readers_per_root, self.roots.get(&root).and_then(|r| r.fetch.as_ref()));
        match fetch {
            Some(f) if f.readers.len() >= most => return state.fail(&Arc::new(FetchError::Busy(root))),
            Some(_) => self.add_peers(root, peers, Duration::ZERO),
            None => {
                let request = FetchRequest {
                    root,
                    paths: vec![],
                    dir: std::path::PathBuf::new(),
                    name,
                    peers,
                    symlinks: false,
                    into: FetchInto::Cache,
                    expires_unix: None,
                    give_up_after,
                };
                // what happens is told to the readers
                let (nobody, _) = mpsc::channel(1);
                self.begin(request, nobody, true);
            }
        }
        let Some(f) = self.roots.get_mut(&root).and_then(|r| r.fetch.as_deref_mut()) else { return };
        f.readers.insert(ix, state);
        let id = f.id;
        self.admit(root, id, ix);
    }

    /// Has a reader's file looked up, if the destination is ready.
    pub(super) fn admit(&mut self, root: Cid, id: u64, ix: ReaderIx) {
        let inbox = self.inbox.clone();
        let Some(f) = self.fetch_mut(&root, id) else { return };
        let (Stage::Running(running) | Stage::Finishing(running)) = &f.stage else { return };
        let Some(reader) = f.readers.get(&ix) else { return };
        let (request, sink, on_demand) = (reader.request.clone(), running.sink.clone(), f.on_demand);
        self.tasks.spawn(async move {
            let admitted = tokio::task::spawn_blocking(move || {
                read::admit(&sink.checkout, sink.manifest.clone(), &request, on_demand)
            });
            let result = admitted.await.unwrap_or(Err(FetchError::ShuttingDown));
            let _gone = inbox.send(Input::Admitted(root, id, ix, result)).await;
        });
    }

    pub(super) fn admitted(&mut self, root: Cid, id: u64, ix: ReaderIx, result: Result<Admitted, FetchError>) {
        let now = self.now();
        let most = (self.config.limits.read_ahead_bytes, self.config.limits.read_ahead_memory);
        let Some(r) = self.roots.get_mut(&root) else { return };
        let Some(f) = r.fetch.as_deref_mut().filter(|f| f.id == id) else { return };
        let Some(reader) = f.readers.get_mut(&ix) else { return };
        let (Stage::Running(running) | Stage::Finishing(running)) = &mut f.stage else { return };
        let admitted = match result {
            Ok(Admitted { layout, .. }) if !running.swarm.covers(&layout.order[layout.places()]) => {
                Err(FetchError::Busy(root))
            }
            other => other,
        };
        let Admitted { layout, here, kept } = match admitted {
            Ok(admitted) => admitted,
            Err(error) => {
                reader.fail(&Arc::new(error));
                f.readers.remove(&ix);
                return;
            }
        };
        running.sink.keep(&here);
        here.iter().for_each(|leaf| running.swarm.handle_local(now, *leaf));
        let places = layout.places();
        if kept {
            running.sink.keep(&layout.order[places.clone()]);
        }
        let most = if kept { most.0 } else { most.1 };
        running.swarm.handle_reader(now, ix, layout.order.clone(), places.start, places.end, most);
        let missing = layout.order[places].iter().copied().filter(|leaf| !running.swarm.has(*leaf));
        let missing = missing.map(|leaf| u64::from(running.sink.manifest.leaves()[leaf as usize].len)).sum();
        let (sink, bytes_of_nodes, on_demand) = (Some(running.sink.clone()), f.bytes_of_nodes, f.on_demand);
        let plan = Plan { layout, sink, bytes_of_nodes, kept, missing, on_demand };
        if let Some(waiting) = reader.plan.take() {
            // it may have gone meanwhile, which it says itself
            let _gone = waiting.send(plan);
        }
        // a fetch that has landed moves no more
        f.tell_readers();
        r.gained(here);
        self.touched.insert(root);
    }

    /// The readers' fetch, and what is known of its root.
    fn reading(&mut self, root: &Cid, ix: ReaderIx) -> Option<&mut FetchState> {
        let f = self.roots.get_mut(root)?.fetch.as_deref_mut()?;
        f.readers.contains_key(&ix).then_some(f)
    }

    pub(super) fn read_took(&mut self, root: Cid, ix: ReaderIx, to: usize) {
        let now = self.now();
        let Some(f) = self.reading(&root, ix) else { return };
        if let Some(running) = f.running() {
            let left = running.swarm.handle_read(now, ix, to);
            f.let_pass(&left);
            self.touched.insert(root);
        }
    }

    pub(super) fn read_seek(&mut self, root: Cid, ix: ReaderIx, to: usize) {
        let now = self.now();
        let Some(f) = self.reading(&root, ix) else { return };
        if let Some(running) = f.running() {
            let left = running.swarm.handle_seek(now, ix, to);
            f.let_pass(&left);
            self.touched.insert(root);
        }
    }

    /// A leaf that was in place cannot be read: it is fetched again, and passed on from memory.
    pub(super) fn read_lost(&mut self, root: Cid, ix: ReaderIx, leaf: u32) {
        let Some(r) = self.roots.get_mut(&root) else { return };
        let Some(f) = r.fetch.as_deref_mut().filter(|f| f.readers.contains_key(&ix)) else { return };
        if let Some(running) = f.running() {
            running.sink.lose(leaf);
            running.swarm.handle_lost(leaf);
            r.lost([leaf]);
            self.touched.insert(root);
        }
    }

    pub(super) fn read_ended(&mut self, root: Cid, ix: ReaderIx) {
        let now = self.now();
        let Some(f) = self.reading(&root, ix) else { return };
        f.readers.remove(&ix);
        if let Some(running) = f.running() {
            let left = running.swarm.handle_reader_gone(ix);
            f.let_pass(&left);
        }
        // what it waited for, others may be asked for
        f.last_reader = now;
        self.touched.insert(root);
    }
}

impl FetchState {
    /// Tells readers how far they may read, if that is news.
    pub(in crate::driver) fn tell_readers(&mut self) {
        let (swarm, all) = match &mut self.stage {
            Stage::Running(running) => (&mut running.swarm, false),
            Stage::Finishing(running) => (&mut running.swarm, true),
            _ => return,
        };
        for (ix, reader) in &self.readers {
            let up_to = if all { usize::MAX } else { swarm.readable(*ix) };
            reader.ready.send_if_modified(|ready| std::mem::replace(&mut ready.up_to, up_to) != up_to);
        }
    }

    /// No reader is about to need these leaves: what is in memory only is let go.
    pub(in crate::driver) fn let_pass(&mut self, left: &[u32]) {
        let on_demand = self.on_demand;
        let Some(running) = self.running() else { return };
        for leaf in left.iter().copied().filter(|leaf| running.sink.forget(*leaf)) {
            if on_demand {
                running.swarm.handle_lost(leaf);
            }
        }
    }
}
