//! Reading a file while it comes: the handle, and the task that waits for leaves, reads them in order and hands them over.
//! How far it may read the hub says; how far the reader is, the hub hears. No leaf is chosen here.

use super::{Input, batch::Sink};
use crate::{
    api::{FetchError, ReadEvent, ReadReport, ReadRequest},
    swarm::ReaderIx,
};
use bytes::Bytes;
use shoal_content::{Cid, EntryKind, Manifest, Source};
use shoal_store::{Checkout, CheckoutError, Store};
use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

/// Stretches of bytes that wait for whoever reads; each is a leaf, or about [`RUN_BYTES`].
const EVENTS: usize = 4;
/// Leaves are read together up to about this many bytes.
const RUN_BYTES: u64 = 512 << 10;
/// Pause before a reader joins another fetch, and for how long it tries while an earlier one puts its things away.
const JOIN_AGAIN: Duration = Duration::from_millis(20);
const BUSY_FOR: Duration = Duration::from_secs(10);
/// Names that an error lists.
const MOST_NAMES: usize = 8;

/// A file that is read while it comes. Dropping it ends the reading, and the fetch, if that was for its sake.
#[derive(Debug)]
pub struct Reading {
    events: mpsc::Receiver<(u64, ReadEvent)>,
    place: watch::Sender<Place>,
}

/// Where to read on. Whatever was read for an earlier place is void.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    number: u64,
    offset: u64,
}

impl Reading {
    /// The next event; `None` after [`ReadEvent::Failed`]. After [`ReadEvent::End`] it waits for a seek. As long as nobody
    /// calls this, no more is fetched than the read-ahead holds. Cancel safe.
    pub async fn next(&mut self) -> Option<ReadEvent> {
        loop {
            let (number, event) = self.events.recv().await?;
            let old = number != self.place.borrow().number;
            if !old || matches!(event, ReadEvent::Failed(_) | ReadEvent::PeerDropped { .. } | ReadEvent::Opened { .. })
            {
                return Some(event);
            }
        }
    }

    /// Goes on reading at this offset in the file, to the end that the request named. Leaves that only the place left
    /// behind needed are not fetched any more.
    pub fn seek(&mut self, offset: u64) {
        self.place.send_modify(|place| *place = Place { number: place.number + 1, offset });
    }
}

/// What the hub tells a reader's task.
#[derive(Debug, Clone, Default)]
pub(super) struct Ready {
    /// Leaves before this place in the order of reading are in place; [`usize::MAX`] where all of the fetch is.
    pub(super) up_to: usize,
    /// Nothing more comes.
    pub(super) failed: Option<Arc<FetchError>>,
}

/// What the hub keeps of a reader.
pub(super) struct ReaderState {
    pub(super) request: ReadRequest,
    pub(super) plan: Option<oneshot::Sender<Plan>>,
    pub(super) ready: watch::Sender<Ready>,
    pub(super) news: mpsc::Sender<(u64, ReadEvent)>,
}

impl ReaderState {
    pub(super) fn fail(&self, error: &Arc<FetchError>) {
        self.ready.send_modify(|ready| ready.failed = Some(error.clone()));
    }
}

/// A stretch of the file.
#[derive(Debug, Clone, Copy)]
struct Part {
    offset: u64,
    len: u32,
    /// The leaf; nothing where the tree itself holds the bytes.
    leaf: Option<u32>,
    /// Leaves before it in the order of reading.
    place: u32,
}

/// The file: where its bytes come from.
pub(super) struct Layout {
    manifest: Arc<Manifest>,
    entry: u32,
    size: u64,
    parts: Vec<Part>,
    /// Leaves in the order of reading.
    pub(super) order: Arc<[u32]>,
    /// What is read, in bytes.
    range: Range<u64>,
}

