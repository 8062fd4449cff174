//! Making the index anew: blocks from the packs, which tell what they hold; roots and bases from their second copy; and
//! from the trees of the roots, where in the user's files the chunks should be. None of it needs to be true: whatever is
//! read is hashed, and what is not there any more leaves the index then.
//!
//! The new index grows beside the old one and takes its name when it is whole, so a crash meanwhile changes nothing.
//! Partial destinations are not looked at: a fetch that goes on hashes its own.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    path::Path,
    sync::Arc,
};

use shoal_content::{Cid, Codec, EntryKind, Manifest, Source, Walk, WalkLimits};

use crate::{
    BaseId, MAX_STAGED_BYTES, OpenError, RootRecord, Stamp,
    checkout::plan,
    cipher::Seal,
    disk::Disk,
    failpoint,
    home::Home,
    index::{IdMaker, Index},
    overlay::{Key, StagedFile, StagedSet},
    pack::{self, read_payload},
    packs::{self, Tail},
    spare::Spare,
    value::{Loc, Place},
};

/// What stands for the modification time of files that were not looked at. It never matches a real one.
const NOT_LOOKED_AT: i64 = i64::MIN;

/// Makes the index of a home anew and puts it in the place of the one that is there, if any. With `ids`, ids of files
/// stay what they were.
pub(crate) fn rebuild(
    home: &Home,
    spare: &Spare,
    disk: &Arc<dyn Disk>,
    cache_bytes: usize,
    ids: Option<IdMaker>,
) -> Result<(), OpenError> {
    let path = home.index();
    let new = path.with_extension("new");
    let failed = |action| {
        let path = new.clone();
        move |source| OpenError::Io { action, path, source }
    };
    let (index, loaded) = Index::open(new.clone(), Arc::clone(disk), cache_bytes, true, ids, home.seal())?;
    let (set, tail, seal) = (StagedSet::default(), Tail::default(), home.seal());
    let mut job = Job { index, ids: loaded.ids, set, tail, spare, path: &new, seal };
    let nodes = job.packs(&home.packs())?;
    for record in spare.roots.values().filter(|record| record.complete) {
        match job.references(record, &nodes) {
            Ok(()) => {}
            Err(Trouble::Open(error)) => return Err(error),
            // Its blocks will be fetched or shared again.
            Err(Trouble::Root(why)) => tracing::warn!(root = %record.root, why, "a root is not whole any more"),
        }
    }
    for (id, path) in &spare.bases {
        job.set.put_base(*id, Some(Arc::clone(path)));
    }
    for (key, record) in &spare.roots {
        job.set.put_root(*key, Some(record.clone()));
    }
    job.apply()?;
    drop(job);
    failpoint::pass("index-made-anew");
    disk.rename(&new, &path).map_err(failed("rename"))?;
    disk.sync_dir(home.dir()).map_err(failed("sync"))?;
    tracing::warn!(index = %path.display(), roots = spare.roots.len(), "the index was made anew");
    Ok(())
}

enum Trouble {
    Open(OpenError),
    Root(String),
}

impl From<OpenError> for Trouble {
    fn from(error: OpenError) -> Self {
        Trouble::Open(error)
    }
}

/// Nodes in packs, and the open packs.
struct Nodes<'a> {
    seal: &'a Seal,
    places: HashMap<Key, Loc>,
    files: BTreeMap<u32, File>,
}

impl Nodes<'_> {
    fn read(&self, cid: &Cid, buf: &mut Vec<u8>) -> Option<()> {
        let loc = self.places.get(&cid.key())?;
        let Place::Pack(id) = loc.place else { return None };
        buf.resize(loc.len as usize, 0);
        let opened = read_payload(self.files.get(&id)?, cid, buf, loc.offset, self.seal).ok()?;
        (opened && cid.verify(buf)).then_some(())
    }
}

struct Job<'a> {
    index: Index,
    ids: IdMaker,
    set: StagedSet,
    tail: Tail,
    spare: &'a Spare,
    path: &'a Path,
    seal: &'a Seal,
}

impl<'a> Job<'a> {
    fn apply(&mut self) -> Result<(), OpenError> {
        let set = std::mem::take(&mut self.set);
        self.index.apply(&set, self.tail, self.spare.next_base).map_err(|error| OpenError::Io {
            action: "write",
            path: self.path.to_owned(),
            source: io::Error::other(error.to_string()),
        })
    }

