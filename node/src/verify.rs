//! A scrub in the foreground: the index, then every copy of every byte of roots, in the order of their files, then whatever
//! else the store holds. Reports which files are damaged, and has what is damaged fetched again where that is asked for.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use shoal_content::{EntryKind, Manifest, ShoalLink};
use shoal_store::{Checked, DamageKind, ReadError, RootRecord, Scrub, Scrubbed};
use shoal_transfer::FetchInto;

use crate::{
    Class, Event, Failure, Node, Root, blame,
    fetch::Wish,
    operation::Sink,
    rate::Rate,
    roots::{Rank, Roots, blocking},
};

/// Damaged files that are named for one root; the rest is counted.
const MAX_NAMED: usize = 10_000;

/// What was found wrong with one root.
struct Findings {
    bytes: u64,
    damaged: Vec<Damaged>,
    /// Its tree, if all of that is here.
    manifest: Option<Manifest>,
}

struct Damaged {
    path: String,
    bytes: u64,
    size: u64,
    why: String,
}

impl Roots {
    /// [`crate::Request::Verify`].
    pub(crate) async fn verify(self, sink: Sink, what: Option<String>, threads: usize) -> Result<(), Failure> {
        let (count, bad) = self.find_damage(&sink, what, threads).await?;
        damaged(count, bad.len())
    }

    /// Checks the index and reads roots again. Gives how many there were, and those that are damaged.
    async fn find_damage(
        &self,
        sink: &Sink,
        what: Option<String>,
        threads: usize,
    ) -> Result<(usize, Vec<RootRecord>), Failure> {
        let (all, begun_all, roots) = (what.is_none(), Instant::now(), self.clone());
        let rebuilt = blocking(move || roots.store.check_index().map_err(|error| blame::store(&error))).await?;
        if rebuilt {
            let message = "the index was damaged, and has been made anew".to_owned();
            sink.event(Event::Warning { message }).await?;
        }
        let roots = self.clone();
        let records = blocking(move || match what {
            Some(what) => roots.find(&what).map(|record| vec![record]),
            None => Ok(roots.records()?.into_iter().filter(|record| record.complete).collect()),
        })
        .await?;
        let (count, mut bad) = (records.len(), Vec::new());
        let mut scrubbed = Scrubbed { index_rebuilt: rebuilt, ..Scrubbed::default() };
        let mut checked = Checked::default();
        for record in records {
            let begun = Instant::now();
            let (roots, sink_there, there) = (self.clone(), sink.clone(), record.clone());
            let look = move || match check(&roots, &there, threads, &sink_there)? {
                // It may be that the index alone was damaged.
                (findings, mut read) if !findings.damaged.is_empty() => {
                    read.recovered = roots.store.recover(&there.root).map_err(|error| blame::store(&error))?;
                    if read.recovered == 0 {
                        return Ok((findings, read));
                    }
                    let (findings, again) = check(&roots, &there, threads, &sink_there)?;
                    read.add(&again);
                    Ok((findings, read))
                }
                sound => Ok(sound),
            };
            let (findings, read) = blocking(look).await?;
            scrubbed.add(&read);
            // Of a part of a root, not all of its leaves were read.
            if let Some(manifest) = findings.manifest.filter(|_| all && record.selection.is_none()) {
                manifest.leaves().iter().for_each(|leaf| checked.insert(&leaf.cid));
            }
            let bytes_damaged = findings.damaged.iter().map(|damaged| damaged.bytes).sum();
            let files_damaged = findings.damaged.len() as u64;
            let root = Root(record.root);
            for Damaged { path, bytes, size, why } in findings.damaged.into_iter().take(MAX_NAMED) {
                sink.event(Event::Damaged { root, path, bytes, size, why }).await?;
            }
            sink.event(Event::Verified {
                root,
                name: record.name.clone(),
                intact: files_damaged == 0,
                bytes: findings.bytes,
                bytes_damaged,
                files_damaged,
                seconds: begun.elapsed().as_secs_f64(),
            })
            .await?;
            if files_damaged > 0 {
                bad.push(record);
            }
        }
        if all {
            let (roots, sink_there) = (self.clone(), sink.clone());
            let rest = blocking(move || check_rest(&roots, checked, &sink_there)).await?;
            // A tree that went bad since its root was read.
            for (root, _) in &rest.damaged {
                let known = bad.iter().any(|record| record.root == *root);
                let roots = self.clone();
                let root = *root;
                let record = blocking(move || roots.store.root(&root).map_err(|error| blame::store(&error))).await?;
                bad.extend(record.filter(|_| !known));
            }
            scrubbed.add(&rest);
        } else {
            let store = self.store.clone();
            let commit = move || match store.read_only_reason() {
                None => store.commit().map_err(|error| blame::store(&error)),
                Some(_) => Ok(()),
            };
            blocking(commit).await?;
        }
        let Scrubbed { copies, bytes, bad: bad_copies, mended, recovered, .. } = scrubbed;
        sink.event(Event::Scrubbed {
            copies,
            bytes,
            bad: bad_copies,
            mended,
            recovered,
            seconds: begun_all.elapsed().as_secs_f64(),
        })
        .await?;
        Ok((count, bad))
    }
}

