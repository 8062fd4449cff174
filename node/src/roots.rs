//! The roots of a home: looking them up by what people call them, listing, pinning. Needs the store and no network.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use shoal_content::{Cid, EntryKind, ShoalLink};
use shoal_store::{RootKind, RootRecord, Store};
use tokio_util::sync::CancellationToken;

use crate::{Class, EntryInfo, Event, Failure, Root, RootInfo, ScrubProgress, blame, operation::Sink, share::now_unix};

/// A prefix of a CID counts from this many characters: `bafk` and `bafy` say nothing yet.
const MIN_PREFIX: usize = 10;

/// The roots of an open store, and what is served of them.
#[derive(Clone, Debug)]
pub(crate) struct Roots {
    pub(crate) store: Store,
    serving: Arc<Mutex<BTreeSet<Cid>>>,
    fetching: Fetching,
    /// The scrub that a daemon has under way.
    scrub: Arc<Mutex<Option<ScrubProgress>>>,
    /// Addresses for links; none without a running node.
    via: Arc<dyn Via>,
}

/// Who wants a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rank {
    /// Somebody who waits for it.
    Command,
    /// A daemon that found it unfinished.
    Resumed,
}

/// Why a root cannot be claimed.
#[derive(Debug)]
pub(crate) enum Taken {
    /// Somebody waits for the other fetch.
    ByCommand(Failure),
    /// The other fetch has been told to make way, and soon will have.
    MakesWay(Failure),
}

/// Fetches under way, and how each is ended.
type Fetching = Arc<Mutex<BTreeMap<Cid, (Rank, CancellationToken)>>>;

/// The right to fetch a root.
#[derive(Debug)]
pub(crate) struct Claim {
    root: Cid,
    fetching: Fetching,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.fetching.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.root);
    }
}

/// Where links point to.
pub(crate) trait Via: Send + Sync + std::fmt::Debug + 'static {
    /// Multiaddrs with `/p2p/<us>`.
    fn addrs(&self) -> Vec<String>;
}

/// No node runs.
#[derive(Debug)]
pub(crate) struct Nowhere;

impl Via for Nowhere {
    fn addrs(&self) -> Vec<String> {
        Vec::new()
    }
}

impl Roots {
    pub(crate) fn new(store: Store, via: Arc<dyn Via>) -> Self {
        Roots { store, serving: Arc::default(), fetching: Arc::default(), scrub: Arc::default(), via }
    }

    /// Notes that a root is served, or no longer; true if that is news.
    pub(crate) fn set_serving(&self, root: Cid, on: bool) -> bool {
        let mut serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        if on { serving.insert(root) } else { serving.remove(&root) }
    }

    pub(crate) fn serving(&self) -> BTreeSet<Cid> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes how far a scrub is; `None` when it has ended.
    pub(crate) fn set_scrub(&self, progress: Option<ScrubProgress>) {
        *self.scrub.lock().unwrap_or_else(PoisonError::into_inner) = progress;
    }

