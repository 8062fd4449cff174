//! How much of a file's next version is new, after it was cut into chunks as a share cuts it:
//! `cargo run --release -p shoal-store --example new_bytes -- OLD NEW`
//!
//! Prints the bytes of NEW's chunks that OLD does not have, and what of them is left under zstd level 1 in packs of 1 MiB:
//! about what a fetch of NEW moves where OLD is. What its tree's nodes cost comes on top.

use std::{
    collections::HashSet,
    error::Error,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use shoal_content::{Manifest, SHOAL_V1};
use shoal_store::{ImportOptions, Options, Store, import};

/// As much as a pack on the wire gathers.
const PACK_BYTES: usize = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [old, new] = &*paths else { return Err("which two files or directories?".into()) };
    let home = tempfile::tempdir()?;
    let store = Store::open(home.path(), Options::default())?;
    let (old, new) = (share(&store, old)?, share(&store, new)?);

    let mut known: HashSet<_> = old.leaves().iter().map(|leaf| leaf.cid).collect();
    let (mut bytes, mut packed, mut pack, mut chunks) = (0, 0, Vec::new(), 0);
    for leaf in new.leaves().iter().filter(|leaf| known.insert(leaf.cid)) {
        chunks += 1;
        bytes += u64::from(leaf.len);
        pack.extend_from_slice(&store.read(&leaf.cid)?);
        if pack.len() >= PACK_BYTES {
            packed += zstd::bulk::compress(&pack, 1)?.len();
            pack.clear();
        }
    }
    packed += zstd::bulk::compress(&pack, 1)?.len();
    let total = new.total_bytes();
    let percent = |part: u64| 100.0 * part as f64 / total as f64;
    println!("{} of {} chunks are new", chunks, new.leaves().len());
    println!("{bytes} of {total} bytes are new: {:.2} %", percent(bytes));
    println!("{packed} of them compressed: {:.2} %", percent(packed as u64));
    Ok(())
}

fn share(store: &Store, path: &Path) -> Result<Manifest, Box<dyn Error>> {
    let shared = import(store, path, &SHOAL_V1, &ImportOptions::default(), &|_| {}, &AtomicBool::new(false))?;
    Ok(store.manifest(&shared.root)?)
}
