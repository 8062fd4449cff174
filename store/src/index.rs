//! The index: redb tables, what a commit writes into them, and a snapshot for readers. What the values mean byte by
//! byte is `value`'s and `root`'s; when to commit is `commit`'s.
//!
//! | table | key | value |
//! |---|---|---|
//! | blocks | CID key (33) | 1 to 4 locations |
//! | files | file id (6) | directory id, size, mtime, name, what an import remembers of it |
//! | dirs | directory id (6) | base, path below it |
//! | bases | number | absolute path |
//! | roots | CID key (33) | version, JSON |
//! | meta | name | salt of the ids, tail of the packs, next base number |
//!
//! In an encrypted store every value is sealed for its table and key; keys are as they are.
//!
//! Every transaction commits in two phases: keys come from strangers, who must not be able to aim at a crash.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fs::File,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{
    Builder, Database, Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable,
    ReadableTableMetadata, StorageBackend, StorageError, TableDefinition, TableHandle,
};
use shoal_content::Cid;

use crate::{
    BaseId, OpenError, RootRecord, Stamp, StoreError,
    backend::{Frozen, IndexFile, Trouble},
    cipher::{Seal, VALUE_OVERHEAD},
    disk::Disk,
    overlay::{Key, StagedSet},
    packs::Tail,
    root::{path_from_bytes, path_to_bytes},
    value::{self, FileId, FileRow, Loc, MAX_LOCATIONS, Memory},
};

type IdKey = &'static [u8; 6];
type CidKey = &'static [u8; Cid::KEY_LEN];
type Bytes = &'static [u8];

const BLOCKS: TableDefinition<'_, CidKey, Bytes> = TableDefinition::new("blocks");
const FILES: TableDefinition<'_, IdKey, Bytes> = TableDefinition::new("files");
const DIRS: TableDefinition<'_, IdKey, Bytes> = TableDefinition::new("dirs");
const BASES: TableDefinition<'_, u32, Bytes> = TableDefinition::new("bases");
const ROOTS: TableDefinition<'_, CidKey, Bytes> = TableDefinition::new("roots");
const META: TableDefinition<'_, &str, Bytes> = TableDefinition::new("meta");

const SALT: &str = "salt";
const TAIL: &str = "tail";
const NEXT_BASE: &str = "next_base";

/// What a row costs in the file, pages two thirds full, in bytes: blocks, then files with their directories and with what a
/// share remembers of them.
const ROW_BYTES: [u64; 2] = [80, 140];
/// What a sealed row costs more.
const SEALED_ROW_BYTES: u64 = VALUE_OVERHEAD as u64 * 3 / 2;
/// On closing, the file is compacted if it is longer than five quarters of what its rows need and this: a big commit
/// rewrites most pages, and the old ones stay in the file as free space.
const MAX_SLACK_BYTES: u64 = 1 << 20;

/// Page cache for a check of the whole file.
const CHECK_CACHE_BYTES: usize = 8 << 20;

/// The writing side. One at a time, under the commit lock.
#[derive(Debug)]
pub(crate) struct Index {
    db: Open,
    path: PathBuf,
    cache_bytes: usize,
    disk: Arc<dyn Disk>,
    trouble: Arc<Trouble>,
    ids: IdMaker,
    seal: Seal,
    /// A sync or commit failed: the file is not touched any more than it must be.
    pub(crate) frozen: bool,
}

/// An open database. The library may panic on a file that rotted, even as it closes it.
#[derive(Debug)]
struct Open(Option<Database>);

impl Open {
    fn new(backend: impl StorageBackend, cache_bytes: usize) -> Result<Self, redb::Error> {
        let db = Builder::new().set_cache_size(cache_bytes).create_with_backend(backend)?;
        Ok(Open(Some(db)))
    }

