//! Beginning a checkout: what is there already, whether the rest fits, directories, and the root's record.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, AtomicUsize},
    },
};

use cap_std::fs::Dir;
use shoal_content::{Cid, EntryKind, Manifest, RelPath, Selection, Source, case_clashes};

use super::{
    Amount, Checkout, CheckoutError, CheckoutOptions, UNFINISHED,
    bits::Bits,
    ground::{Ground, Parent},
    target::{self, Plan, Target},
    verify::{Check, Found},
};
use crate::{Hold, ReadError, RootKind, RootRecord, Stamp, Store};

/// See [`Checkout::begin`].
pub(super) fn begin(
    store: &Store,
    manifest: Arc<Manifest>,
    paths: &[RelPath],
    dir: &Path,
    name: &str,
    options: CheckoutOptions,
) -> Result<Checkout, CheckoutError> {
    let selection = manifest.select(paths)?;
    let plans = target::plan(&manifest, paths, name)?;
    let (parent, dir) = target::open_parent(dir, store)?;
    refuse_case_clashes(&manifest, &plans, &parent, &dir)?;

    let hold = store.hold();
    let found = Found::new(&manifest);
    let mut targets = Vec::with_capacity(plans.len());
    for plan in plans {
        let parent = Parent { dir: &parent, path: &dir, disk: store.disk() };
        targets.push(open_target(store, &hold, &manifest, parent, plan, &options, &found)?);
    }
    let parts = (dir, parent, name.to_owned());
    let mut checkout = Checkout { targets, ..without_targets(store, hold, manifest, paths, selection, options, parts) };
    for &leaf in &checkout.selection.leaves {
        if found.good.has(leaf) && !found.bad.has(leaf) {
            checkout.mark(leaf);
        }
    }
    checkout.resumed = checkout.have_amount();
    checkout.unfinished = unfinished(&checkout);
    check_space(&checkout, found.bytes.into_inner())?;
    make_directories(&checkout)?;
    write_inline(&checkout)?;
    if !checkout.targets.iter().all(|target| target.done) {
        record(&checkout, false)?;
    }
    Ok(checkout)
}

/// See [`Checkout::begin_cached`].
pub(super) fn begin_cached(
    store: &Store,
    manifest: Arc<Manifest>,
    paths: &[RelPath],
    name: &str,
    options: CheckoutOptions,
) -> Result<Checkout, CheckoutError> {
    let selection = manifest.select(paths)?;
    let checkout = in_store(store, manifest, paths, selection, name, options)?;
    make_room(&checkout, checkout.wanted_bytes)?;
    record(&checkout, false)?;
    Ok(checkout)
}

/// See [`Checkout::begin_on_demand`].
pub(super) fn begin_on_demand(
    store: &Store,
    manifest: Arc<Manifest>,
    name: &str,
    options: CheckoutOptions,
) -> Result<Checkout, CheckoutError> {
    let selection = manifest.select(&[])?;
    Ok(Checkout { on_demand: true, ..in_store(store, manifest, &[], selection, name, options)? })
}

/// A checkout into the store itself, with room for nothing yet.
fn in_store(
    store: &Store,
    manifest: Arc<Manifest>,
    paths: &[RelPath],
    selection: Selection,
    name: &str,
    options: CheckoutOptions,
) -> Result<Checkout, CheckoutError> {
    let dir = store.dir().to_owned();
    let parent = Dir::open_ambient_dir(&dir, cap_std::ambient_authority()).map_err(|source| CheckoutError::Io {
        action: "open",
        path: dir.clone(),
        source,
    })?;
    let Some(room) = store.begin_room(manifest.root()) else { return Err(CheckoutError::Busy { path: dir }) };
    let parts = (dir, parent, name.to_owned());
    Ok(Checkout {
        room: Some(room),
        ..without_targets(store, store.hold(), manifest, paths, selection, options, parts)
    })
}

/// Makes room for `bytes` more in the store, if the disk has it; or fails, and nothing changed.
pub(super) fn make_room(checkout: &Checkout, bytes: u64) -> Result<(), CheckoutError> {
    let Some(room) = &checkout.room else { return Ok(()) };
    room.grow(bytes, checkout.options.created_unix)?;
    let free = disk_space(&checkout.parent).map(|(free, size)| free.saturating_sub(size / LAST_PART));
    match free.filter(|free| *free < bytes) {
        Some(free) => {
            room.shrink(bytes);
            Err(CheckoutError::NoSpace { path: checkout.dir.clone(), needed: bytes, free })
        }
        None => Ok(()),
    }
}

