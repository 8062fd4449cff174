//! What a node does by itself: serving the roots it has, taking up unfinished fetches, telling of damage.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use shoal_content::ShoalLink;
use shoal_store::{RootKind, RootRecord, Scrub, Scrubbed, Store};
use shoal_transfer::FetchInto;
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;

use crate::{
    Class, Node, ScrubProgress,
    announce::Change,
    blame::{self, Shortage},
    fetch::{Again, Wish},
    home::free_bytes,
    roots::{Rank, blocking},
    share::now_unix,
    verify::{self, repair_of},
};

/// How often the store is asked for files that turned out to be damaged.
const LOOK_FOR_DAMAGE: Duration = Duration::from_secs(1);
/// Warnings that wait for a slow reader.
pub(crate) const QUEUED_WARNINGS: usize = 64;
/// Pause before an unfinished fetch that found nobody is tried again; doubles up to [`RESUME_LATEST`].
const RESUME_AGAIN: Duration = Duration::from_secs(30);
/// Longest such pause.
const RESUME_LATEST: Duration = Duration::from_secs(1800);
/// How often it is asked whether garbage should be collected.
const LOOK_FOR_GARBAGE: Duration = Duration::from_secs(10);
/// Garbage is collected at least this often.
const COLLECT_EVERY: Duration = Duration::from_secs(3600);
/// Rest of the collector between two batches, so that others have the disk most of the time.
const COLLECT_PAUSE: Duration = Duration::from_millis(5);
/// How often it is asked whether there is space again for a fetch that ended for want of it.
const LOOK_FOR_SPACE: Duration = Duration::from_secs(1);
/// So much more space is worth another try of it, in bytes.
const WORTH_A_TRY_BYTES: u64 = 1 << 20;
/// First and longest pause before it is asked whether there are file descriptors again for a fetch that ended for want of
/// them: who took them may give them back just to take them again.
const LOOK_FOR_DESCRIPTORS: Duration = Duration::from_secs(1);
const LOOK_FOR_DESCRIPTORS_LATEST: Duration = Duration::from_secs(8);
/// So many free ones are worth another try of it.
const WORTH_A_TRY_DESCRIPTORS: usize = 16;
const SCRUB_AFTER_START: Duration = Duration::from_secs(60);
const LOOK_WHETHER_TO_SCRUB: Duration = Duration::from_secs(3600);
/// Unfinished fetches that a daemon takes up at the same time.
const RESUMED_AT_ONCE: usize = 4;

impl Node {
    /// Serves and announces, in the background, every complete root that this home is to provide.
    pub fn serve_known(&self) {
        let node = self.clone();
        self.in_background(async move { node.serve_all().await });
    }

    /// Takes up, in the background, every fetch that is not complete.
    pub fn resume_fetches(&self) {
        let node = self.clone();
        self.in_background(async move { node.resume_all().await });
    }

    async fn serve_all(&self) {
        let roots = self.roots().clone();
        let records = match blocking(move || roots.records()).await {
            Ok(records) => records,
            Err(failure) => return tracing::error!(%failure, "cannot list the roots to serve"),
        };
        for record in records.iter().filter(|record| record.complete && record.provide) {
            if !self.roots().set_serving(record.root, true) {
                continue;
            }
            match self.transfer().seed(record.root).await {
                Ok(()) => self.announce(record.root, Change::Announce).await,
                Err(error) => {
                    self.roots().set_serving(record.root, false);
                    tracing::warn!(root = %record.root, name = ?record.name, %error, "not served");
                }
            }
        }
    }

    async fn resume_all(&self) {
        let roots = self.roots().clone();
        let records = match blocking(move || roots.records()).await {
            Ok(records) => records,
            Err(failure) => return tracing::error!(%failure, "cannot list the fetches to resume"),
        };
        // Unsharing one says that it is not wanted any more.
        let wanted = |record: &&RootRecord| record.kind != RootKind::Shared && !record.complete && record.provide;
        let unfinished = records.iter().filter(wanted);
        let places = Semaphore::new(RESUMED_AT_ONCE);
        let resumed = unfinished.filter_map(fetch_again).map(|wish| self.resume(wish, None, &places));
        futures::future::join_all(resumed).await;
    }

    /// Takes up one fetch in the background, as soon as there is what it lacked.
    pub(crate) fn resume_fetch(&self, wish: Wish, lacked: Option<Shortage>) {
        let node = self.clone();
        self.in_background(async move { node.resume(wish, lacked, &Semaphore::new(1)).await });
    }

