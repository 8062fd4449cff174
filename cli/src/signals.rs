//! Signals that ask the process to end: the first one ends it cleanly, the second one at once.

use std::{
    io,
    time::{Duration, Instant},
};

/// Wrappers such as `timeout` and `docker` may deliver one Ctrl-C twice. Within this time it counts as one.
const ONE: Duration = Duration::from_millis(300);

/// SIGINT and SIGTERM; elsewhere than on unix, Ctrl-C. SIGHUP keeps its default, so that `nohup` works.
pub(crate) struct Signals {
    #[cfg(unix)]
    all: [tokio::signal::unix::Signal; 2],
    last: Option<Instant>,
}

impl Signals {
    /// Listens from now on. Needs a runtime.
    pub(crate) fn new() -> io::Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            Ok(Signals { all: [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?], last: None })
        }
        #[cfg(not(unix))]
        Ok(Signals { last: None })
    }

    /// The next one. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        loop {
            self.wait().await;
            let now = Instant::now();
            let again = self.last.is_some_and(|last| now.duration_since(last) < ONE);
            self.last = Some(now);
            if !again {
                return;
            }
        }
    }

    async fn wait(&mut self) {
        #[cfg(unix)]
        {
            let [interrupt, terminate] = &mut self.all;
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        #[cfg(not(unix))]
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::warn!(%error, "cannot listen for Ctrl-C");
            std::future::pending::<()>().await;
        }
    }
}