impl Layout {
    fn of(manifest: Arc<Manifest>, request: &ReadRequest) -> Result<Self, FetchError> {
        let root = manifest.root();
        let found = manifest.entries().iter().position(|entry| entry.path == request.path);
        let Some(entry) = found.map(|entry| entry as u32) else {
            let path = request.path.clone();
            return Err(shoal_content::SelectError::NotFound { path, root }.into());
        };
        let not_a_file = |is: String| FetchError::NotAFile { path: request.path.as_str().to_owned(), is };
        let size = match manifest.entries().get(entry as usize).map(|entry| &entry.kind) {
            Some(EntryKind::File { size, .. }) => *size,
            Some(EntryKind::Symlink { target }) => {
                return Err(not_a_file(format!("a symlink to \"{}\"", target.escape_debug())));
            }
            _ => return Err(not_a_file(holds(&manifest, &request.path))),
        };
        if request.offset > size {
            return Err(FetchError::BeyondEnd { offset: request.offset, size });
        }
        let end = request.length.map_or(size, |length| request.offset.saturating_add(length).min(size));
        let (mut parts, mut order) = (vec![], vec![]);
        for piece in manifest.pieces(entry) {
            let leaf = match piece.source {
                Source::Leaf(leaf) => Some(leaf),
                Source::Inline(_) => None,
            };
            parts.push(Part { offset: piece.offset, len: piece.len, leaf, place: order.len() as u32 });
            order.extend(leaf);
        }
        Ok(Layout { manifest, entry, size, parts, order: order.into(), range: request.offset..end })
    }

    /// The part that holds the byte at `offset`.
    fn part(&self, offset: u64) -> usize {
        self.parts.partition_point(|part| part.offset + u64::from(part.len) <= offset)
    }

    /// The leaf at or behind `offset`, by its place in the order of reading.
    pub(super) fn place(&self, offset: u64) -> usize {
        self.parts.get(self.part(offset)).map_or(self.order.len(), |part| part.place as usize)
    }

    /// The places of the leaves that the range needs.
    pub(super) fn places(&self) -> Range<usize> {
        let (from, end) = (self.place(self.range.start), self.range.end);
        let last = self.parts.partition_point(|part| part.offset < end);
        let to = self.parts.get(last).map_or(self.order.len(), |part| part.place as usize);
        if self.range.is_empty() { from..from } else { from..to.max(from) }
    }

    /// Bytes that the tree itself holds.
    fn inline(&self, index: usize) -> Bytes {
        match self.manifest.pieces(self.entry).nth(index).map(|piece| piece.source) {
            Some(Source::Inline(bytes)) => Bytes::copy_from_slice(bytes),
            _ => Bytes::new(),
        }
    }
}

/// What a directory is, with some of the names in it.
fn holds(manifest: &Manifest, path: &shoal_content::RelPath) -> String {
    let dir = path.as_str();
    let inside = manifest.entries().iter().filter_map(|entry| {
        let rest = if dir.is_empty() {
            entry.path.as_str()
        } else {
            entry.path.as_str().strip_prefix(dir)?.strip_prefix('/')?
        };
        let file = entry.file_size().is_some();
        (!rest.is_empty() && (file || !rest.contains('/')))
            .then(|| format!("\"{}\"", entry.path.as_str().escape_debug()))
    });
    let files: Vec<String> = inside.take(MOST_NAMES + 1).collect();
    let more = if files.len() > MOST_NAMES { ", …" } else { "" };
    match &files[..] {
        [] => "an empty directory".into(),
        files => format!("a directory that holds {}{more}", files[..files.len().min(MOST_NAMES)].join(", ")),
    }
}

/// A reader may begin.
pub(super) struct Admitted {
    pub(super) layout: Arc<Layout>,
    /// Leaves that are here already.
    pub(super) here: Vec<u32>,
    /// Whether the others will be kept.
    pub(super) kept: bool,
}

/// Looks the file up, and what of it is here, and makes room for the rest. Blocking.
pub(super) fn admit(
    checkout: &Checkout,
    manifest: Arc<Manifest>,
    request: &ReadRequest,
    on_demand: bool,
) -> Result<Admitted, FetchError> {
    let layout = Layout::of(manifest, request)?;
    let (here, kept) =
        if on_demand { checkout.admit(&layout.order[layout.places()], request.keep)? } else { (vec![], true) };
    Ok(Admitted { layout: Arc::new(layout), here, kept })
}

/// What a reader's task needs to read.
pub(super) struct Plan {
    pub(super) layout: Arc<Layout>,
    /// Nothing where all of it was here.
    pub(super) sink: Option<Arc<Sink>>,
    pub(super) bytes_of_nodes: u64,
    pub(super) kept: bool,
    /// Bytes to read that are not here.
    pub(super) missing: u64,
    pub(super) on_demand: bool,
}

impl Plan {
    /// Bytes that came from peers for this fetch so far.
    fn moved(&self) -> u64 {
        self.bytes_of_nodes + self.sink.as_ref().map_or(0, |sink| sink.bytes_in.load(Ordering::Relaxed))
    }
}

/// A reader's task.
pub(super) struct ReaderTask {
    pub(super) request: ReadRequest,
    pub(super) ix: ReaderIx,
    pub(super) store: Store,
    pub(super) port: Port,
    pub(super) inbox: mpsc::Sender<Input>,
}