    pub(crate) fn scrub(&self) -> Option<ScrubProgress> {
        *self.scrub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a root to fetch it, until the claim is dropped. `cancel` ends the fetch, should it have to make way.
    pub(crate) fn claim(&self, root: Cid, rank: Rank, cancel: &CancellationToken) -> Result<Claim, Taken> {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((there, its_cancel)) = fetching.get(&root) {
            let message = format!("{root} is being fetched already, by another command on this home");
            let failure = Failure::new(Class::Exists, message, "wait for that to end, then run this again");
            if *there == Rank::Command || rank == Rank::Resumed {
                return Err(Taken::ByCommand(failure));
            }
            its_cancel.cancel();
            return Err(Taken::MakesWay(failure));
        }
        fetching.insert(root, (rank, cancel.clone()));
        Ok(Claim { root, fetching: self.fetching.clone() })
    }

    /// The addresses that links of this node carry.
    pub(crate) fn addrs(&self) -> Vec<String> {
        self.via.addrs()
    }

    /// The link to a root.
    pub(crate) fn link(&self, root: Cid, name: &str, bytes: u64) -> ShoalLink {
        let name = (!name.is_empty()).then(|| name.to_owned());
        ShoalLink { name, size: Some(bytes), via: self.via.addrs(), ..ShoalLink::new(root) }
    }

    /// All records. Blocks on the disk.
    pub(crate) fn records(&self) -> Result<Vec<RootRecord>, Failure> {
        let mut records = self.store.roots().map_err(|error| blame::store(&error))?;
        records.sort_by(|a, b| (&a.name, a.root).cmp(&(&b.name, b.root)));
        Ok(records)
    }

    /// The root that people mean: by link, CID, the beginning of a CID, name, or path. Blocks on the disk.
    pub(crate) fn find(&self, what: &str) -> Result<RootRecord, Failure> {
        let shown = what.escape_debug();
        let unknown = || {
            let message = format!("no root \"{shown}\" is in this home");
            Failure::new(Class::NotFound, message, "`shoal ls` lists the roots that are")
        };
        if let Ok(link) = what.parse::<ShoalLink>() {
            return self.store.root(&link.root).map_err(|error| blame::store(&error))?.ok_or_else(unknown);
        }
        let records = self.records()?;
        let mut found = records.into_iter().filter(|record| {
            record.name == what
                || record.path == Path::new(what)
                || what.len() >= MIN_PREFIX && record.root.to_string().starts_with(what)
        });
        match (found.next(), found.next()) {
            (Some(record), None) => Ok(record),
            (None, _) => Err(unknown()),
            (Some(first), Some(second)) => {
                let message = format!("\"{shown}\" may mean {} or {}", first.root, second.root);
                Err(Failure::new(Class::Usage, message, "name it by its CID, which `shoal ls` prints"))
            }
        }
    }

    /// A record for people.
    pub(crate) fn info(&self, record: &RootRecord) -> RootInfo {
        let kind = match record.kind {
            RootKind::Shared => "shared",
            RootKind::Fetched => "fetched",
            RootKind::Cached => "cached",
        };
        RootInfo {
            root: Root(record.root),
            name: record.name.clone(),
            kind: kind.to_owned(),
            path: record.path.display().to_string(),
            bytes: record.bytes,
            files: record.files,
            complete: record.complete,
            pinned: record.pinned,
            provide: record.provide,
            serving: self.serving().contains(&record.root),
            created_unix: record.created_unix,
            expires_unix: record.expires_unix,
            pinned_until_unix: record.pinned_until_unix,
            selection: record.selection.clone(),
            link: self.link(record.root, &record.name, record.bytes).to_string(),
        }
    }

    /// [`crate::Request::List`].
    pub(crate) async fn list(self, sink: Sink) -> Result<(), Failure> {
        let roots = self.clone();
        for record in blocking(move || roots.records()).await? {
            sink.event(Event::Root(self.info(&record))).await?;
        }
        Ok(())
    }

    /// [`crate::Request::Stat`].
    pub(crate) async fn stat(self, sink: Sink, what: String) -> Result<(), Failure> {
        let roots = self.clone();
        let record = blocking(move || roots.find(&what)).await?;
        sink.event(Event::Root(self.info(&record))).await?;
        let store = self.store.clone();
        let manifest =
            match blocking(move || store.manifest(&record.root).map_err(|error| blame::manifest(&error))).await {
                Ok(manifest) => manifest,
                // Its tree is not all here yet, which the record says as well.
                Err(_) if !record.complete => return Ok(()),
                Err(failure) => return Err(failure),
            };
        for entry in manifest.entries() {
            let path = entry.path.as_str().to_owned();
            let entry = match &entry.kind {
                EntryKind::Dir => entry_info(path, "dir", 0, false, None),
                EntryKind::File { size, executable, .. } => entry_info(path, "file", *size, *executable, None),
                EntryKind::Symlink { target } => entry_info(path, "symlink", 0, false, Some(target.to_string())),
            };
            sink.event(Event::Entry(entry)).await?;
        }
        Ok(())
    }

    /// [`crate::Request::Pin`] and [`crate::Request::Unpin`].
    pub(crate) async fn pin(
        self,
        sink: Sink,
        what: String,
        pinned: bool,
        for_seconds: Option<u64>,
    ) -> Result<(), Failure> {
        let record = blocking(move || {
            let record = self.find(&what)?;
            let until = for_seconds.map(|seconds| now_unix().saturating_add(seconds));
            let change = |record: &mut RootRecord| (record.pinned, record.pinned_until_unix) = (pinned, until);
            self.store.update_root(&record.root, change).map_err(|error| blame::store(&error))?;
            Ok(record)
        })
        .await?;
        sink.event(Event::Pinned { root: Root(record.root), name: record.name, pinned }).await
    }

    /// Notes that a root is not to be served at the next start either, or forgets it. Says which.
    pub(crate) async fn unshare(&self, what: String, forget: bool) -> Result<RootRecord, Failure> {
        let roots = self.clone();
        blocking(move || {
            let record = roots.find(&what)?;
            let changed = match forget {
                true => roots.store.remove_root(&record.root),
                false => roots.store.update_root(&record.root, |record| record.provide = false),
            };
            changed.map_err(|error| blame::store(&error))?;
            Ok(record)
        })
        .await
    }
}

fn entry_info(path: String, kind: &str, size: u64, executable: bool, target: Option<String>) -> EntryInfo {
    EntryInfo { path, kind: kind.to_owned(), size, executable, target }
}

/// Work that blocks on the disk, off the threads that must not. Not cancelled when dropped: it runs to its end.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failure::internal(format!("work on the disk was lost: {error}"))),
    }
}