/// See [`Checkout::begin_repair`].
pub(super) fn begin_repair(
    store: &Store,
    manifest: Arc<Manifest>,
    paths: &[RelPath],
    options: CheckoutOptions,
) -> Result<Checkout, CheckoutError> {
    let selection = manifest.select(paths)?;
    let dir = store.dir().to_owned();
    let parent = Dir::open_ambient_dir(&dir, cap_std::ambient_authority()).map_err(|source| CheckoutError::Io {
        action: "open",
        path: dir.clone(),
        source,
    })?;
    let parts = (dir, parent, String::new());
    let checkout =
        Checkout { repairs: true, ..without_targets(store, store.hold(), manifest, paths, selection, options, parts) };
    let known = checkout.manifest.leaves();
    let check = |buf: &mut Vec<u8>, range: std::ops::Range<usize>| {
        for &leaf in &checkout.wanted()[range] {
            match known.get(leaf as usize).map(|known| store.read_into(&known.cid, buf)) {
                Some(Err(ReadError::Store(error))) => return Err(error.into()),
                Some(Ok(())) => drop(checkout.mark(leaf)),
                _ => {}
            }
        }
        Ok(())
    };
    let threads = crate::import::threads(checkout.options.threads);
    super::verify::parallel(threads, checkout.wanted().len(), CHECK_BATCH, &checkout.options.cancel, check)?;
    let resumed = checkout.have_amount();
    Ok(Checkout { resumed, ..checkout })
}

/// Leaves that a thread checks at once.
const CHECK_BATCH: usize = 64;

/// A checkout with nothing in it, and with no files to write to.
fn without_targets(
    store: &Store,
    hold: Hold,
    manifest: Arc<Manifest>,
    paths: &[RelPath],
    selection: Selection,
    options: CheckoutOptions,
    (dir, parent, name): (PathBuf, Dir, String),
) -> Checkout {
    let (wanted, wanted_bytes) = wanted(&manifest, &selection);
    Checkout {
        store: store.clone(),
        _hold: hold,
        room: None,
        repairs: false,
        on_demand: false,
        have: Bits::new(manifest.leaves().len()),
        have_leaves: AtomicUsize::new(0),
        have_bytes: AtomicU64::new(0),
        manifest,
        paths: paths.to_vec(),
        selection,
        options,
        dir,
        parent,
        name,
        unfinished: Vec::new(),
        targets: Vec::new(),
        wanted,
        wanted_bytes,
        resumed: Amount::default(),
        finished: RwLock::new(None),
    }
}

/// Cached content leaves one part in so many of a disk free.
const LAST_PART: u64 = 20;

/// The leaves that a selection needs, and their bytes.
fn wanted(manifest: &Manifest, selection: &Selection) -> (Bits, u64) {
    let (wanted, mut bytes) = (Bits::new(manifest.leaves().len()), 0);
    for &leaf in &selection.leaves {
        wanted.add(leaf);
        bytes += manifest.leaves().get(leaf as usize).map_or(0, |leaf| u64::from(leaf.len));
    }
    (wanted, bytes)
}

