//! Garbage collection: what no root reaches leaves the index, what the quota wants is evicted before, and packs that are
//! mostly garbage are written anew. Beside shares and fetches: every step is small, and no lock is held over a step.
//!
//! Mark and sweep. Roots are walked, eight bytes are remembered for each block; then the index is gone through in
//! batches. What is put or found meanwhile stays (see `hold`). A pack goes when nothing in the durable index refers to
//! it; a reader that looked a block up before looks again (see `read`).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::BuildHasherDefault,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use shoal_content::{Cid, Node};

use crate::{
    BaseId, ReadError, RootKind, RootRecord, StoreError, failpoint,
    hold::{AsItIs, Short, Shorts, Since, short},
    inner::Inner,
    locks::{lock, read, write},
    overlay::Key,
    pack,
    packs::io_error,
    read::Taken,
    value::{FileId, Loc, Place},
};

/// Rows of the index that are looked at, and changed, at once: a commit of so many takes some milliseconds.
const BATCH_ROWS: usize = 2048;
/// Bytes that are moved to another pack between two commits.
const BATCH_BYTES: u64 = 4 << 20;
/// A pack is written anew when at least so much of it is garbage, in percent: half of a pack is then copied at most.
const GARBAGE_PERCENT: u64 = 50;
/// The same where everything is to be had back.
const GARBAGE_PERCENT_THOROUGH: u64 = 10;
/// Less garbage than this is not worth a new pack, in bytes.
const MIN_GARBAGE_BYTES: u64 = 64 << 10;
/// Records of packs that are written anew in one collection, which bounds its memory. The next one does the rest.
const MAX_MOVED_RECORDS: u64 = 1 << 18;

/// How to collect.
#[derive(Clone, Debug, Default)]
pub struct Collect {
    /// Now, in seconds since the Unix epoch: what has expired goes. The store reads no clock.
    pub now_unix: u64,
    /// Evict cached content until the store takes at most so many bytes. `None`: until it is within its quota.
    pub target_bytes: Option<u64>,
    /// Write packs anew already for a tenth of garbage, rather than for half of it.
    pub thorough: bool,
    /// Rest between steps, so that others have the disk.
    pub pause: Duration,
    /// Ends it after the current step when set. What was done until then stays done.
    pub cancel: Arc<AtomicBool>,
}

/// What a collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Roots whose time was over: they are forgotten.
    pub expired: Vec<RootRecord>,
    /// Roots whose pin's time was over.
    pub unpinned: Vec<RootRecord>,
    /// Cached roots that made room.
    pub evicted: Vec<RootRecord>,
    /// Blocks that left the index.
    pub blocks: u64,
    /// Rows of files and directories that left the index.
    pub files: u64,
    /// Packs that were removed.
    pub packs: u64,
    /// Bytes that were copied from packs that were removed.
    pub bytes_moved: u64,
    /// Bytes of packs before.
    pub bytes_before: u64,
    /// Bytes of packs afterwards.
    pub bytes_after: u64,
    /// Roots of which nodes are missing: as long as they are not repaired or forgotten, nothing that might be theirs is
    /// collected.
    pub damaged: Vec<Cid>,
}

/// Where the space goes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// The most that packs and index may take.
    pub quota: u64,
    /// The index file.
    pub index: u64,
    /// Packs in all.
    pub packs: u64,
    /// In packs: what shared, fetched and pinned roots need.
    pub kept: u64,
    /// In packs: what only cached roots need; it may be evicted.
    pub cached: u64,
    /// In packs: what nothing needs; a collection gives it back.
    pub garbage: u64,
}

/// What the roots reach.
#[derive(Default)]
struct Marks {
    /// By roots that stay.
    firm: Shorts,
    /// By cached roots only: by how many.
    cached: HashMap<Short, u32, BuildHasherDefault<AsItIs>>,
    /// Cached roots that may go.
    candidates: HashMap<Cid, RootRecord>,
    /// Bases that roots hang off.
    bases: HashSet<BaseId>,
    /// Roots with missing nodes that must not lose what is below them.
    damaged: Vec<Cid>,
}

impl Marks {
    fn has(&self, short: Short) -> bool {
        self.firm.contains(&short) || self.cached.contains_key(&short)
    }
}

/// Bytes in packs by who needs them.
#[derive(Default)]
struct Classes {
    kept: u64,
    cached: u64,
    garbage: u64,
}

/// The beginning of a collection is in force while this lives.
struct Begun<'a>(&'a Inner);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        lock(&self.0.held).since = None;
    }
}