    /// Works with it.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        // It is there until it is dropped.
        let db = self.0.as_ref().ok_or(redb::Error::DatabaseClosed)?;
        guarded(|| work(db))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let db = self.0.take();
        if catch_unwind(AssertUnwindSafe(|| drop(db))).is_err() {
            tracing::warn!("a damaged index could not be closed as it should be");
        }
    }
}

/// Makes an error of a panic of the library's.
fn guarded<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    let damaged = |_| Err(redb::Error::Corrupted("it is damaged; `shoal verify` makes it anew".to_owned()));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(damaged)
}

/// What is kept in memory from the start.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) ids: IdMaker,
    pub(crate) tail: Tail,
    pub(crate) next_base: u32,
    pub(crate) bases: BTreeMap<BaseId, Arc<Path>>,
}

/// Makes file and directory ids: keyed with a secret of this store, so that no publisher can choose names that collide.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdMaker {
    salt: [u8; 32],
}

impl IdMaker {
    pub(crate) fn id(&self, base: BaseId, rel: &str) -> FileId {
        let mut hasher = blake3::Hasher::new_keyed(&self.salt);
        hasher.update(&base.0.to_le_bytes());
        hasher.update(rel.as_bytes());
        let hash = hasher.finalize();
        let mut id = [0; 6];
        id.copy_from_slice(&hash.as_bytes()[..6]);
        FileId(id)
    }

    /// Eight bytes of a keyed hash, for comparing what has many: nobody outside can make two that are alike.
    pub(crate) fn print(&self, parts: &[&[u8]]) -> u64 {
        let mut hasher = blake3::Hasher::new_keyed(&self.salt);
        for part in parts {
            hasher.update(part);
        }
        let mut print = [0; 8];
        print.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(print)
    }

    /// A secret from the keys that the standard library draws for its hash maps.
    fn fresh() -> Self {
        use std::hash::{BuildHasher, RandomState};
        let mut hasher = blake3::Hasher::new();
        for i in 0..8u32 {
            hasher.update(&RandomState::new().hash_one(i).to_le_bytes());
        }
        Self { salt: hasher.finalize().into() }
    }
}

/// Splits a path below a base into directory and name.
fn split(rel: &str) -> (&str, &str) {
    rel.rsplit_once('/').unwrap_or(("", rel))
}

impl Index {
    /// Opens the index file, or makes a new one if `create`, with these ids or new ones. Never both: a missing or unreadable file is an error.
    pub(crate) fn open(
        path: PathBuf,
        disk: Arc<dyn Disk>,
        cache_bytes: usize,
        create: bool,
        ids: Option<IdMaker>,
        seal: &Seal,
    ) -> Result<(Self, Loaded), OpenError> {
        let io = |action| {
            let path = path.clone();
            move |source| OpenError::Io { action, path, source }
        };
        let corrupt = |reason: String| OpenError::Corrupt {
            dir: path.parent().unwrap_or(&path).to_owned(),
            path: path.clone(),
            reason,
        };
        let opened = if create { disk.create(&path) } else { File::options().read(true).write(true).open(&path) };
        let file = match opened {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(corrupt("it is missing".into())),
            other => other.map_err(io("open"))?,
        };
        if !create && file.metadata().map_err(io("examine"))?.len() == 0 {
            return Err(corrupt("it is empty".into()));
        }
        let trouble = Arc::<Trouble>::default();
        let backend = IndexFile { file, path: path.clone(), disk: Arc::clone(&disk), trouble: Arc::clone(&trouble) };
        let opened = guarded(|| {
            let db = Open::new(backend, cache_bytes)?;
            let loaded = db.with(|db| if create { initialise(db, ids, seal) } else { load(db, seal) })?;
            Ok((db, loaded))
        });
        match opened {
            Ok((db, Some(loaded))) => {
                let (ids, seal) = (loaded.ids, seal.clone());
                Ok((Self { db, path, cache_bytes, disk, trouble, ids, seal, frozen: false }, loaded))
            }
            Ok((_, None)) => Err(corrupt("its tables make no sense".into())),
            Err(redb::Error::Io(error)) if !is_of_content(&error) => Err(io("open")(error)),
            Err(error) => Err(corrupt(error.to_string())),
        }
    }

