//! What a test may have go wrong in the real binary: named points at which the process dies, as if by kill -9, and a disk
//! that refuses. In debug builds only: a release build holds none of it.

use std::{io, path::Path};

use crate::disk::Op;

/// Ends the process if `SHOAL_TEST_FAILPOINT` names this point: `name` at once, `name:3` at the third passing.
#[cfg(all(debug_assertions, unix))]
pub(crate) fn pass(name: &str) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicI64, Ordering},
    };
    static WANTED: OnceLock<Option<(String, AtomicI64)>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("SHOAL_TEST_FAILPOINT").ok()?;
        let (name, times) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), AtomicI64::new(times.parse().unwrap_or(1))))
    });
    if let Some((wanted, left)) = wanted
        && wanted == name
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        let me = rustix::process::getpid();
        if rustix::process::kill_process(me, rustix::process::Signal::KILL).is_ok() {
            std::thread::park();
        }
    }
}

/// Nothing.
#[cfg(not(all(debug_assertions, unix)))]
pub(crate) fn pass(_: &str) {}

/// Refuses a change of the disk. While there is something at the path that `SHOAL_TEST_FAIL_SYNCS` names, every sync fails;
/// with `SHOAL_TEST_NO_SPACE`, a number, the change of that number that may take space finds none, and says so.
#[cfg(all(debug_assertions, unix))]
pub(crate) fn refuse(op: &Op<'_>, path: &Path) -> io::Result<()> {
    use std::{
        path::PathBuf,
        sync::{
            LazyLock,
            atomic::{AtomicI64, Ordering},
        },
    };
    static FAIL_SYNCS: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os("SHOAL_TEST_FAIL_SYNCS").map(PathBuf::from));
    static NO_SPACE: LazyLock<Option<AtomicI64>> =
        LazyLock::new(|| std::env::var("SHOAL_TEST_NO_SPACE").ok()?.parse().map(AtomicI64::new).ok());
    match op {
        Op::Sync | Op::SyncDir | Op::SyncFs => match &*FAIL_SYNCS {
            Some(switch) if switch.exists() => Err(rustix::io::Errno::IO.into()),
            _ => Ok(()),
        },
        Op::Remove => Ok(()),
        Op::Create | Op::Ensure | Op::MakeDir | Op::Write { .. } | Op::SetLen(_) | Op::Rename(_) => match &*NO_SPACE {
            Some(left) if left.fetch_sub(1, Ordering::Relaxed) == 1 => {
                eprintln!("no space for {}", path.display());
                Err(rustix::io::Errno::NOSPC.into())
            }
            _ => Ok(()),
        },
    }
}

/// Nothing.
#[cfg(not(all(debug_assertions, unix)))]
pub(crate) fn refuse(_: &Op<'_>, _: &Path) -> io::Result<()> {
    Ok(())
}