impl Inner {
    /// See [`Store::collect`](crate::Store::collect).
    pub(crate) fn collect(&self, options: &Collect) -> Result<Collected, StoreError> {
        let _one_at_a_time = lock(&self.collecting);
        self.writable()?;
        let mut done = Collected { bytes_before: self.packs.size().1, ..Collected::default() };
        self.expire(options.now_unix, &mut done)?;
        let _begun = self.begin_collection();
        // Everything that was put before is in the index from here on.
        self.commit()?;
        let mut marks = self.mark(self.roots()?, &options.cancel)?;
        self.evict(options, &mut marks, &mut done)?;
        done.damaged.clone_from(&marks.damaged);
        self.drop_bases(&marks)?;
        let live = self.sweep_blocks(options, &marks, &mut done)?;
        self.rewrite_packs(options, &live, &mut done)?;
        done.bytes_after = self.packs.size().1;
        Ok(done)
    }

    /// See [`Store::space`](crate::Store::space).
    pub(crate) fn space(&self) -> Result<Space, StoreError> {
        let marks = self.mark(self.roots()?, &AtomicBool::new(false))?;
        let Classes { kept, cached, .. } = self.classify(&marks)?;
        let packs = self.packs.size().1;
        let (quota, index) = (self.quota.limit(), self.quota.index_bytes());
        Ok(Space { quota, index, packs, kept, cached, garbage: packs.saturating_sub(kept + cached) })
    }