    /// What readers see until the next commit.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let open = |db: &Database| -> Result<Snapshot, redb::Error> {
            let txn = db.begin_read()?;
            Ok(Snapshot {
                blocks: txn.open_table(BLOCKS)?,
                files: txn.open_table(FILES)?,
                dirs: txn.open_table(DIRS)?,
                roots: txn.open_table(ROOTS)?,
                path: self.path.clone(),
                seal: self.seal.clone(),
            })
        };
        self.db.with(open).map_err(|e| index_error(&self.path, &e))
    }

    /// Writes one staged set, durably and as a whole. After an error the index must be [frozen](Self::freeze).
    pub(crate) fn apply(&self, set: &StagedSet, tail: Tail, next_base: u32) -> Result<(), redb::Error> {
        self.db.with(|db| self.apply_to(db, set, tail, next_base))
    }

    fn apply_to(&self, db: &Database, set: &StagedSet, tail: Tail, next_base: u32) -> Result<(), redb::Error> {
        let mut txn = db.begin_write()?;
        txn.set_durability(Durability::Immediate)?;
        txn.set_two_phase_commit(true);
        {
            let mut meta = txn.open_table(META)?;
            for (name, value) in [(TAIL, &put_tail(tail)[..]), (NEXT_BASE, &next_base.to_le_bytes()[..])] {
                meta.insert(name, &*self.seal.seal_value(META.name(), name.as_bytes(), value))?;
            }
            let mut bases = txn.open_table(BASES)?;
            for (id, path) in &set.bases {
                match path {
                    Some(path) => {
                        let path = path_to_bytes(path);
                        bases.insert(id.0, &*self.seal.seal_value(BASES.name(), &id.0.to_le_bytes(), &path))?;
                    }
                    None => drop(bases.remove(id.0)?),
                }
            }
            let mut roots = txn.open_table(ROOTS)?;
            for (key, record) in &set.roots {
                match record {
                    Some(record) => {
                        roots.insert(key, &*self.seal.seal_value(ROOTS.name(), key, &record.encode()))?;
                    }
                    None => drop(roots.remove(key)?),
                }
            }
            let (mut files, mut dirs) = (txn.open_table(FILES)?, txn.open_table(DIRS)?);
            for (ids, table) in set.gone.iter().zip([&mut files, &mut dirs]) {
                for id in ids {
                    table.remove(&id.0)?;
                }
            }
            apply_files(&self.ids, &self.seal, set, &mut files, &mut dirs)?;
            apply_blocks(&self.seal, set, &mut txn.open_table(BLOCKS)?)?;
        }
        txn.commit()?;
        Ok(())
    }

    /// After a failed commit: goes on with the last good state of the file, for reading, in memory.
    pub(crate) fn freeze(&mut self) -> Result<(), redb::Error> {
        self.frozen = true;
        let frozen = Frozen::new(File::open(&self.path)?)?;
        self.db = guarded(|| Open::new(frozen, self.cache_bytes))?;
        Ok(())
    }

    /// Whether the failed commit failed for want of space alone: then [`thaw`](Self::thaw) may be tried.
    pub(crate) fn is_only_full(&self) -> bool {
        self.trouble.is_only_space()
    }

    /// Goes back to the file after it was [frozen](Self::freeze) for want of space.
    pub(crate) fn thaw(&mut self) -> Result<(), redb::Error> {
        let file = File::options().read(true).write(true).open(&self.path)?;
        let trouble = Arc::<Trouble>::default();
        let backend =
            IndexFile { file, path: self.path.clone(), disk: Arc::clone(&self.disk), trouble: Arc::clone(&trouble) };
        self.db = guarded(|| Open::new(backend, self.cache_bytes))?;
        (self.trouble, self.frozen) = (trouble, false);
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether every value is what was sealed in its place. A file that somebody changed with care can be
    /// [sound](is_sound) and not this.
    pub(crate) fn is_authentic(&self) -> bool {
        let check = |db: &Database| {
            let txn = db.begin_read()?;
            Ok::<_, redb::Error>(
                all_open(&self.seal, &txn, BLOCKS)?
                    && all_open(&self.seal, &txn, FILES)?
                    && all_open(&self.seal, &txn, DIRS)?
                    && all_open(&self.seal, &txn, BASES)?
                    && all_open(&self.seal, &txn, ROOTS)?
                    && all_open(&self.seal, &txn, META)?,
            )
        };
        !self.seal.is_on() || self.db.with(check).unwrap_or(false)
    }

    fn wants_compaction(&self) -> bool {
        let counts = || guarded(|| Ok(self.snapshot().and_then(|s| s.counts())));
        let Ok(Ok([blocks, files, _])) = counts() else { return false };
        let sealed = if self.seal.is_on() { SEALED_ROW_BYTES } else { 0 };
        let needed = blocks * (ROW_BYTES[0] + sealed) + files * (ROW_BYTES[1] + sealed);
        std::fs::metadata(&self.path).is_ok_and(|meta| meta.len() > needed * 5 / 4 + MAX_SLACK_BYTES)
    }
}