/// Reads what no root that was checked reaches, trees and what fetches under way have brought among it. Blocks.
fn check_rest(roots: &Roots, skip: Checked, sink: &Sink) -> Result<Scrubbed, Failure> {
    let options = Scrub { skip, ..Scrub::default() };
    let mut rate = Rate::new(Instant::now(), 0);
    let mut progress = |done: &Scrubbed| {
        if sink.is_cancelled() {
            options.cancel.store(true, Ordering::Relaxed);
        }
        if rate.update(Instant::now(), done.bytes) {
            sink.progress(Event::Verifying { root: None, bytes_done: done.bytes, bytes_total: done.bytes_total });
        }
    };
    match roots.store.scrub(&options, &mut progress) {
        Err(_) if sink.is_cancelled() => Err(Failure::interrupted()),
        ended => ended.map_err(|error| blame::store(&error)),
    }
}

impl Node {
    /// [`crate::Request::Verify`] with repair: what is damaged is fetched again, into the store; the user's files stay as
    /// they are.
    pub(crate) async fn repair(&self, sink: Sink, what: Option<String>, threads: usize) -> Result<(), Failure> {
        let (count, bad) = self.roots().find_damage(&sink, what.clone(), threads).await?;
        let mut still = 0;
        for record in bad {
            // A link may name peers that have it.
            let link = what.clone().filter(|what| what.parse::<ShoalLink>().is_ok());
            self.fetch(sink.clone(), repair_of(&record, link, Rank::Command)).await?;
            let again = self.roots().find_damage(&sink, Some(record.root.to_string()), threads).await?;
            still += again.1.len();
        }
        damaged(count, still)
    }
}

/// The fetch that repairs a root.
pub(crate) fn repair_of(record: &RootRecord, link: Option<String>, rank: Rank) -> Wish {
    Wish {
        link: link.unwrap_or_else(|| record.root.to_string()),
        paths: record.selection.clone().unwrap_or_default(),
        dir: record.path.clone(),
        symlinks: false,
        stay: false,
        into: FetchInto::Repair,
        ttl_seconds: None,
        rank,
    }
}

fn damaged(count: usize, bad: usize) -> Result<(), Failure> {
    if bad == 0 {
        return Ok(());
    }
    let message = format!("{bad} of {count} roots are damaged");
    let hint = "share what you changed again, or `shoal verify --repair` to fetch from others what is damaged";
    Err(Failure::new(Class::Content, message, hint))
}