/// A reader that has joined a fetch.
struct Joined {
    root: Cid,
    ix: ReaderIx,
    store: Store,
    plan: Option<oneshot::Receiver<Plan>>,
    ready: watch::Receiver<Ready>,
    place: watch::Receiver<Place>,
    events: mpsc::Sender<(u64, ReadEvent)>,
    /// The hub, unless nothing of it is needed.
    inbox: Option<mpsc::Sender<Input>>,
    /// Where it is in the file.
    at: u64,
}

/// Why a task does not go on.
enum Stop {
    /// Nobody reads any more.
    Gone,
    /// It is to read elsewhere.
    Sought,
    Failed(Arc<FetchError>),
}

/// Both ends of a reading that begins.
pub(super) fn start(request: &ReadRequest) -> (Reading, Port) {
    let (news, events) = mpsc::channel(EVENTS);
    let (place, places) = watch::channel(Place { number: 0, offset: request.offset });
    (Reading { events, place }, Port { news, places })
}

/// The driver's end of a [`Reading`].
pub(super) struct Port {
    news: mpsc::Sender<(u64, ReadEvent)>,
    places: watch::Receiver<Place>,
}

/// What a reading has come to, over all fetches that it was part of.
struct Course {
    begun: Instant,
    /// Where to end, once the file is known.
    end: Option<u64>,
    report: ReadReport,
}

impl ReaderTask {
    /// Ends when nobody reads any more, or when nothing more comes. A fetch that makes way for another one, or ends, is
    /// followed by the next.
    pub(super) async fn run(mut self) {
        let report =
            ReadReport { bytes: 0, bytes_moved: 0, elapsed: Duration::ZERO, first_byte: None, kept: self.request.keep };
        let mut course = Course { begun: Instant::now(), end: None, report };
        let mut busy_since: Option<(Instant, u64)> = None;
        let mut look_here = true;
        let failed = loop {
            let (plan, planned) = oneshot::channel();
            let (ready, readiness) = watch::channel(Ready::default());
            let news = self.port.news.clone();
            let here = if std::mem::take(&mut look_here) { self.look_here().await } else { Here::Part };
            let join = match here {
                Here::All(layout) => {
                    ready.send_modify(|ready| ready.up_to = usize::MAX);
                    let (sink, bytes_of_nodes, kept, missing, on_demand) = (None, 0, true, 0, false);
                    // the other end is in this function
                    let _there = plan.send(Plan { layout, sink, bytes_of_nodes, kept, missing, on_demand });
                    None
                }
                Here::Part | Here::Nothing => {
                    if matches!(here, Here::Nothing) && news.send((0, ReadEvent::Absent)).await.is_err() {
                        break None;
                    }
                    Some(ReaderState { request: self.request.clone(), plan: Some(plan), ready, news: news.clone() })
                }
            };
            let alone = join.is_none();
            if let Some(state) = join
                && self.inbox.send(Input::ReadJoin(self.ix, Box::new(state))).await.is_err()
            {
                break None;
            }
            let mut joined = Joined {
                root: self.request.root,
                ix: self.ix,
                store: self.store.clone(),
                plan: Some(planned),
                ready: readiness,
                place: self.port.places.clone(),
                events: news,
                inbox: (!alone).then(|| self.inbox.clone()),
                at: self.request.offset,
            };
            let stopped = joined.read(&mut course).await;
            joined.tell(Input::ReadEnded(self.request.root, self.ix)).await;
            let (at, places) = (joined.at, joined.place);
            let Err(Stop::Failed(error)) = stopped else { break None };
            let since = busy_since.filter(|(_, place)| *place == at).map_or_else(Instant::now, |(since, _)| since);
            busy_since = Some((since, at));
            let passes = match &*error {
                FetchError::Cancelled => true,
                FetchError::Busy(_) | FetchError::Checkout(CheckoutError::Busy { .. }) => since.elapsed() < BUSY_FOR,
                _ => false,
            };
            if !passes {
                break Some(error);
            }
            tokio::select! {
                () = tokio::time::sleep(JOIN_AGAIN) => {}
                () = self.port.news.closed() => break None,
            }
            self.port.places = places;
            self.request.offset = at;
            self.request.length = course.end.map(|end| end.saturating_sub(at)).or(self.request.length);
        };
        if let Some(error) = failed {
            let number = self.port.places.borrow().number;
            // whoever read may be gone as well
            let _gone = self.port.news.send((number, ReadEvent::Failed(error))).await;
        }
    }
}