impl Drop for Index {
    /// Gives free space back. The store's snapshot is gone by now; a crash meanwhile is as harmless as during a commit.
    fn drop(&mut self) {
        if self.frozen || !self.wants_compaction() {
            return;
        }
        let Some(db) = self.db.0.as_mut() else { return };
        if let Err(error) = guarded(|| Ok(db.compact()?)) {
            tracing::warn!(index = %self.path.display(), %error, "cannot compact the index; it stays as it is");
        }
    }
}

fn all_open<K: redb::Key + 'static>(
    seal: &Seal,
    txn: &ReadTransaction,
    table: TableDefinition<'_, K, Bytes>,
) -> Result<bool, redb::Error> {
    for row in txn.open_table(table)?.iter()? {
        let (key, value) = row?;
        if seal.open_value(table.name(), K::as_bytes(&key.value()).as_ref(), value.value()).is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether every page of the file is what was written. Nobody may write to it meanwhile.
pub(crate) fn is_sound(path: &Path) -> bool {
    let check = || {
        let file = Frozen::new(File::open(path)?)?;
        let mut builder = Builder::new();
        builder.set_cache_size(CHECK_CACHE_BYTES).set_check_integrity_on_open(true);
        builder.create_with_backend(file)?;
        Ok::<_, redb::Error>(())
    };
    match catch_unwind(AssertUnwindSafe(check)) {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::warn!(index = %path.display(), %error, "the index is damaged");
            false
        }
        Err(_panic) => false,
    }
}

/// The order in which rows go into a table: by key, so that each page is touched once, however small the cache.
///
/// A tree filled in key order has half-empty pages, since each split leaves one behind. So where most of the table is
/// new, two rows of five wait for a second round and fill those pages up.
fn fill_order<K: Ord, V>(mut rows: Vec<(K, V)>, already: u64) -> impl Iterator<Item = (K, V)> {
    rows.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let mut second = Vec::new();
    if already < rows.len() as u64 {
        let mut i = 0;
        second = rows
            .extract_if(.., |_| {
                i += 1;
                i % 5 == 2 || i % 5 == 4
            })
            .collect();
    }
    rows.into_iter().chain(second)
}

fn apply_files(
    ids: &IdMaker,
    seal: &Seal,
    set: &StagedSet,
    files: &mut redb::Table<'_, IdKey, Bytes>,
    dirs: &mut redb::Table<'_, IdKey, Bytes>,
) -> Result<(), StorageError> {
    let mut known: HashMap<(BaseId, &str), FileId> = HashMap::new();
    let mut row = Vec::new();
    let few = files.len()?;
    for (id, file) in fill_order(set.files.iter().collect(), few) {
        let (dir, name) = split(&file.rel);
        let dir_id = match known.get(&(file.base, dir)) {
            Some(id) => *id,
            None => {
                row.clear();
                value::put_dir(file.base, dir, &mut row);
                let mut id = ids.id(file.base, dir);
                // A collision of hashes: the next free id.
                let taken = |found: &[u8], id: FileId| {
                    seal.open_value(DIRS.name(), &id.0, found).is_some_and(|found| *found != row[..])
                };
                while dirs.get(&id.0)?.is_some_and(|found| taken(found.value(), id)) {
                    id = id.next();
                }
                dirs.insert(&id.0, &*seal.seal_value(DIRS.name(), &id.0, &row))?;
                known.insert((file.base, dir), id);
                id
            }
        };
        row.clear();
        value::put_file(&FileRow { dir: dir_id, stamp: file.stamp, name, memory: file.memory }, &mut row);
        files.insert(&id.0, &*seal.seal_value(FILES.name(), &id.0, &row))?;
    }
    Ok(())
}

fn apply_blocks(seal: &Seal, set: &StagedSet, blocks: &mut redb::Table<'_, CidKey, Bytes>) -> Result<(), StorageError> {
    let mut row = Vec::new();
    let few = blocks.len()?;
    // keys by value: sorting looks at them all the time
    for (key, block) in fill_order(set.blocks.iter().map(|(key, block)| (*key, block)).collect(), few) {
        let key = &key;
        row.clear();
        // the keys differ from each other, so that a table that was empty has none of them
        let found = if few == 0 { None } else { blocks.get(key)? };
        let before = found.map_or_else(Vec::new, |found| open_locs(seal, key, found.value()));
        let kept = before.iter().filter(|l| !block.adds.contains(l) && !block.removes.contains(l));
        let locs: Vec<&Loc> = block.adds.iter().chain(kept).take(MAX_LOCATIONS).collect();
        if locs.is_empty() {
            blocks.remove(key)?;
        } else if locs.len() != before.len() || !locs.iter().copied().eq(&before) {
            locs.iter().for_each(|loc| value::put_loc(loc, &mut row));
            blocks.insert(key, &*seal.seal_value(BLOCKS.name(), key, &row))?;
        }
    }
    Ok(())
}

/// A value that makes no sense is a block that is not here: it can be fetched again.
fn open_locs(seal: &Seal, key: &Key, stored: &[u8]) -> Vec<Loc> {
    seal.open_value(BLOCKS.name(), key, stored).and_then(|value| value::get_locs(&value)).unwrap_or_default()
}

fn initialise(db: &Database, ids: Option<IdMaker>, seal: &Seal) -> Result<Option<Loaded>, redb::Error> {
    let ids = ids.unwrap_or_else(IdMaker::fresh);
    let mut txn = db.begin_write()?;
    txn.set_two_phase_commit(true);
    txn.open_table(BLOCKS)?;
    txn.open_table(FILES)?;
    txn.open_table(DIRS)?;
    txn.open_table(BASES)?;
    txn.open_table(ROOTS)?;
    txn.open_table(META)?.insert(SALT, &*seal.seal_value(META.name(), SALT.as_bytes(), &ids.salt))?;
    txn.commit()?;
    Ok(Some(Loaded { ids, tail: Tail::default(), next_base: 0, bases: BTreeMap::new() }))
}

fn load(db: &Database, seal: &Seal) -> Result<Option<Loaded>, redb::Error> {
    let txn = db.begin_read()?;
    let meta = txn.open_table(META)?;
    let open = |name: &str, stored: &[u8]| seal.open_value(META.name(), name.as_bytes(), stored).map(Cow::into_owned);
    let salt = meta.get(SALT)?.and_then(|v| open(SALT, v.value())).and_then(|v| v.try_into().ok());
    let Some(salt) = salt else { return Ok(None) };
    let tail = meta.get(TAIL)?.map_or(Some(Tail::default()), |v| get_tail(&open(TAIL, v.value())?));
    let number = |v: Vec<u8>| v.try_into().ok().map(u32::from_le_bytes);
    let next_base = meta.get(NEXT_BASE)?.map_or(Some(0), |v| open(NEXT_BASE, v.value()).and_then(number));
    let (Some(tail), Some(next_base)) = (tail, next_base) else { return Ok(None) };
    let mut bases = BTreeMap::new();
    for row in txn.open_table(BASES)?.iter()? {
        let (id, path) = row?;
        let path = seal.open_value(BASES.name(), &id.value().to_le_bytes(), path.value());
        let Some(path) = path.and_then(|path| path_from_bytes(&path)) else { return Ok(None) };
        bases.insert(BaseId(id.value()), path.into());
    }
    // Every table must be there; they were made together.
    drop((txn.open_table(BLOCKS)?, txn.open_table(FILES)?, txn.open_table(DIRS)?, txn.open_table(ROOTS)?));
    Ok(Some(Loaded { ids: IdMaker { salt }, tail, next_base, bases }))
}

fn put_tail(tail: Tail) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&tail.pack.to_le_bytes());
    bytes[4..].copy_from_slice(&tail.len.to_le_bytes());
    bytes
}

