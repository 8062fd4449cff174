//! Chunking one big file on all threads: segments are cut and hashed speculatively, each from its own start, and
//! stitched in file order into exactly the chunks of a sequential cut.
//!
//! A thread streams its segment through its window, so memory does not depend on the segment's size. Whoever takes a
//! segment finds its seams first, one thread at a time, since they follow from each other. Whoever finishes the segment
//! that is next in order stitches it; chunks come out in order, from one thread at a time.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{Condvar, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use shoal_content::{Cid, Profile, Stitch, Stitched};

use super::{
    ImportError, Run,
    layout::Layout,
    source::{Opened, Window},
};

/// Shortest segment: the few chunks at a segment's start that are cut twice are then 3 % of it.
const MIN_SEGMENT_BYTES: u64 = 16 << 20;

/// Longest segment: beyond it nothing is gained, and stitching would come in bursts.
const MAX_SEGMENT_BYTES: u64 = 64 << 20;

/// Segments for each thread that may be finished ahead of the one that is next in order. Bounds what waits: a segment's
/// cuts take some 10 KiB, and 5 MiB where it is an archive of the smallest entries.
const AHEAD_PER_THREAD: u64 = 2;

/// A segment that a thread took.
struct Taken {
    index: u64,
    /// The seams that may end a chunk that begins in it, ascending.
    seams: Vec<u64>,
}

/// The cuts of one segment.
struct Cuts {
    seams: Vec<u64>,
    lens: Vec<u32>,
    cids: Vec<Cid>,
}

/// What is taken from: segments in file order, and the file's seams as far as that.
struct Ahead<'a> {
    next: u64,
    layout: Layout<'a>,
}

/// What the threads share.
struct Order<E> {
    /// The segment to be stitched next.
    next: u64,
    done: BTreeMap<u64, Cuts>,
    /// Absent while a thread is stitching.
    stitcher: Option<(Stitch, E)>,
}

/// Cuts and hashes all of `opened` on `run.threads` threads and gives every chunk, in file order, to `emit`.
pub(super) fn chunks<E>(run: &Run<'_>, opened: &Opened, emit: E) -> Result<(), ImportError>
where
    E: FnMut(Cid, u32) -> Result<(), ImportError> + Send,
{
    let size = opened.stamp.size;
    let mut layout = Layout::new(opened, run.profile);
    let profile = if layout.is_plain()? { run.profile.for_plain_file(size) } else { *run.profile };
    let segment =
        (size / (run.threads as u64 * 8)).clamp(MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES).next_multiple_of(1 << 20);
    let count = size.div_ceil(segment);
    let job = Job {
        run,
        profile,
        opened,
        segment,
        count,
        ahead: Mutex::new(Ahead { next: 0, layout }),
        order: Mutex::new(Order { next: 0, done: BTreeMap::new(), stitcher: Some((Stitch::new(), emit)) }),
        moved: Condvar::new(),
    };
    let errors = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..run.threads).map(|_| scope.spawn(|| job.work())).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, _>| match worker.join() {
            Ok(result) => Result::err(result),
            Err(panic) => std::panic::resume_unwind(panic),
        };
        workers.into_iter().filter_map(join).collect::<Vec<ImportError>>()
    });
    if let Some(error) = run.first_error(errors) {
        return Err(error);
    }
    let order = job.order.into_inner().unwrap_or_else(PoisonError::into_inner);
    match order.stitcher {
        Some((stitch, _)) if stitch.position() == size => Ok(()),
        _ => Err(ImportError::Changed { path: opened.path.clone() }),
    }
}

struct Job<'a, E> {
    run: &'a Run<'a>,
    profile: Profile,
    opened: &'a Opened,
    segment: u64,
    count: u64,
    ahead: Mutex<Ahead<'a>>,
    order: Mutex<Order<E>>,
    moved: Condvar,
}