/// What of a file is here.
enum Here {
    All(Arc<Layout>),
    Part,
    /// Not even the tree.
    Nothing,
}

impl ReaderTask {
    /// Whether all that is to be read is here, as far as the index knows: then nobody is asked.
    async fn look_here(&self) -> Here {
        let (store, request) = (self.store.clone(), self.request.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let Ok(manifest) = store.manifest(&request.root) else { return Here::Nothing };
            // what is wrong with the request is found out again
            let Ok(layout) = Layout::of(Arc::new(manifest), &request) else { return Here::Part };
            let leaves = layout.order[layout.places()].iter();
            let cids: Vec<_> = leaves.map(|leaf| layout.manifest.leaves()[*leaf as usize].cid).collect();
            match store.has_many(&cids) {
                Ok(here) if here.iter().all(|here| *here) => Here::All(Arc::new(layout)),
                _ => Here::Part,
            }
        });
        looked.await.unwrap_or(Here::Nothing)
    }
}

impl Joined {
    async fn read(&mut self, course: &mut Course) -> Result<(), Stop> {
        let plan = self.planned().await?;
        let Range { start, end: planned } = plan.layout.range;
        let joins = course.end.is_some();
        let end = *course.end.get_or_insert(planned);
        course.report.kept &= plan.kept;
        if !joins {
            let opened = ReadEvent::Opened {
                size: plan.layout.size,
                bytes: end - start,
                missing: plan.missing,
                kept: plan.kept,
            };
            self.events.send((0, opened)).await.map_err(|_| Stop::Gone)?;
        }
        loop {
            let number = self.place.borrow().number;
            let ended = match self.read_on(&plan, number, end, course).await {
                Ok(()) => {
                    self.landed(&plan).await?;
                    let mut report = course.report;
                    report.bytes_moved += plan.moved();
                    report.elapsed = course.begun.elapsed();
                    self.hand_over(number, ReadEvent::End(report)).await
                }
                stopped => stopped,
            };
            let sought = match ended {
                Ok(()) => tokio::select! {
                    sought = self.place.changed() => sought.map_err(|_| Stop::Gone),
                    () = self.events.closed() => Err(Stop::Gone),
                },
                Err(Stop::Sought) => Ok(()),
                Err(stop) => Err(stop),
            };
            if let Err(stop) = sought {
                course.report.bytes_moved += plan.moved();
                return Err(stop);
            }
            self.at = self.place.borrow_and_update().offset;
            self.tell(Input::ReadSeek(self.root, self.ix, plan.layout.place(self.at))).await;
        }
    }

    /// Waits for the hub to have found the file.
    async fn planned(&mut self) -> Result<Plan, Stop> {
        let Some(plan) = self.plan.take() else { return Err(Stop::Gone) };
        tokio::select! {
            // without one, the hub said why
            planned = plan => planned.map_err(|_| Stop::Failed(self.why())),
            () = self.events.closed() => Err(Stop::Gone),
        }
    }

    /// If all of the root is here by now: waits until that is on record.
    async fn landed(&mut self, plan: &Plan) -> Result<(), Stop> {
        while plan.on_demand && self.ready.borrow().up_to == usize::MAX {
            tokio::select! {
                // the fetch is gone when it has landed
                changed = self.ready.changed() => if changed.is_err() { return Ok(()) },
                () = self.events.closed() => return Err(Stop::Gone),
            }
        }
        Ok(())
    }

    fn why(&self) -> Arc<FetchError> {
        self.ready.borrow().failed.clone().unwrap_or_else(|| Arc::new(FetchError::Cancelled))
    }