fn get_tail(bytes: &[u8]) -> Option<Tail> {
    let (pack, len) = bytes.split_at_checked(4)?;
    Some(Tail { pack: u32::from_le_bytes(pack.try_into().ok()?), len: u64::from_le_bytes(len.try_into().ok()?) })
}

/// Whether what the file says is to blame, not the disk: it is no index, or names places that are past its end or no places.
fn is_of_content(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof)
}

fn index_error(path: &Path, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Index { path: path.to_owned(), reason: error.to_string().into() }
}

/// The committed state at one moment. Shared by all readers; it is replaced after every commit, so that it keeps no
/// more than one transaction's old pages alive.
pub(crate) struct Snapshot {
    blocks: ReadOnlyTable<CidKey, Bytes>,
    files: ReadOnlyTable<IdKey, Bytes>,
    dirs: ReadOnlyTable<IdKey, Bytes>,
    roots: ReadOnlyTable<CidKey, Bytes>,
    path: PathBuf,
    seal: Seal,
}

/// A file as the index knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KnownFile {
    pub(crate) base: BaseId,
    pub(crate) rel: String,
    pub(crate) stamp: Stamp,
    pub(crate) memory: Option<Memory>,
}

impl Snapshot {
    /// Where a block is; empty if it is nowhere.
    pub(crate) fn locs(&self, key: &Key) -> Result<Vec<Loc>, StoreError> {
        let found = self.blocks.get(key).map_err(|e| index_error(&self.path, &e))?;
        Ok(found.map(|v| open_locs(&self.seal, key, v.value())).unwrap_or_default())
    }