    /// Takes up one fetch, and again while there is nobody to fetch it from, or something is lacking for it.
    async fn resume(&self, wish: Wish, mut lacked: Option<Shortage>, places: &Semaphore) {
        let (mut pause, mut short) = (RESUME_AGAIN, LOOK_FOR_DESCRIPTORS);
        loop {
            match lacked {
                None => {}
                Some(Shortage::Space) => self.wait_for_space(&wish.dir).await,
                Some(Shortage::Descriptors) => {
                    wait_for_descriptors(short).await;
                    short = (short * 2).min(LOOK_FOR_DESCRIPTORS_LATEST);
                }
            }
            let Ok(place) = places.acquire().await else { return };
            let (node, again) = (self.clone(), wish.clone());
            let (why, ended) = tokio::sync::oneshot::channel();
            let mut operation = self.operation(move |sink| async move {
                node.try_fetch(sink, again).await.map_err(|stop| {
                    // whoever waits for the failure reads it; at shutdown nobody does
                    let _gone = why.send(stop.shortage());
                    stop.into()
                })
            });
            let failure = loop {
                match operation.next().await {
                    Ok(Some(event)) => tracing::debug!(?event, "resumed fetch"),
                    Ok(None) => return,
                    Err(failure) => break failure,
                }
            };
            drop(place);
            tracing::info!(%failure, "a resumed fetch ended");
            lacked = ended.await.unwrap_or(None);
            match failure.class {
                _ if lacked.is_some() => {}
                Class::NoProvider => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RESUME_LATEST);
                }
                _ => return,
            }
        }
    }
}

/// Waits until some file descriptors are free, looking for them after each `pause`.
async fn wait_for_descriptors(pause: Duration) {
    loop {
        tokio::time::sleep(pause).await;
        let free =
            || (0..WORTH_A_TRY_DESCRIPTORS).map(|_| std::fs::File::open(".")).collect::<Result<Vec<_>, _>>().is_ok();
        match tokio::task::spawn_blocking(free).await {
            Ok(false) => {}
            Ok(true) | Err(_) => return,
        }
    }
}

/// Tells work that blocks to end when nobody waits for it any more.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Node {
    /// Waits until there is more space at a destination, or where the store is, than there was.
    async fn wait_for_space(&self, dir: &Path) {
        let at = [dir.to_owned(), self.roots().store.dir().to_owned()];
        let mut least = [u64::MAX; 2];
        loop {
            let paths = at.clone();
            let free = blocking(move || Ok(paths.map(|path| free_bytes(&path).unwrap_or(0)))).await;
            let Ok(free) = free else { return };
            for (least, free) in least.iter_mut().zip(free) {
                *least = free.min(*least);
            }
            if free.iter().zip(least).any(|(free, least)| *free >= least + WORTH_A_TRY_BYTES) {
                return;
            }
            tokio::time::sleep(LOOK_FOR_SPACE).await;
        }
    }
}

/// Looks for rot once in a while, at a gentle pace, and repairs what it finds.
pub(crate) async fn scrub_now_and_then(node: Node) {
    loop {
        let last = node.home().last_scrub().unwrap_or(0);
        let (rate, every) = (node.config().settings().scrub_bytes_per_second, node.config().settings().scrub_every);
        if rate == 0 {
            return;
        }
        if now_unix().saturating_sub(last) < every.as_secs() {
            tokio::time::sleep(LOOK_WHETHER_TO_SCRUB.min(every)).await;
            continue;
        }
        // Let what the daemon was started for come first.
        tokio::time::sleep(SCRUB_AFTER_START.min(every)).await;
        let store = node.roots().store.clone();
        let options = Scrub { resume: true, ..Scrub::default() };
        let _stop = StopOnDrop(options.cancel.clone());
        let roots = node.roots().clone();
        let scrubbed = blocking(move || {
            let (begun, cancel) = (Instant::now(), options.cancel.clone());
            let mut pace = |done: &Scrubbed| {
                let (bytes_done, bytes_total, bad) = (done.bytes, done.bytes_total, done.bad);
                roots.set_scrub(Some(ScrubProgress { bytes_done, bytes_total, bad }));
                let due = Duration::from_secs_f64(done.bytes as f64 / rate as f64);
                while let Some(rest) = due.checked_sub(begun.elapsed()).filter(|_| !cancel.load(Ordering::Relaxed)) {
                    std::thread::sleep(rest.min(Duration::from_millis(100)));
                }
            };
            let ended = store.scrub(&options, &mut pace).map_err(|error| blame::store(&error));
            roots.set_scrub(None);
            ended
        });
        match scrubbed.await {
            Ok(found) => {
                tracing::info!(?found, "looked for rot");
                node.home().remember_scrub(now_unix());
                node.repair_damaged(found.damaged).await;
            }
            Err(failure) => {
                tracing::warn!(%failure, "cannot look for rot");
                tokio::time::sleep(LOOK_WHETHER_TO_SCRUB).await;
            }
        }
    }
}