    async fn read_on(&mut self, plan: &Plan, number: u64, end: u64, course: &mut Course) -> Result<(), Stop> {
        let layout = &plan.layout;
        let mut index = layout.part(self.at);
        while self.at < end {
            let Some(part) = layout.parts.get(index) else { break };
            let Some(leaf) = part.leaf else {
                index += 1;
                self.hand_over_part(number, layout.inline(index - 1), part, end, course).await?;
                continue;
            };
            let up_to = self.wait_for(part.place as usize).await?;
            if let Some(bytes) = plan.sink.as_ref().and_then(|sink| sink.passing(leaf)) {
                index += 1;
                self.hand_over_part(number, bytes, part, end, course).await?;
                self.tell(Input::ReadTook(self.root, self.ix, part.place as usize + 1)).await;
                continue;
            }
            let passes = |leaf| plan.sink.as_ref().is_some_and(|sink| sink.passes(leaf));
            let mut run = vec![];
            let mut len = 0;
            for part in &layout.parts[index..] {
                let Some(leaf) = part.leaf.filter(|leaf| run.is_empty() || !passes(*leaf)) else { break };
                if part.place as usize >= up_to || part.offset >= end || len >= RUN_BYTES {
                    break;
                }
                len += u64::from(part.len);
                run.push(leaf);
            }
            for read in self.read_run(&layout.manifest, run).await? {
                let Some(mut bytes) = read.bytes else {
                    let leaf = layout.parts[index].leaf.unwrap_or_default();
                    if plan.sink.is_none() {
                        // somebody else may have it
                        return Err(Stop::Failed(Arc::new(FetchError::Cancelled)));
                    }
                    // what is ready from here on is said anew
                    self.ready.mark_unchanged();
                    self.tell(Input::ReadLost(self.root, self.ix, leaf)).await;
                    self.changed().await?;
                    break;
                };
                for part in &layout.parts[index..index + read.blocks] {
                    let bytes = bytes.split_to((part.len as usize).min(bytes.len()));
                    self.hand_over_part(number, bytes, part, end, course).await?;
                }
                index += read.blocks;
                let took = layout.parts.get(index).map_or(layout.order.len(), |part| part.place as usize);
                self.tell(Input::ReadTook(self.root, self.ix, took)).await;
            }
        }
        Ok(())
    }

    /// Waits until the leaf at this place is readable. Gives the place before which all are.
    async fn wait_for(&mut self, place: usize) -> Result<usize, Stop> {
        loop {
            if self.place.has_changed().unwrap_or(true) {
                return Err(Stop::Sought);
            }
            let up_to = self.ready.borrow_and_update().up_to;
            if up_to > place {
                return Ok(up_to);
            }
            self.changed().await?;
        }
    }

    /// Waits for news of the hub's.
    async fn changed(&mut self) -> Result<(), Stop> {
        if self.ready.borrow().failed.is_some() {
            return Err(Stop::Failed(self.why()));
        }
        tokio::select! {
            changed = self.ready.changed() => match changed {
                Ok(()) if self.ready.borrow().failed.is_some() => Err(Stop::Failed(self.why())),
                Ok(()) => Ok(()),
                Err(_) => Err(Stop::Failed(self.why())),
            },
            sought = self.place.changed() => Err(if sought.is_ok() { Stop::Sought } else { Stop::Gone }),
            () = self.events.closed() => Err(Stop::Gone),
        }
    }

    async fn read_run(&self, manifest: &Arc<Manifest>, run: Vec<u32>) -> Result<Vec<shoal_store::Run>, Stop> {
        let (store, manifest) = (self.store.clone(), manifest.clone());
        let read = tokio::task::spawn_blocking(move || {
            let leaves: Vec<_> = run.iter().map(|leaf| manifest.leaves()[*leaf as usize]).collect();
            store.read_runs(&leaves)
        });
        read.await.map_err(|_| Stop::Failed(Arc::new(FetchError::ShuttingDown)))
    }

    /// Hands over what is wanted of a part, and moves on behind it.
    async fn hand_over_part(
        &mut self,
        number: u64,
        bytes: Bytes,
        part: &Part,
        end: u64,
        course: &mut Course,
    ) -> Result<(), Stop> {
        let from = (self.at.saturating_sub(part.offset) as usize).min(bytes.len());
        let to = (end.saturating_sub(part.offset).min(bytes.len() as u64) as usize).max(from);
        let bytes = bytes.slice(from..to);
        let len = bytes.len() as u64;
        if len > 0 {
            self.hand_over(number, ReadEvent::Bytes(bytes)).await?;
            course.report.first_byte.get_or_insert(course.begun.elapsed());
            course.report.bytes += len;
        }
        self.at = part.offset + u64::from(part.len);
        Ok(())
    }

    async fn hand_over(&mut self, number: u64, event: ReadEvent) -> Result<(), Stop> {
        tokio::select! {
            sent = self.events.send((number, event)) => sent.map_err(|_| Stop::Gone),
            sought = self.place.changed() => Err(if sought.is_ok() { Stop::Sought } else { Stop::Gone }),
        }
    }

    async fn tell(&self, input: Input) {
        // a hub that is gone is shutting down, and its watch says so
        if let Some(inbox) = &self.inbox {
            let _gone = inbox.send(input).await;
        }
    }
}
