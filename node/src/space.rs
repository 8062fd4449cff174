//! The store's space: collecting garbage, evicting, and saying where it goes. Which block goes is the store's to know.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use shoal_store::{Collect, Collected, RootKind, RootRecord};

use crate::{
    Event, Failure, Node, Root, blame,
    home::free_bytes,
    operation::Sink,
    roots::{Roots, blocking},
    share::now_unix,
};

impl Roots {
    /// [`crate::Request::Collect`]. Gives the roots that are gone.
    pub(crate) async fn collect_for(self, sink: Sink) -> Result<Vec<RootRecord>, Failure> {
        let begun = Instant::now();
        let cancel = Arc::new(AtomicBool::new(false));
        let done = {
            let mut work = std::pin::pin!(self.collect(Duration::ZERO, true, cancel.clone()));
            tokio::select! {
                done = &mut work => done?,
                () = sink.cancelled() => {
                    cancel.store(true, Ordering::Relaxed);
                    work.await?
                }
            }
        };
        let names = |records: &[RootRecord]| records.iter().map(|record| record.name.clone()).collect();
        sink.event(Event::Collected(crate::Collected {
            bytes_freed: done.bytes_before.saturating_sub(done.bytes_after),
            bytes_moved: done.bytes_moved,
            blocks: done.blocks,
            packs: done.packs,
            evicted: names(&done.evicted),
            expired: names(&done.expired),
            unpinned: names(&done.unpinned),
            damaged: done.damaged.iter().copied().map(Root).collect(),
            seconds: begun.elapsed().as_secs_f64(),
        }))
        .await?;
        Ok(done.expired.into_iter().chain(done.evicted).collect())
    }

    /// Collects garbage, with a pause between its steps. Not cancelled when dropped: it runs to its end.
    pub(crate) async fn collect(
        self,
        pause: Duration,
        thorough: bool,
        cancel: Arc<AtomicBool>,
    ) -> Result<Collected, Failure> {
        let options = Collect { now_unix: now_unix(), thorough, pause, cancel, ..Collect::default() };
        blocking(move || self.store.collect(&options).map_err(|error| blame::store(&error))).await
    }

    /// Whether something has expired, or cached content takes more than it may. Blocks on the disk.
    pub(crate) fn is_collection_due(&self) -> bool {
        let (used, limit) = self.store.fill();
        let now = now_unix();
        let over = |at: Option<u64>| at.is_some_and(|at| at <= now);
        let is_over = |record: &RootRecord| match record.pinned {
            true => over(record.pinned_until_unix),
            false => over(record.expires_unix),
        };
        let may_go = |record: &RootRecord| record.kind == RootKind::Cached && !record.pinned;
        self.records()
            .is_ok_and(|records| records.iter().any(|record| is_over(record) || used > limit && may_go(record)))
    }

    /// [`crate::Request::Space`]; with when the last scrub was done.
    pub(crate) async fn space(self, sink: Sink, scrubbed_unix: Option<u64>) -> Result<(), Failure> {
        let space = blocking(move || {
            let space = self.store.space().map_err(|error| blame::store(&error))?;
            let in_place = self
                .records()?
                .iter()
                .filter(|record| record.kind != RootKind::Cached)
                .map(|record| record.bytes)
                .sum();
            Ok(crate::Space {
                quota: space.quota,
                used: space.index + space.packs,
                index: space.index,
                kept: space.kept,
                cached: space.cached,
                garbage: space.garbage,
                in_place,
                free: free_bytes(self.store.dir()),
                scrub: self.scrub(),
                scrubbed_unix,
            })
        })
        .await?;
        sink.event(Event::Space(space)).await
    }
}

impl Node {
    /// Roots that are gone are not served any more either.
    pub(crate) async fn stop_serving(&self, gone: Vec<RootRecord>) {
        for record in gone {
            self.transfer().unseed(record.root).await;
            self.roots().set_serving(record.root, false);
            self.withdraw(record.root).await;
        }
    }
}