impl Node {
    async fn repair_damaged(&self, damaged: Vec<(shoal_content::Cid, u64)>) {
        for (root, blocks) in damaged {
            let roots = self.roots().clone();
            let record = blocking(move || roots.store.root(&root).map_err(|error| blame::store(&error))).await;
            let Ok(Some(record)) = record else { continue };
            tracing::warn!(%root, blocks, name = ?record.name, "blocks are damaged; fetching them again");
            self.resume_fetch(repair_of(&record, None, Rank::Resumed), None);
        }
    }
}

/// Gives space back when there is a reason to: something has expired, or cached content fills its part of the quota; and
/// now and then in any case.
pub(crate) async fn collect_now_and_then(node: Node) {
    let mut last = Instant::now();
    loop {
        tokio::time::sleep(LOOK_FOR_GARBAGE).await;
        let roots = node.roots().clone();
        let due = blocking(move || Ok(roots.is_collection_due())).await.unwrap_or(false);
        if !due && last.elapsed() < COLLECT_EVERY {
            continue;
        }
        last = Instant::now();
        let cancel = Arc::new(AtomicBool::new(false));
        // Dropped at shutdown, and the collection ends soon after.
        let _stop = StopOnDrop(cancel.clone());
        match node.roots().clone().collect(COLLECT_PAUSE, false, cancel).await {
            Ok(collected) => {
                tracing::debug!(?collected, "collected garbage");
                node.stop_serving(collected.expired.into_iter().chain(collected.evicted).collect()).await;
            }
            Err(failure) => tracing::warn!(%failure, "garbage was not collected"),
        }
    }
}

/// Sentences about what goes wrong while a node serves.
#[derive(Debug)]
pub struct Warnings(broadcast::Receiver<String>);

impl Warnings {
    pub(crate) fn new(receiver: broadcast::Receiver<String>) -> Self {
        Warnings(receiver)
    }

    /// The next one; waits for ever when there are no more. A reader that is far behind loses the oldest. Cancel-safe.
    pub async fn next(&mut self) -> String {
        loop {
            match self.0.recv().await {
                Ok(warning) => return warning,
                Err(broadcast::error::RecvError::Lagged(lost)) => tracing::warn!(lost, "warnings were lost"),
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

/// That nothing can be promised any more, and why, if that is so.
pub(crate) fn read_only(store: &Store) -> Option<String> {
    let reason = store.read_only_reason()?;
    Some(format!(
        "nothing can be shared, fetched or pinned any more, since {reason}; check the disk, then restart shoal"
    ))
}

/// Tells of files that are no longer what was shared. Their chunks are not served any more.
pub(crate) async fn watch_damage(store: Store, warnings: broadcast::Sender<String>, stop: CancellationToken) {
    let mut look = tokio::time::interval(LOOK_FOR_DAMAGE);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let tell = |warning: String| {
        tracing::warn!("{warning}");
        if warnings.send(warning).is_err() {
            tracing::debug!("nobody listens to warnings");
        }
    };
    if let Some(why) = store.rebuilt() {
        tell(format!("the index was made anew, since {why}"));
    }
    let mut read_only_told = false;
    loop {
        tokio::select! {
            _ = look.tick() => {}
            () = stop.cancelled() => return,
        }
        if let Some(sentence) = read_only(&store).filter(|_| !read_only_told) {
            read_only_told = true;
            tell(sentence);
        }
        for damage in store.take_damage() {
            let (path, why) = (damage.path.display(), verify::what_is_wrong(damage.kind));
            let what_to_do = match damage.in_pack {
                true => "check the disk, then `shoal verify`",
                false => "share it again, or fetch it again",
            };
            tell(format!("{path} is not served as it was: {why}; {what_to_do}"));
        }
    }
}

/// What a fetch was started with, from its record.
fn fetch_again(record: &RootRecord) -> Option<Wish> {
    let cached = record.kind == RootKind::Cached;
    let several = record.selection.as_ref().is_some_and(|paths| paths.len() > 1);
    let dir = if several || cached { record.path.as_path() } else { record.path.parent()? };
    let again = record.resume.as_ref().and_then(|text| serde_json::from_str::<Again>(text).ok());
    let symlinks = again.as_ref().is_some_and(|again| again.symlinks);
    let mut link = again.and_then(|again| again.link.parse().ok()).unwrap_or_else(|| ShoalLink::new(record.root));
    if record.selection.is_none() {
        link.name = Some(record.name.clone());
    }
    Some(Wish {
        link: link.to_string(),
        paths: record.selection.clone().unwrap_or_default(),
        dir: dir.to_owned(),
        symlinks,
        stay: false,
        into: if cached { FetchInto::Cache } else { FetchInto::Dir },
        ttl_seconds: None,
        rank: Rank::Resumed,
    })
}