/// Opens one target: its destination if that is there, its partial if that is, a new partial else.
fn open_target(
    store: &Store,
    hold: &Hold,
    manifest: &Manifest,
    parent: Parent<'_>,
    plan: Plan,
    options: &CheckoutOptions,
    found: &Found,
) -> Result<Target, CheckoutError> {
    let dest = parent.path.join(&plan.name);
    let part = plan.part_name(manifest);
    if parent.dir.symlink_metadata(&plan.name).is_ok() {
        let Some((ground, matches)) = identical(manifest, &plan, parent, options)? else {
            return Err(CheckoutError::Exists { path: dest });
        };
        let base = hold.add_base(&dest)?;
        for (entry, stamp, refs) in matches {
            store.stage_file(base, plan.rel(manifest, entry), stamp, &refs, false)?;
        }
        for leaf in leaves_of(manifest, &plan) {
            found.good.add(leaf);
        }
        return Ok(Target { plan, at: dest.clone(), dest, part, base, ground, done: true, resumed: false });
    }

    let at = parent.path.join(&part);
    let executable = matches!(kind_of(manifest, plan.first), Some(EntryKind::File { executable: true, .. }));
    let opened = if plan.tree { Ground::tree(parent, &part) } else { Ground::file(parent, &part, executable) };
    let opened = opened.map_err(|source| CheckoutError::Io { action: "create", path: at.clone(), source })?;
    if !opened.ground.lock() {
        return Err(CheckoutError::Busy { path: at });
    }
    let base = hold.add_base(&at)?;
    let target = Target { plan, dest, at, part, base, ground: opened.ground, done: false, resumed: opened.existed };
    if target.resumed {
        Check {
            manifest,
            plan: &target.plan,
            ground: &target.ground,
            threads: crate::import::threads(options.threads),
            cancel: &options.cancel,
            trim: true,
            found,
            // Only a file that is whole has its stamp staged.
            vouched: &|rel, stamp| Ok(store.file_stamp(base, rel)? == Some(stamp) && stamp.mtime_ns != UNFINISHED),
            // Written before a crash, perhaps never synced.
            on_match: &|found| {
                let stamp = if found.whole { found.stamp } else { Stamp { mtime_ns: UNFINISHED, ..found.stamp } };
                Ok(store.stage_file(base, found.rel, stamp, found.refs, true)?)
            },
        }
        .run()?;
    } else {
        found.nothing_of(manifest, &target.plan);
    }
    Ok(target)
}

/// Stretches of references that a check found: entry, stamp of its file, references.
type Matches = Vec<(u32, Stamp, Vec<(Cid, u64, u32)>)>;

/// Opens what is at a target's destination if it is the target byte for byte; `None` if it is anything else.
pub(super) fn identical(
    manifest: &Manifest,
    plan: &Plan,
    parent: Parent<'_>,
    options: &CheckoutOptions,
) -> Result<Option<(Ground, Matches)>, CheckoutError> {
    let ground = if plan.tree {
        if !same_shape(manifest, plan, &parent.path.join(&plan.name)).unwrap_or(false) {
            return Ok(None);
        }
        Ground::existing_tree(parent, &plan.name)
    } else {
        Ground::existing_file(parent, &plan.name)
    };
    let Ok(ground) = ground else { return Ok(None) };
    let found = Found::new(manifest);
    let matches = Mutex::new(Matches::new());
    Check {
        manifest,
        plan,
        ground: &ground,
        threads: crate::import::threads(options.threads),
        cancel: &options.cancel,
        trim: false,
        found: &found,
        vouched: &|_, _| Ok(false),
        on_match: &|found| {
            let found = (found.entry, found.stamp, found.refs.to_vec());
            matches.lock().unwrap_or_else(PoisonError::into_inner).push(found);
            Ok(())
        },
    }
    .run()?;
    let matches = matches.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(found.complete(manifest, plan).then_some((ground, matches)))
}

/// Whether a tree holds exactly the names of a target, each of its kind. Symlinks may be missing.
fn same_shape(manifest: &Manifest, plan: &Plan, at: &Path) -> io::Result<bool> {
    if !fs::symlink_metadata(at)?.is_dir() {
        return Ok(false);
    }
    let mut expected: HashMap<&str, &EntryKind> = (plan.first..plan.end)
        .filter_map(|entry| Some((plan.rel(manifest, entry), kind_of(manifest, entry)?)))
        .filter(|(rel, _)| !rel.is_empty())
        .collect();
    let mut open = vec![String::new()];
    while let Some(dir) = open.pop() {
        for found in fs::read_dir(at.join(&dir))? {
            let found = found?;
            let Ok(name) = found.file_name().into_string() else { return Ok(false) };
            let rel = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            let kind = found.file_type()?;
            let same = match expected.remove(&*rel) {
                Some(EntryKind::Dir) => kind.is_dir(),
                Some(EntryKind::File { size, .. }) => kind.is_file() && found.metadata()?.len() == *size,
                Some(EntryKind::Symlink { target }) => {
                    kind.is_symlink() && fs::read_link(found.path())?.as_os_str() == &**target
                }
                None => false,
            };
            if !same {
                return Ok(false);
            }
            if kind.is_dir() {
                open.push(rel);
            }
        }
    }
    Ok(expected.values().all(|kind| matches!(kind, EntryKind::Symlink { .. })))
}

