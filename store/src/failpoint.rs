//! Named points at which a test may have the process die, as if by kill -9. In debug builds only: a release build holds
//! none of it.

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
