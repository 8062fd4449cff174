//! From a listed tree to its root: small files on all threads side by side, big ones one after the other on all
//! threads together, then the directories, deepest first. What need not be read again is not opened.

use std::sync::atomic::{AtomicUsize, Ordering};

use shoal_content::{Block, FileBuilder, Link, directory, symlink};

use super::{
    ImportError, Run,
    layout::Layout,
    scan::{Kind, Tree},
    segments,
    source::{Opened, Window},
};
use crate::value::Memory;

/// Files from this size on are cut on all threads together. Below it one thread is done in some 40 ms.
const BIG_BYTES: u64 = 32 << 20;

/// Files that a thread takes at once, so that the counter and the totals are not fought over.
const BATCH_FILES: usize = 32;

/// References staged at once for a long file.
const BATCH_REFS: usize = 1024;

/// Imports one file that is a root of its own.
pub(super) fn single(run: &Run<'_>, opened: &Opened) -> Result<Link, ImportError> {
    if opened.stamp.size >= BIG_BYTES && run.threads > 1 {
        big(run, opened, "")
    } else {
        small(run, opened, "", &mut Scratch::new(run))
    }
}

/// Imports a listed tree.
pub(super) fn build(run: &Run<'_>, tree: Tree) -> Result<Link, ImportError> {
    let mut links = small_files(run, &tree)?;
    let mut rel = String::new();
    for (index, &file) in tree.files.iter().enumerate().filter(|(_, file)| file.size >= BIG_BYTES) {
        tree.rel(file, &mut rel);
        let path = run.base_path.join(&rel);
        let link = match run.unread(&path, &rel)? {
            Some(link) => link,
            None => big(run, &Opened::open(&path)?, &rel)?,
        };
        links[index] = Some(link);
        run.advance(0, 1)?;
    }
    directories(run, tree, &links)
}

/// Imports all files that are not big; a link per file, in the order of the list.
fn small_files(run: &Run<'_>, tree: &Tree) -> Result<Vec<Option<Link>>, ImportError> {
    let next = AtomicUsize::new(0);
    let mut links = vec![None; tree.files.len()];
    let work = || -> Result<Vec<(usize, Link)>, ImportError> {
        let mut scratch = Scratch::new(run);
        let mut made = Vec::new();
        let mut rel = String::new();
        loop {
            let from = next.fetch_add(BATCH_FILES, Ordering::Relaxed);
            let Some(batch) = tree.files.get(from..tree.files.len().min(from + BATCH_FILES)) else { return Ok(made) };
            if batch.is_empty() {
                return Ok(made);
            }
            let mut files = 0;
            for (index, &file) in batch.iter().enumerate().filter(|(_, file)| file.size < BIG_BYTES) {
                tree.rel(file, &mut rel);
                let path = run.base_path.join(&rel);
                let link = match run.unread(&path, &rel)? {
                    Some(link) => link,
                    None => small(run, &Opened::open(&path)?, &rel, &mut scratch)?,
                };
                made.push((from + index, link));
                files += 1;
            }
            run.advance(0, files)?;
        }
    };
    let threads = run.threads.min(tree.files.len().div_ceil(BATCH_FILES)).max(1);
    let results = std::thread::scope(|scope| {
        let guarded = || work().inspect_err(|_| run.failed.store(true, Ordering::Relaxed));
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(guarded)).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, _>| match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        workers.into_iter().map(join).collect::<Vec<_>>()
    });
    let mut errors = Vec::new();
    for result in results {
        match result {
            Ok(made) => made.into_iter().for_each(|(index, link)| links[index] = Some(link)),
            Err(error) => errors.push(error),
        }
    }
    run.first_error(errors).map_or(Ok(links), Err)
}

/// What one thread reuses from file to file.
struct Scratch {
    window: Window,
    refs: Vec<(shoal_content::Cid, u64, u32)>,
    blocks: Vec<Block>,
}

impl Scratch {
    fn new(run: &Run<'_>) -> Self {
        Self { window: Window::new(run.profile), refs: Vec::new(), blocks: Vec::new() }
    }
}

/// Imports a file on this thread, unless its length has a say in how it is cut.
fn small(run: &Run<'_>, opened: &Opened, rel: &str, scratch: &mut Scratch) -> Result<Link, ImportError> {
    if run.profile.large.is_some_and(|(over, _)| opened.stamp.size > over) {
        return big(run, opened, rel);
    }
    let Scratch { window, refs, blocks } = scratch;
    refs.clear();
    let mut file = Staging::new(run, opened, rel, refs, blocks);
    let mut layout = Layout::new(opened, run.profile);
    let seam = |at, data: &[u8]| {
        layout.find(at + run.profile.max_chunk() as u64, at, data)?;
        Ok(layout.next_after(at))
    };
    window.chunks(opened, run.profile, 0, opened.stamp.size, seam, |cid, len| {
        file.chunk(cid, len)?;
        run.advance(u64::from(len), 0)
    })?;
    file.finish()
}