pub(super) fn kind_of(manifest: &Manifest, entry: u32) -> Option<&EntryKind> {
    manifest.entries().get(entry as usize).map(|entry| &entry.kind)
}

fn leaves_of<'m>(manifest: &'m Manifest, plan: &Plan) -> impl Iterator<Item = u32> + 'm {
    (plan.first..plan.end).flat_map(|entry| manifest.pieces(entry)).filter_map(|piece| match piece.source {
        Source::Leaf(leaf) => Some(leaf),
        Source::Inline(_) => None,
    })
}

/// Refuses names that this file system would take for one. It is only asked where there are such names.
fn refuse_case_clashes(manifest: &Manifest, plans: &[Plan], parent: &Dir, dir: &Path) -> Result<(), CheckoutError> {
    let inside = plans.iter().flat_map(|plan| {
        let entries = manifest.entries().get(plan.first as usize..plan.end as usize).unwrap_or_default();
        entries.iter().map(|entry| &entry.path)
    });
    let mut clashes = case_clashes(inside);
    // Several selected paths land side by side, wherever they come from.
    let tops: Vec<RelPath> = plans.iter().filter_map(|plan| plan.name.parse().ok()).collect();
    clashes.extend(case_clashes(&tops));
    let Some((first, second)) = clashes.into_iter().next() else { return Ok(()) };
    let ignores = target::ignores_case(parent);
    match ignores.map_err(|source| CheckoutError::Io { action: "write to", path: dir.to_owned(), source })? {
        true => Err(CheckoutError::CaseClash { first, second, path: dir.to_owned() }),
        false => Ok(()),
    }
}

/// Counts, for each file of several pieces, the leaves that it still misses.
fn unfinished(checkout: &Checkout) -> Vec<AtomicU32> {
    let manifest = &checkout.manifest;
    let missing = |entry: u32| {
        let selected = checkout.target_of(entry).is_some_and(|target| !target.done);
        let pieces = manifest.pieces(entry).filter(|piece| match piece.source {
            Source::Leaf(leaf) => !checkout.have.has(leaf),
            Source::Inline(_) => false,
        });
        if selected { pieces.count() as u32 } else { 0 }
    };
    (0..manifest.entries().len() as u32).map(|entry| AtomicU32::new(missing(entry))).collect()
}

/// Fails if what is still missing does not fit, and leaves nothing new behind then.
fn check_space(checkout: &Checkout, in_place: u64) -> Result<(), CheckoutError> {
    let open = checkout.targets.iter().filter(|target| !target.done);
    let sizes = open.clone().flat_map(|target| target.plan.first..target.plan.end).map(|entry| {
        match kind_of(&checkout.manifest, entry) {
            Some(EntryKind::File { size, .. }) => *size,
            _ => 0,
        }
    });
    let needed = sizes.fold(0_u64, u64::saturating_add).saturating_sub(in_place);
    let Some(free) = free_bytes(&checkout.parent).filter(|free| *free < needed) else { return Ok(()) };
    for target in open.clone().filter(|target| !target.resumed) {
        let removed = if target.plan.tree {
            checkout.parent.remove_dir(&target.part)
        } else {
            checkout.parent.remove_file(&target.part)
        };
        if let Err(error) = removed {
            tracing::warn!(path = %target.at.display(), %error, "an empty partial destination stays behind");
        }
    }
    let path = open.clone().next().map_or_else(|| checkout.dir.clone(), |target| target.dest.clone());
    Err(CheckoutError::NoSpace { path, needed, free })
}

/// Bytes that this user may still write where `dir` is; `None` where the file system does not say.
pub(super) fn free_bytes(dir: &Dir) -> Option<u64> {
    disk_space(dir).map(|(free, _)| free)
}

/// The same, and the size of the disk.
fn disk_space(dir: &Dir) -> Option<(u64, u64)> {
    #[cfg(unix)]
    {
        let stat = rustix::fs::fstatvfs(dir).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        // A tmpfs without a limit reports no blocks at all.
        (stat.f_blocks > 0).then(|| (bytes(stat.f_bavail), bytes(stat.f_blocks)))
    }
    #[cfg(not(unix))]
    {
        let _: &Dir = dir;
        None
    }
}

