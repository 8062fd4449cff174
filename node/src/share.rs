//! Sharing: a path is read and hashed where it lies, served, and announced.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use shoal_content::SHOAL_V1;
use shoal_store::{ImportEvent, ImportOptions, Imported, Store};

use crate::{
    BytePath, Event, Failure, Importing, Node, Root, Shared, announce::Change, blame, operation::Sink, rate::Rate,
    roots::blocking,
};

impl Node {
    /// [`crate::Request::Share`].
    pub(crate) async fn share(
        &self,
        sink: Sink,
        paths: Vec<BytePath>,
        stay: bool,
        ttl: Option<u64>,
        read_all: bool,
    ) -> Result<(), Failure> {
        // A typing error in the last path is found before the first one is read.
        for path in &paths {
            let path = path.as_path().to_owned();
            blocking(move || match std::fs::metadata(&path) {
                Ok(_) => Ok(()),
                Err(error) => Err(Failure::io("share", &path, &error)),
            })
            .await?;
        }
        for path in paths {
            let begun = Instant::now();
            let imported = self.import(&sink, path.0, ttl, read_all).await?;
            let root = imported.root;
            self.transfer().seed(root).await.map_err(|error| blame::seed(&error))?;
            self.roots().set_serving(root, true);
            if self.config().settings().listen.is_empty() && self.is_alone() {
                let message = "this machine has no network address now, so nobody else can use the link".to_owned();
                sink.event(Event::Warning { message }).await?;
            }
            sink.event(Event::Shared(Shared {
                link: self.roots().link(root, &imported.name, imported.bytes).to_string(),
                root: Root(root),
                name: imported.name,
                bytes: imported.bytes,
                files: imported.files,
                bytes_unread: imported.unread_bytes,
                files_unread: imported.unread_files,
                path: imported.path.display().to_string(),
                seconds: begun.elapsed().as_secs_f64(),
                peer: self.endpoint().peer_id().to_string(),
                pid: std::process::id(),
            }))
            .await?;
            self.announce(root, Change::Announce).await;
        }
        match stay {
            true => self.stay(&sink).await,
            false => Ok(()),
        }
    }

    /// Serves until it is cancelled, and passes on what goes wrong meanwhile.
    pub(crate) async fn stay(&self, sink: &Sink) -> Result<(), Failure> {
        let mut warnings = self.warnings();
        loop {
            tokio::select! {
                warning = warnings.next() => sink.event(Event::Warning { message: warning }).await?,
                () = sink.cancelled() => return Ok(()),
            }
        }
    }

    /// [`crate::Request::Unshare`].
    pub(crate) async fn unshare(&self, sink: Sink, what: String, forget: bool) -> Result<(), Failure> {
        let record = self.roots().unshare(what, forget).await?;
        let (root, name) = (Root(record.root), record.name.clone());
        self.stop_serving(vec![record]).await;
        sink.event(Event::Unshared { root, name, forgotten: forget }).await
    }

    /// Whether only this machine can reach us.
    fn is_alone(&self) -> bool {
        let reachable = |addr| shoal_net::from_multiaddr(addr).is_some_and(|(addr, _)| !addr.ip().is_loopback());
        !self.endpoint().listen_multiaddrs().iter().any(reachable)
    }

    async fn import(&self, sink: &Sink, path: PathBuf, ttl: Option<u64>, read_all: bool) -> Result<Imported, Failure> {
        let store = self.roots().store.clone();
        let created_unix = now_unix();
        let options = ImportOptions {
            threads: self.config().settings().import_threads,
            created_unix,
            expires_unix: ttl.map(|seconds| created_unix.saturating_add(seconds)),
            now: Some(SystemTime::now()),
            read_all,
            ..ImportOptions::default()
        };
        let cancel = Arc::new(AtomicBool::new(false));
        let mut work = {
            let (sink, cancel) = (sink.clone(), cancel.clone());
            std::pin::pin!(blocking(move || run_import(&store, &path, &options, &sink, &cancel)))
        };
        tokio::select! {
            imported = &mut work => return imported,
            () = sink.cancelled() => cancel.store(true, Ordering::Relaxed),
        }
        // It looks at the flag between chunks. If it was done already, the root stays, and so does its record.
        work.await?;
        Err(Failure::interrupted())
    }
}

fn run_import(
    store: &Store,
    path: &Path,
    options: &ImportOptions,
    sink: &Sink,
    cancel: &AtomicBool,
) -> Result<Imported, Failure> {
    let shown = path.display().to_string();
    let rate = Mutex::new(Rate::new(Instant::now(), 0));
    let totals = Mutex::new((0, 0));
    let progress = |event: ImportEvent| {
        let (files_done, bytes_done) = match event {
            ImportEvent::Reading { files, bytes } => (files, bytes),
            ImportEvent::Scanning { files, bytes } | ImportEvent::Scanned { files, bytes } => {
                *totals.lock().unwrap_or_else(PoisonError::into_inner) = (files, bytes);
                (0, 0)
            }
            _ => return,
        };
        let mut rate = rate.lock().unwrap_or_else(PoisonError::into_inner);
        if rate.update(Instant::now(), bytes_done) {
            let (files_total, bytes_total) = *totals.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes_per_second = rate.per_second();
            drop(rate);
            sink.progress(Event::Importing(Importing {
                path: shown.clone(),
                files_done,
                files_total,
                bytes_done,
                bytes_total,
                bytes_per_second,
            }));
        }
    };
    shoal_store::import(store, path, &SHOAL_V1, options, &progress, cancel).map_err(|error| blame::import(&error))
}

/// Seconds since the Unix epoch; 0 for a clock before it.
pub(crate) fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
