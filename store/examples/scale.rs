//! What a store of a million chunks and a million small files costs:
//! `cargo run --release -p shoal-store --example scale -- DIR [FILES] [CHUNKS]`
//!
//! Makes FILES small files in DIR (default 1,000,000), shares them, adds CHUNKS references into one file that is not
//! there (default 1,000,000), opens the store anew, and looks at it in all the ways that commands do. DIR may be in memory;
//! what is made is removed at the end. Peak memory is that of each step, from /proc.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant, SystemTime},
};

use shoal_content::{Cid, Codec, HashKind, SHOAL_V1};
use shoal_store::{
    Checkout, CheckoutOptions, Collect, ImportError, ImportOptions, Imported, Options, Stamp, Store, import,
};

/// Files in one directory.
const PER_DIR: u64 = 1000;
/// References staged at once, as an import does.
const BATCH: u64 = 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("which directory?")?).join("shoal-scale");
    let mut number = |default: u64| args.next().map_or(Ok(default), |text| text.parse());
    let (files, chunks) = (number(1_000_000)?, number(1_000_000)?);
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    let tree = dir.join("tree");
    for i in 0..files {
        let at = tree.join(format!("dir{:04}", i / PER_DIR));
        if i % PER_DIR == 0 {
            fs::create_dir_all(&at)?;
        }
        fs::write(at.join(format!("file{i:07}.txt")), format!("the content of small file number {i}\n"))?;
    }
    println!("| step | seconds | peak memory, MB |");
    println!("|---|---|---|");
    let home = dir.join("store");
    let store = step("open a new one", || Ok(Store::open(&home, Options::default())?))?;
    let root = step(&format!("share {files} files"), || Ok(share(&store, &tree)?.root))?;
    step("share them again", || Ok(share(&store, &tree)?))?;
    step(&format!("stage and commit {chunks} chunks of one file"), || stage(&store, &dir, chunks))?;
    step("close", || {
        drop(store);
        Ok(())
    })?;
    let store = step("open", || Ok(Store::open(&home, Options::default())?))?;
    step("list the roots", || Ok(store.roots()?))?;
    let stats = store.stats()?;
    let manifest = Arc::new(step("read the tree of the files", || Ok(store.manifest(&root)?))?);
    step("fetch the files from themselves to another place", || fetch(&store, manifest, &dir))?;
    step("check the index", || Ok(store.check_index()?))?;
    step("say where the space goes", || Ok(store.space()?))?;
    step("collect garbage: the chunks, which no root reaches", || Ok(store.collect(&Collect::default())?))?;
    println!();
    println!(
        "{} blocks and {} files: the index is {} bytes, {:.0} for a block; packs are {} bytes",
        stats.blocks,
        stats.files,
        stats.index_bytes,
        stats.index_bytes as f64 / stats.blocks as f64,
        stats.pack_bytes
    );
    drop(store);
    fs::remove_dir_all(&dir)?;
    Ok(())
}

/// By a clock that says that all of it was written a while ago, as it mostly is: else everything is read the next time.
fn share(store: &Store, tree: &Path) -> Result<Imported, ImportError> {
    let now = Some(SystemTime::now() + Duration::from_secs(60));
    let options = ImportOptions { now, ..ImportOptions::default() };
    import(store, tree, &SHOAL_V1, &options, &|_| {}, &AtomicBool::new(false))
}

fn stage(store: &Store, dir: &Path, chunks: u64) -> Result<(), Box<dyn Error>> {
    let base = store.add_base(&dir.join("big"))?;
    let len = 256 << 10;
    for first in (0..chunks).step_by(BATCH as usize) {
        let chunk = |i: u64| (Cid::of(Codec::Raw, HashKind::Blake3, &i.to_le_bytes()), i * len, len as u32);
        let refs: Vec<_> = (first..chunks.min(first + BATCH)).map(chunk).collect();
        store.stage_file(base, "", Stamp { size: chunks * len, mtime_ns: 0 }, &refs, false)?;
    }
    Ok(store.commit()?)
}

fn fetch(store: &Store, manifest: Arc<shoal_content::Manifest>, dir: &Path) -> Result<(), Box<dyn Error>> {
    let checkout = Checkout::begin(store, manifest, &[], &dir.join("out"), "copy", CheckoutOptions::default())?;
    checkout.fill_local()?;
    checkout.finish()?;
    Ok(())
}

fn step<T>(what: &str, work: impl FnOnce() -> Result<T, Box<dyn Error>>) -> Result<T, Box<dyn Error>> {
    // Peak memory begins anew, where that can be had.
    let reset = fs::write("/proc/self/clear_refs", "5");
    let begun = Instant::now();
    let done = work()?;
    let seconds = begun.elapsed().as_secs_f64();
    let peak = match reset {
        Ok(()) => peak_mb().map_or("-".to_owned(), |mb| mb.to_string()),
        Err(_) => "-".to_owned(),
    };
    println!("| {what} | {seconds:.3} | {peak} |");
    Ok(done)
}

fn peak_mb() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1000)
}