    pub(crate) fn file(&self, id: FileId) -> Result<Option<KnownFile>, StoreError> {
        let err = |e: StorageError| index_error(&self.path, &e);
        let Some(found) = self.files.get(&id.0).map_err(err)? else { return Ok(None) };
        let found = self.seal.open_value(FILES.name(), &id.0, found.value());
        let Some(row) = found.as_deref().and_then(value::get_file) else { return Ok(None) };
        let Some(dir) = self.dirs.get(&row.dir.0).map_err(err)? else { return Ok(None) };
        let dir = self.seal.open_value(DIRS.name(), &row.dir.0, dir.value());
        let Some((base, dir)) = dir.as_deref().and_then(value::get_dir) else { return Ok(None) };
        let rel = if dir.is_empty() { row.name.to_owned() } else { format!("{dir}/{}", row.name) };
        Ok(Some(KnownFile { base, rel, stamp: row.stamp, memory: row.memory }))
    }

    pub(crate) fn root(&self, root: &Cid) -> Result<Option<RootRecord>, StoreError> {
        let found = self.roots.get(&root.key()).map_err(|e| index_error(&self.path, &e))?;
        found.map(|v| self.decode_root(*root, v.value())).transpose()
    }

    pub(crate) fn roots(&self) -> Result<BTreeMap<Key, RootRecord>, StoreError> {
        let err = |e: StorageError| index_error(&self.path, &e);
        let mut roots = BTreeMap::new();
        for row in self.roots.iter().map_err(err)? {
            let (key, value) = row.map_err(err)?;
            let key = *key.value();
            let cid = Cid::from_key(&key).ok_or_else(|| index_error(&self.path, &"a root's key is no CID"))?;
            roots.insert(key, self.decode_root(cid, value.value())?);
        }
        Ok(roots)
    }