impl<E> Job<'_, E>
where
    E: FnMut(Cid, u32) -> Result<(), ImportError> + Send,
{
    fn work(&self) -> Result<(), ImportError> {
        let result = self.work_until_error();
        if result.is_err() {
            self.run.failed.store(true, Ordering::Relaxed);
            // Under the lock, so that nobody is between looking at the flag and waiting.
            drop(self.lock());
            self.moved.notify_all();
        }
        result
    }

    fn work_until_error(&self) -> Result<(), ImportError> {
        let mut window = Window::new(&self.profile);
        loop {
            let Some(taken) = self.take()? else { return Ok(()) };
            let index = taken.index;
            let mut order = self.lock();
            while index >= order.next + AHEAD_PER_THREAD * self.run.threads as u64 {
                self.run.check()?;
                order = self.moved.wait(order).unwrap_or_else(PoisonError::into_inner);
            }
            drop(order);
            let cuts = self.cut(taken, &mut window)?;
            self.stitch(index, cuts, &mut window)?;
        }
    }

    /// Takes the next segment, if there is one more.
    fn take(&self) -> Result<Option<Taken>, ImportError> {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let index = ahead.next;
        if index >= self.count {
            return Ok(None);
        }
        let start = index * self.segment;
        ahead.layout.find(start + self.segment + self.profile.max_chunk() as u64, 0, &[])?;
        ahead.next += 1;
        Ok(Some(Taken { index, seams: ahead.layout.all_after(start) }))
    }

    fn cut(&self, taken: Taken, window: &mut Window) -> Result<Cuts, ImportError> {
        let start = taken.index * self.segment;
        let mut cuts = Cuts { seams: taken.seams, lens: Vec::new(), cids: Vec::new() };
        let seams = &cuts.seams;
        window.chunks(
            self.opened,
            &self.profile,
            start,
            start + self.segment,
            |at, _| Ok(seam_after(seams, at)),
            |cid, len| {
                cuts.lens.push(len);
                cuts.cids.push(cid);
                self.run.check()
            },
        )?;
        let length = self.segment.min(self.opened.stamp.size - start);
        self.run.advance(length, 0)?;
        Ok(cuts)
    }

    /// Hands in a segment, and stitches all that are next in order unless another thread is at it.
    fn stitch(&self, index: u64, cuts: Cuts, window: &mut Window) -> Result<(), ImportError> {
        let mut order = self.lock();
        order.done.insert(index, cuts);
        while let Some((mut stitch, mut emit)) = order.stitcher.take() {
            let next = order.next;
            let Some(cuts) = order.done.remove(&next) else {
                order.stitcher = Some((stitch, emit));
                break;
            };
            drop(order);
            self.join(next, &cuts, &mut stitch, &mut emit, window)?;
            order = self.lock();
            order.next += 1;
            order.stitcher = Some((stitch, emit));
            self.moved.notify_all();
        }
        Ok(())
    }

    fn join(
        &self,
        index: u64,
        cuts: &Cuts,
        stitch: &mut Stitch,
        emit: &mut E,
        window: &mut Window,
    ) -> Result<(), ImportError> {
        let start = index * self.segment;
        let length = self.segment.min(self.opened.stamp.size - start);
        let recut = Cell::new(None);
        let mut failed = None;
        let outcome = stitch.join(
            start,
            length,
            &cuts.lens,
            |offset| {
                let seam = seam_after(&cuts.seams, offset);
                let (cid, len) = window.chunk_at(self.opened, &self.profile, offset, seam)?;
                recut.set(Some(cid));
                Ok(len)
            },
            |chunk| {
                let chunk = match chunk {
                    Stitched::Kept(kept) => cuts.cids.get(kept).copied().zip(cuts.lens.get(kept).copied()),
                    Stitched::Recut { len, .. } => recut.take().map(|cid| (cid, len)),
                };
                let Some((cid, len)) = chunk else { unreachable!("a stitched chunk was cut before it is emitted") };
                if failed.is_none() {
                    failed = emit(cid, len).err();
                }
            },
        );
        outcome.and(failed.map_or(Ok(()), Err))
    }

    fn lock(&self) -> MutexGuard<'_, Order<E>> {
        // A panic of another thread is raised again when the threads are joined.
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first seam behind `at`.
fn seam_after(seams: &[u64], at: u64) -> Option<u64> {
    seams.get(seams.partition_point(|&seam| seam <= at)).copied()
}