/// Reads one root on several threads. Blocks.
fn check(roots: &Roots, record: &RootRecord, threads: usize, sink: &Sink) -> Result<(Findings, Scrubbed), Failure> {
    let root = Root(record.root);
    let whole = |why: String| {
        let (path, bytes) = (record.path.display().to_string(), record.bytes);
        let damaged = vec![Damaged { path, bytes, size: bytes, why }];
        (Findings { bytes: 0, damaged, manifest: None }, Scrubbed::default())
    };
    let manifest = match roots.store.manifest(&record.root) {
        Ok(manifest) => manifest,
        Err(error) => return Ok(whole(error.to_string())),
    };
    let paths: Result<Vec<_>, _> = record.selection.iter().flatten().map(|path| path.parse()).collect();
    let paths = paths.map_err(|error| Failure::internal(format!("the record of {root} holds a bad path: {error}")))?;
    let selection = match manifest.select(&paths) {
        Ok(selection) => selection,
        Err(error) => return Ok(whole(error.to_string())),
    };
    let total = selection
        .leaves
        .iter()
        .filter_map(|&leaf| manifest.leaves().get(leaf as usize))
        .map(|leaf| u64::from(leaf.len))
        .sum();

    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let bad = Mutex::new(BTreeMap::<u32, String>::new());
    let rate = Mutex::new(Rate::new(Instant::now(), 0));
    let worker = || -> Result<Scrubbed, Failure> {
        let mut scrubbed = Scrubbed::default();
        while let Some(&index) = selection.leaves.get(next.fetch_add(1, Ordering::Relaxed)) {
            if sink.is_cancelled() {
                return Err(Failure::interrupted());
            }
            let Some(leaf) = manifest.leaves().get(index as usize) else { continue };
            match roots.store.check_block(&leaf.cid, &mut scrubbed) {
                Ok(()) => {}
                Err(error @ ReadError::Store(_)) => return Err(blame::read(&error)),
                Err(error) => {
                    let why = why(&error);
                    bad.lock().unwrap_or_else(PoisonError::into_inner).insert(index, why);
                }
            }
            let bytes_done = done.fetch_add(u64::from(leaf.len), Ordering::Relaxed) + u64::from(leaf.len);
            if rate.lock().unwrap_or_else(PoisonError::into_inner).update(Instant::now(), bytes_done) {
                sink.progress(Event::Verifying { root: Some(root), bytes_done, bytes_total: total });
            }
        }
        Ok(scrubbed)
    };
    let scrubbed = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.clamp(1, 16)).map(|_| scope.spawn(worker)).collect();
        let mut result = worker();
        for other in others {
            let other = other.join().unwrap_or_else(|_| Err(Failure::internal("a verifying thread panicked")));
            result = result.and_then(|mut all| other.map(|more| all.add(&more)).map(|()| all));
        }
        result
    })?;
    let bad = bad.into_inner().unwrap_or_else(PoisonError::into_inner);
    let damaged = files(&manifest, record, &bad);
    Ok((Findings { bytes: total, damaged, manifest: Some(manifest) }, scrubbed))
}

/// From chunks to the files they belong to.
fn files(manifest: &Manifest, record: &RootRecord, bad: &BTreeMap<u32, String>) -> Vec<Damaged> {
    let mut files = BTreeMap::<u32, Damaged>::new();
    for (&leaf, why) in bad {
        let len = manifest.leaves().get(leaf as usize).map_or(0, |leaf| leaf.len);
        for place in manifest.places(leaf) {
            let Some(entry) = manifest.entries().get(place.entry as usize) else { continue };
            let EntryKind::File { size, .. } = entry.kind else { continue };
            let damaged = files.entry(place.entry).or_insert_with(|| {
                let path = match entry.path.is_root() {
                    true => record.path.display().to_string(),
                    false => entry.path.as_str().to_owned(),
                };
                Damaged { path, bytes: 0, size, why: why.clone() }
            });
            damaged.bytes += u64::from(len);
        }
    }
    files.into_values().collect()
}

fn why(error: &ReadError) -> String {
    match error {
        ReadError::Missing(_) => "not there, or found damaged before".to_owned(),
        ReadError::Damaged { at, .. } => what_is_wrong(at.kind).to_owned(),
        other => other.to_string(),
    }
}

/// How a file turned out to be bad, in words.
pub(crate) fn what_is_wrong(kind: DamageKind) -> &'static str {
    match kind {
        DamageKind::Vanished => "the file is gone",
        DamageKind::Short => "the file is too short",
        DamageKind::Mismatch => "the file holds other bytes",
    }
}