    fn decode_root(&self, root: Cid, bytes: &[u8]) -> Result<RootRecord, StoreError> {
        let plain = self.seal.open_value(ROOTS.name(), &root.key(), bytes);
        plain
            .and_then(|plain| RootRecord::decode(root, &plain))
            .ok_or_else(|| index_error(&self.path, &format_args!("the record of root {root} makes no sense")))
    }

    /// Up to `n` blocks with their locations, in the order of their keys, from the one after `after` on.
    pub(crate) fn blocks_after(&self, after: Option<&Key>, n: usize) -> Result<Vec<(Key, Vec<Loc>)>, StoreError> {
        let err = |e: StorageError| index_error(&self.path, &e);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut found = Vec::with_capacity(n);
        for row in self.blocks.range::<&Key>((from, Bound::Unbounded)).map_err(err)?.take(n) {
            let (key, value) = row.map_err(err)?;
            found.push((*key.value(), open_locs(&self.seal, key.value(), value.value())));
        }
        Ok(found)
    }

    /// Up to `n` files, each with its directory, by id, from the one after `after` on.
    pub(crate) fn files_after(&self, after: Option<FileId>, n: usize) -> Result<Vec<(FileId, FileId)>, StoreError> {
        let err = |e: StorageError| index_error(&self.path, &e);
        let from = after.as_ref().map_or(Bound::Unbounded, |id| Bound::Excluded(&id.0));
        let mut found = Vec::with_capacity(n);
        for row in self.files.range::<&[u8; 6]>((from, Bound::Unbounded)).map_err(err)?.take(n) {
            let (id, value) = row.map_err(err)?;
            // A row that makes no sense is of no directory.
            let row = self.seal.open_value(FILES.name(), id.value(), value.value());
            let dir = row.as_deref().and_then(value::get_file).map_or(FileId([0; 6]), |row| row.dir);
            found.push((FileId(*id.value()), dir));
        }
        Ok(found)
    }

    /// Up to `n` directories, each with its base, by id, from the one after `after` on.
    pub(crate) fn dirs_after(
        &self,
        after: Option<FileId>,
        n: usize,
    ) -> Result<Vec<(FileId, Option<BaseId>)>, StoreError> {
        let err = |e: StorageError| index_error(&self.path, &e);
        let from = after.as_ref().map_or(Bound::Unbounded, |id| Bound::Excluded(&id.0));
        let mut found = Vec::with_capacity(n);
        for row in self.dirs.range::<&[u8; 6]>((from, Bound::Unbounded)).map_err(err)?.take(n) {
            let (id, value) = row.map_err(err)?;
            let dir = self.seal.open_value(DIRS.name(), id.value(), value.value());
            found.push((FileId(*id.value()), dir.and_then(|dir| value::get_dir(&dir).map(|(base, _)| base))));
        }
        Ok(found)
    }

    /// Rows of blocks, files and roots.
    pub(crate) fn counts(&self) -> Result<[u64; 3], StoreError> {
        let count = || Ok([self.blocks.len()?, self.files.len()?, self.roots.len()?]);
        count().map_err(|e: StorageError| index_error(&self.path, &e))
    }
}