    fn begin_collection(&self) -> Begun<'_> {
        // Waits for what is being put just now.
        let _nothing_under_way = write(&self.puts);
        let since = Since::new(self.packs.tail(), read(&self.bases).next);
        lock(&self.held).since = Some(since);
        Begun(self)
    }

    fn expire(&self, now: u64, done: &mut Collected) -> Result<(), StoreError> {
        let over = |at: Option<u64>| at.is_some_and(|at| at <= now);
        for record in self.roots()? {
            let unpin = record.pinned && over(record.pinned_until_unix);
            let goes = over(record.expires_unix) && (unpin || !record.pinned);
            let changed = self.stage_root(record.root, |there| {
                let there = there.filter(|_| unpin || goes)?;
                let unpinned = RootRecord { pinned: false, pinned_until_unix: None, ..there };
                Some((!goes).then_some(unpinned))
            })?;
            match (changed, goes) {
                (true, true) => done.expired.push(record),
                (true, false) => done.unpinned.push(record),
                (false, _) => {}
            }
        }
        Ok(())
    }

    /// Walks all roots.
    fn mark(&self, roots: Vec<RootRecord>, cancel: &AtomicBool) -> Result<Marks, StoreError> {
        let mut marks = Marks::default();
        let (cached, firm): (Vec<_>, Vec<_>) = roots.into_iter().partition(|record| self.may_go(record));
        let bases: Vec<(BaseId, PathBuf)> =
            read(&self.bases).paths.iter().map(|(id, path)| (*id, path.to_path_buf())).collect();
        for record in &firm {
            stop_if(cancel)?;
            let missing = self.walk(&record.root, |key| marks.firm.insert(short(key)))?;
            if missing > 0 && record.complete {
                marks.damaged.push(record.root);
            }
            // A fetch of several paths has a base for each, next to each other.
            let of_it = |(id, path): &&(BaseId, PathBuf)| match record.base {
                Some(base) => base == *id,
                None => record.kind == RootKind::Fetched && path.parent() == Some(&record.path),
            };
            marks.bases.extend(bases.iter().filter(of_it).map(|(id, _)| *id));
        }
        for record in cached {
            stop_if(cancel)?;
            let mut seen = Shorts::default();
            self.walk(&record.root, |key| {
                let new = seen.insert(short(key));
                if new && !marks.firm.contains(&short(key)) {
                    *marks.cached.entry(short(key)).or_default() += 1;
                }
                new
            })?;
            marks.candidates.insert(record.root, record);
        }
        Ok(marks)
    }

    /// Whether a root may be evicted.
    fn may_go(&self, record: &RootRecord) -> bool {
        record.kind == RootKind::Cached && !record.pinned && !self.quota.is_busy(&record.root)
    }

    /// Calls `each` for every block below a root, the root included, and goes on below where it says so. Gives the
    /// number of nodes that are not here. In memory: one path of nodes.
    pub(crate) fn walk(&self, root: &Cid, mut each: impl FnMut(&Key) -> bool) -> Result<u64, StoreError> {
        let mut open = vec![*root];
        let (mut node, mut missing) = (Vec::new(), 0);
        while let Some(cid) = open.pop() {
            if !each(&cid.key()) || cid.codec() == shoal_content::Codec::Raw {
                continue;
            }
            match self.read_into(&cid, &mut node) {
                Ok(()) => {}
                Err(ReadError::Store(error)) => return Err(error),
                Err(_) => {
                    missing += 1;
                    continue;
                }
            }
            // What cannot be decoded refers to nothing.
            if let Ok(node) = Node::decode(&cid, &node) {
                open.extend(node.links());
            }
        }
        Ok(missing)
    }

    /// Goes through all blocks of the index, a batch at a time.
    fn all_blocks(
        &self,
        mut each: impl FnMut(Vec<(Key, Vec<Loc>)>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let batch = self.with_snapshot(|s| s.blocks_after(after.as_ref(), BATCH_ROWS))?;
            let Some((last, _)) = batch.last() else { return Ok(()) };
            after = Some(*last);
            each(batch)?;
        }
    }

    fn classify(&self, marks: &Marks) -> Result<Classes, StoreError> {
        let mut classes = Classes::default();
        self.all_blocks(|batch| {
            for (key, locs) in batch {
                let bytes: u64 = locs
                    .iter()
                    .filter(|loc| matches!(loc.place, Place::Pack(_)))
                    .map(|loc| self.record_bytes(loc))
                    .sum();
                let short = short(&key);
                let class = if marks.firm.contains(&short) {
                    &mut classes.kept
                } else if marks.cached.contains_key(&short) {
                    &mut classes.cached
                } else {
                    &mut classes.garbage
                };
                *class += bytes;
            }
            Ok(())
        })?;
        Ok(classes)
    }

    /// Forgets cached roots until what is left fits.
    fn evict(&self, options: &Collect, marks: &mut Marks, done: &mut Collected) -> Result<(), StoreError> {
        let target = options.target_bytes.unwrap_or(self.quota.for_cached());
        let index = self.quota.index_bytes();
        if index + self.packs.size().1 <= target {
            return Ok(());
        }
        let Classes { kept, cached, .. } = self.classify(marks)?;
        let mut left = index + kept + cached;
        while left > target {
            let Some(victim) = self.quota.evict(|root| !marks.candidates.contains_key(root)) else { return Ok(()) };
            let Some(record) = marks.candidates.remove(&victim) else { continue };
            self.stage_root(victim, |there| there.map(|_| None))?;
            // What no other cached root needs is freed.
            let mut seen = Shorts::default();
            let mut freed = Vec::new();
            self.walk(&victim, |key| {
                let new = seen.insert(short(key));
                if new && let Some(count) = marks.cached.get_mut(&short(key)) {
                    *count -= 1;
                    if *count == 0 {
                        marks.cached.remove(&short(key));
                        freed.push(*key);
                    }
                }
                new
            })?;
            for key in freed {
                let locs = self.with_snapshot(|s| s.locs(&key))?;
                let bytes: u64 = locs
                    .iter()
                    .filter(|loc| matches!(loc.place, Place::Pack(_)))
                    .map(|loc| self.record_bytes(loc))
                    .sum();
                left = left.saturating_sub(bytes);
            }
            done.evicted.push(record);
            failpoint::pass("evicted");
        }
        Ok(())
    }

    /// Forgets bases that no root hangs off.
    fn drop_bases(&self, marks: &Marks) -> Result<(), StoreError> {
        let all: Vec<BaseId> = read(&self.bases).paths.keys().copied().collect();
        for base in all.into_iter().filter(|base| !marks.bases.contains(base)) {
            let held = lock(&self.held);
            if !held.base(base) {
                match self.remove_base(base) {
                    Err(StoreError::UnknownBase(_)) | Ok(()) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Takes what nothing needs out of the index. Says what each pack holds that is needed: bytes and records.
    fn sweep_blocks(
        &self,
        options: &Collect,
        marks: &Marks,
        done: &mut Collected,
    ) -> Result<BTreeMap<u32, (u64, u64)>, StoreError> {
        let mut live = BTreeMap::<u32, (u64, u64)>::new();
        let mut files = HashSet::<FileId>::new();
        let mut base_of = HashMap::<FileId, Option<BaseId>>::new();
        self.all_blocks(|batch| {
            let mut removed = 0;
            for (key, locs) in batch {
                let needed = marks.has(short(&key));
                let mut gone = 0;
                for loc in &locs {
                    // Looked up without a lock; a file's base does not change.
                    let base = match loc.place {
                        Place::File(id) if base_of.contains_key(&id) => base_of[&id],
                        Place::File(id) => {
                            let base = self.file(id)?.map(|file| file.base);
                            base_of.insert(id, base);
                            base
                        }
                        Place::Pack(_) => None,
                    };
                    if base_of.len() >= BATCH_ROWS {
                        base_of.clear();
                    }
                    let held = lock(&self.held);
                    let stays = held.is_new(loc)
                        || match loc.place {
                            Place::Pack(_) => needed || held.block(&key) || !marks.damaged.is_empty(),
                            Place::File(_) => base.is_some_and(|base| {
                                held.base(base)
                                    || self.base_path(base).is_some()
                                        && (needed || held.block(&key) || !marks.damaged.is_empty())
                            }),
                        };
                    if !stays {
                        write(&self.overlay).remove(key, *loc);
                        gone += 1;
                        continue;
                    }
                    match loc.place {
                        Place::Pack(id) => {
                            let (bytes, records) = live.entry(id).or_default();
                            *bytes += self.record_bytes(loc);
                            *records += 1;
                        }
                        Place::File(id) => drop(files.insert(id)),
                    }
                }
                removed += gone;
                done.blocks += u64::from(gone > 0 && gone == locs.len());
            }
            self.rest(removed > 0, options)
        })?;
        self.sweep_files(options, &files, done)?;
        Ok(live)
    }

    /// Takes rows of files and directories out of the index that no block needs.
    fn sweep_files(&self, options: &Collect, used: &HashSet<FileId>, done: &mut Collected) -> Result<(), StoreError> {
        let mut dirs = HashSet::<FileId>::new();
        let mut after = None;
        loop {
            let batch = self.with_snapshot(|s| s.files_after(after, BATCH_ROWS))?;
            let Some((last, _)) = batch.last() else { break };
            after = Some(*last);
            let mut removed = 0;
            for (id, dir) in batch {
                let base = self.file(id)?.map(|file| file.base);
                let held = lock(&self.held);
                if used.contains(&id) || base.is_some_and(|base| held.base(base)) {
                    dirs.insert(dir);
                } else {
                    write(&self.overlay).current.drop_row(0, id);
                    removed += 1;
                }
            }
            done.files += removed;
            self.rest(removed > 0, options)?;
        }
        let mut after = None;
        loop {
            let batch = self.with_snapshot(|s| s.dirs_after(after, BATCH_ROWS))?;
            let Some((last, _)) = batch.last() else { return Ok(()) };
            after = Some(*last);
            let mut removed = 0;
            for (id, base) in batch.into_iter().filter(|(id, _)| !dirs.contains(id)) {
                let held = lock(&self.held);
                if !base.is_some_and(|base| held.base(base)) {
                    write(&self.overlay).current.drop_row(1, id);
                    removed += 1;
                }
            }
            done.files += removed;
            self.rest(removed > 0, options)?;
        }
    }

    /// Between two steps: what was taken out becomes durable, and others get their turn.
    fn rest(&self, changed: bool, options: &Collect) -> Result<(), StoreError> {
        if changed {
            failpoint::pass("gc-swept");
            self.commit()?;
        }
        if !options.pause.is_zero() {
            std::thread::sleep(options.pause);
        }
        stop_if(&options.cancel)
    }

    /// What a block takes in a pack.
    fn record_bytes(&self, loc: &Loc) -> u64 {
        pack::record_bytes(loc.len, self.packs.seal())
    }

    /// Copies what is needed out of packs that are mostly garbage, and removes them.
    fn rewrite_packs(
        &self,
        options: &Collect,
        live: &BTreeMap<u32, (u64, u64)>,
        done: &mut Collected,
    ) -> Result<(), StoreError> {
        let percent = if options.thorough { GARBAGE_PERCENT_THOROUGH } else { GARBAGE_PERCENT };
        let live_of = |id: u32| live.get(&id).copied().unwrap_or_default();
        let is_due = |id: u32, len: u64| {
            let garbage = len.saturating_sub(live_of(id).0);
            live_of(id).1 == 0 || garbage >= MIN_GARBAGE_BYTES && garbage * 100 >= len * percent
        };
        let tail = self.packs.tail();
        if tail.len >= MIN_GARBAGE_BYTES && is_due(tail.pack, tail.len) {
            self.packs.roll();
            // Whatever was being appended to it is in the index after this.
            drop(write(&self.puts));
        }
        self.commit()?;
        let listed = self.packs.closed().map_err(|e| io_error("list", self.home.dir(), e))?;
        let mut due: Vec<(u32, u64)> = listed.into_iter().filter(|(id, len)| is_due(*id, *len)).collect();
        due.sort_by_key(|(id, len)| std::cmp::Reverse(len.saturating_sub(live_of(*id).0)));
        let mut records = 0;
        due.retain(|(id, _)| {
            records += live_of(*id).1;
            records <= MAX_MOVED_RECORDS
        });
        if due.is_empty() {
            return Ok(());
        }
        let mut of_pack: BTreeMap<u32, Vec<(Key, Loc)>> = due.iter().map(|(id, _)| (*id, Vec::new())).collect();
        self.all_blocks(|batch| {
            for (key, locs) in batch {
                for loc in locs {
                    if let Place::Pack(id) = loc.place
                        && let Some(found) = of_pack.get_mut(&id)
                    {
                        found.push((key, loc));
                    }
                }
            }
            Ok(())
        })?;
        for (id, len) in due {
            let mut found = of_pack.remove(&id).unwrap_or_default();
            found.sort_unstable_by_key(|(_, loc)| loc.offset);
            self.move_records(options, found, done)?;
            lock(&self.handles).forget(Place::Pack(id));
            failpoint::pass("gc-moved");
            self.packs.remove(id, len).map_err(|e| io_error("remove", &self.packs.path(id), e))?;
            done.packs += 1;
            failpoint::pass("gc-removed");
        }
        Ok(())
    }

    /// Copies records to the pack that is appended to; when it returns, the index refers to the copies, durably.
    fn move_records(
        &self,
        options: &Collect,
        records: Vec<(Key, Loc)>,
        done: &mut Collected,
    ) -> Result<(), StoreError> {
        let mut since_commit = 0;
        for (key, loc) in records {
            let Some(cid) = Cid::from_key(&key) else { continue };
            {
                let _under_way = read(&self.puts);
                match self.take(&cid, &loc)? {
                    Taken::Block(bytes) => {
                        let copy = self.packs.append(&cid, bytes.as_ref())?;
                        let mut overlay = write(&self.overlay);
                        overlay.current.add(key, copy);
                        overlay.remove(key, loc);
                        since_commit += self.record_bytes(&loc);
                        done.bytes_moved += self.record_bytes(&loc);
                    }
                    // Reported, and out of the index with the next commit.
                    Taken::Bad(_) => {}
                }
            }
            if since_commit >= BATCH_BYTES {
                since_commit = 0;
                self.rest(true, options)?;
            }
        }
        self.commit()
    }
}

fn stop_if(cancel: &AtomicBool) -> Result<(), StoreError> {
    if cancel.load(Ordering::Relaxed) { Err(StoreError::Cancelled) } else { Ok(()) }
}

#[cfg(all(test, unix))]
mod tests {
    use shoal_content::SHOAL_V1;

    use super::*;
    use crate::{ImportOptions, Options, Store, import};

    /// A root that is recorded after the roots were walked, by an import that staged everything before that.
    #[test]
    fn what_an_import_needs_stays_though_it_ends_in_the_middle_of_a_collection() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), Options::default()).unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("file"), "content").unwrap();
        let never = AtomicBool::new(false);
        let root = import(&store, &tree, &SHOAL_V1, &ImportOptions::default(), &|_| {}, &never).unwrap().root;
        let record = store.root(&root).unwrap().unwrap();
        let manifest = store.manifest(&root).unwrap();
        store.remove_root(&root).unwrap();

        let hold = store.hold();
        hold.add_base(&record.path).unwrap();
        manifest.nodes().iter().for_each(|node| hold.keep(node));
        let begun = store.inner.begin_collection();
        let marks = store.inner.mark(store.inner.roots().unwrap(), &never).unwrap();
        store.put_root(record).unwrap();
        drop(hold);
        let options = Collect { thorough: true, ..Collect::default() };
        let mut done = Collected::default();
        store.inner.drop_bases(&marks).unwrap();
        let live = store.inner.sweep_blocks(&options, &marks, &mut done).unwrap();
        store.inner.rewrite_packs(&options, &live, &mut done).unwrap();
        drop(begun);
        let manifest = store.manifest(&root).unwrap();
        assert!(manifest.leaves().iter().all(|leaf| store.read(&leaf.cid).is_ok()), "{done:?}");

        // Then it is forgotten like anything else.
        store.remove_root(&root).unwrap();
        assert!(store.collect(&options).unwrap().blocks > 0);
        assert!(store.manifest(&root).is_err());
    }
}