/// Imports a file on all threads.
fn big(run: &Run<'_>, opened: &Opened, rel: &str) -> Result<Link, ImportError> {
    let (mut refs, mut blocks) = (Vec::with_capacity(BATCH_REFS), Vec::new());
    let mut file = Staging::new(run, opened, rel, &mut refs, &mut blocks);
    segments::chunks(run, opened, |cid, len| file.chunk(cid, len))?;
    file.finish()
}

/// A file whose chunks come in order: its DAG grows, its references are staged.
struct Staging<'a> {
    run: &'a Run<'a>,
    opened: &'a Opened,
    rel: &'a str,
    builder: FileBuilder,
    at: u64,
    refs: &'a mut Vec<(shoal_content::Cid, u64, u32)>,
    blocks: &'a mut Vec<Block>,
}

impl<'a> Staging<'a> {
    fn new(
        run: &'a Run<'a>,
        opened: &'a Opened,
        rel: &'a str,
        refs: &'a mut Vec<(shoal_content::Cid, u64, u32)>,
        blocks: &'a mut Vec<Block>,
    ) -> Self {
        Self { run, opened, rel, builder: FileBuilder::new(run.profile, opened.mode), at: 0, refs, blocks }
    }

    fn chunk(&mut self, cid: shoal_content::Cid, len: u32) -> Result<(), ImportError> {
        self.builder.leaf(cid, len, self.blocks);
        if !self.blocks.is_empty() {
            self.run.put_nodes(self.blocks)?;
        }
        self.refs.push((cid, self.at, len));
        self.at += u64::from(len);
        if self.refs.len() >= BATCH_REFS { self.stage(None) } else { Ok(()) }
    }

    fn stage(&mut self, memory: Option<Memory>) -> Result<(), ImportError> {
        if !self.refs.is_empty() || memory.is_some() {
            let Run { store, base, chunks, .. } = self.run;
            chunks.fetch_add(self.refs.len() as u64, Ordering::Relaxed);
            store.inner.stage_file(*base, self.rel, self.opened.stamp, self.refs, false, memory)?;
            self.refs.clear();
        }
        Ok(())
    }

    /// Ends the file, if it is what it was when it was opened. All of it has been read by now.
    fn finish(mut self) -> Result<Link, ImportError> {
        // An empty one stays behind: what is staged last still needs the rest.
        let builder = std::mem::replace(&mut self.builder, FileBuilder::new(self.run.profile, None));
        let link = builder.finish(self.blocks);
        self.run.put_nodes(self.blocks)?;
        let look = self.opened.unchanged()?;
        self.stage(look.and_then(|look| self.run.memory(&self.opened.file, &look, &link)))?;
        Ok(link)
    }
}

/// Builds the directories, deepest first, and gives the root's link.
fn directories(run: &Run<'_>, tree: Tree, files: &[Option<Link>]) -> Result<Link, ImportError> {
    let mut built: Vec<Option<Link>> = vec![None; tree.dirs.len()];
    let mut blocks = Vec::new();
    // A directory comes after the one it is in, so backwards is children first.
    for (index, dir) in tree.dirs.into_iter().enumerate().rev() {
        run.check()?;
        let path = run.base_path.join(&*dir.rel);
        let failed = |source| ImportError::Directory { path: path.clone(), source };
        let mut entries = Vec::with_capacity(dir.entries.len());
        for entry in dir.entries {
            let link = match &entry.kind {
                Kind::File(file) => files[*file as usize],
                Kind::Dir(child) => built[*child as usize],
                Kind::Symlink(target) => {
                    let (link, block) = symlink(run.profile, target).map_err(failed)?;
                    blocks.push(block);
                    Some(link)
                }
            };
            let Some(link) = link else { unreachable!("every file and deeper directory was built before") };
            entries.push((entry.name.into_string(), link));
        }
        built[index] = Some(directory(run.profile, entries, &mut blocks).map_err(failed)?);
        run.put_nodes(&mut blocks)?;
    }
    let Some(root) = built.swap_remove(0) else { unreachable!("the first directory is the root") };
    Ok(root)
}