/// Makes all directories, so that writers find them.
fn make_directories(checkout: &Checkout) -> Result<(), CheckoutError> {
    for target in checkout.targets.iter().filter(|target| !target.done) {
        for entry in target.plan.first + 1..target.plan.end {
            if matches!(kind_of(&checkout.manifest, entry), Some(EntryKind::Dir)) {
                let rel = target.plan.rel(&checkout.manifest, entry);
                let made = target.ground.make_dir(rel);
                made.map_err(|source| checkout.failed("create", target.path(rel), source))?;
            }
        }
    }
    Ok(())
}

/// Writes what the nodes of a foreign DAG hold themselves; no leaf will bring it.
fn write_inline(checkout: &Checkout) -> Result<(), CheckoutError> {
    for target in checkout.targets.iter().filter(|target| !target.done) {
        for entry in target.plan.first..target.plan.end {
            for piece in checkout.manifest.pieces(entry) {
                if let Source::Inline(bytes) = piece.source {
                    checkout.write_piece(target, entry, bytes, piece.offset)?;
                }
            }
        }
    }
    Ok(())
}

/// Puts the root's record, unless that would make less of an earlier one: a share stays a share, and what is here as a
/// whole is not called incomplete because it is fetched to another place as well.
pub(super) fn record(checkout: &Checkout, complete: bool) -> Result<(), CheckoutError> {
    let root = checkout.manifest.root();
    checkout.store.put_root_after(root, |earlier| make_record(checkout, complete, earlier))?;
    Ok(())
}

/// See [`record`]. `None`: the earlier one stays.
fn make_record(checkout: &Checkout, complete: bool, earlier: Option<RootRecord>) -> Option<RootRecord> {
    let root = checkout.manifest.root();
    if let Some(earlier) = &earlier {
        if checkout.on_demand && (!complete || earlier.kind != RootKind::Cached) {
            return None;
        }
        let whole = earlier.complete && earlier.selection.is_none();
        let in_store = checkout.room.is_some();
        let superseded = complete
            && checkout.paths.is_empty()
            && match earlier.kind {
                RootKind::Shared => false,
                RootKind::Fetched => !in_store,
                RootKind::Cached => true,
            };
        if whole && !superseded {
            return None;
        }
    }
    let one = match &*checkout.targets {
        [one] => Some(one),
        _ => None,
    };
    let selected = checkout.targets.iter().flat_map(|target| target.plan.first..target.plan.end);
    let files = match checkout.room {
        Some(_) => checkout.manifest.file_count(),
        None => {
            selected.filter(|&entry| matches!(kind_of(&checkout.manifest, entry), Some(EntryKind::File { .. }))).count()
        }
    };
    Some(RootRecord {
        root,
        name: one.map_or(&checkout.name, |one| &one.plan.name).clone(),
        kind: if checkout.room.is_some() { RootKind::Cached } else { RootKind::Fetched },
        base: one.map(|one| one.base),
        path: match (&checkout.room, one) {
            (Some(_), _) => PathBuf::new(),
            (None, Some(one)) => one.dest.clone(),
            (None, None) => checkout.dir.clone(),
        },
        bytes: checkout.selection.bytes,
        files: files as u64,
        complete,
        pinned: earlier.as_ref().is_some_and(|earlier| earlier.pinned),
        // what somebody read a part of is not taken up again by itself
        provide: checkout.options.provide && (complete || !checkout.on_demand)
            || earlier.as_ref().is_some_and(|earlier| earlier.provide),
        created_unix: earlier.as_ref().map_or(checkout.options.created_unix, |earlier| earlier.created_unix),
        selection: (!checkout.paths.is_empty())
            .then(|| checkout.paths.iter().map(|path| path.as_str().to_owned()).collect()),
        expires_unix: checkout.options.expires_unix.or(earlier.as_ref().and_then(|earlier| earlier.expires_unix)),
        pinned_until_unix: earlier.as_ref().and_then(|earlier| earlier.pinned_until_unix),
        resume: earlier.and_then(|earlier| earlier.resume).filter(|_| !complete),
    })
}