    fn apply_if_full(&mut self) -> Result<(), OpenError> {
        if self.set.bytes() > MAX_STAGED_BYTES { self.apply() } else { Ok(()) }
    }

    /// Takes on every record of every pack that is whole.
    fn packs(&mut self, dir: &Path) -> Result<Nodes<'a>, OpenError> {
        let mut nodes = Nodes { seal: self.seal, places: HashMap::new(), files: BTreeMap::new() };
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { action, path, source }
        };
        for (id, path) in packs::list(dir).map_err(failed("list", dir))? {
            let file = File::open(&path).map_err(failed("open", &path))?;
            let mut found = Vec::new();
            pack::scan_damaged(&file, self.seal, |cid, offset, len| found.push((cid, offset, len)))
                .map_err(failed("read", &path))?;
            for (cid, offset, len) in found {
                let loc = Loc { place: Place::Pack(id), offset, len };
                if cid.codec() != Codec::Raw {
                    nodes.places.insert(cid.key(), loc);
                }
                self.set.add(cid.key(), loc);
                self.apply_if_full()?;
            }
            self.tail = Tail { pack: id, len: file.metadata().map_err(failed("examine", &path))?.len() };
            nodes.files.insert(id, file);
        }
        Ok(nodes)
    }

    /// Takes on where a root's chunks should be in the user's files.
    fn references(&mut self, record: &RootRecord, nodes: &Nodes<'_>) -> Result<(), Trouble> {
        let set = references(record, &self.spare.bases, &self.ids, |cid, buf| nodes.read(cid, buf));
        self.set.extend(set.map_err(Trouble::Root)?);
        Ok(self.apply_if_full()?)
    }
}

/// Where a root's chunks should be in the user's files, by its tree and its record. `read` reads a node of it. An error says
/// why its tree cannot be walked.
pub(crate) fn references(
    record: &RootRecord,
    bases: &BTreeMap<BaseId, Arc<Path>>,
    ids: &IdMaker,
    read: impl Fn(&Cid, &mut Vec<u8>) -> Option<()>,
) -> Result<StagedSet, String> {
    let mut set = StagedSet::default();
    let base_at = |path: &Path| bases.iter().find(|(_, there)| &***there == path).map(|(id, _)| *id);
    if record.root.codec() == Codec::Raw {
        // A file of one chunk is its own tree.
        if let (Some(base), Ok(len)) = (record.base.or_else(|| base_at(&record.path)), u32::try_from(record.bytes)) {
            let (id, stamp) = (ids.id(base, ""), Stamp { size: record.bytes, mtime_ns: NOT_LOOKED_AT });
            set.put_file(id, StagedFile { base, rel: "".into(), stamp, dirty: false, memory: None });
            set.add(record.root.key(), Loc { place: Place::File(id), offset: 0, len });
        }
        return Ok(set);
    }
    let mut walk = Walk::new(record.root, WalkLimits::default());
    let mut buf = Vec::new();
    while let Some(cid) = walk.next_needed() {
        read(&cid, &mut buf).ok_or_else(|| format!("node {cid} is gone"))?;
        walk.insert(&cid, &buf).map_err(|error| error.to_string())?;
    }
    let manifest: Manifest = walk.finish().map_err(|error| error.to_string())?;
    let paths: Result<Vec<_>, _> = record.selection.iter().flatten().map(|path| path.parse()).collect();
    let paths = paths.map_err(|error: shoal_content::PathError| error.to_string())?;
    for plan in plan(&manifest, &paths, &record.name).map_err(|error| error.to_string())? {
        let Some(base) = record.base.or_else(|| base_at(&record.path.join(&plan.name))) else { continue };
        for entry in plan.first..plan.end {
            let kind = manifest.entries().get(entry as usize).map(|entry| &entry.kind);
            let Some(EntryKind::File { size, .. }) = kind else { continue };
            let rel = plan.rel(&manifest, entry);
            let id = ids.id(base, rel);
            let stamp = Stamp { size: *size, mtime_ns: NOT_LOOKED_AT };
            set.put_file(id, StagedFile { base, rel: rel.into(), stamp, dirty: false, memory: None });
            for piece in manifest.pieces(entry) {
                let Source::Leaf(leaf) = piece.source else { continue };
                let Some(leaf) = manifest.leaves().get(leaf as usize) else { continue };
                set.add(leaf.cid.key(), Loc { place: Place::File(id), offset: piece.offset, len: piece.len });
            }
        }
    }
    Ok(set)
}
