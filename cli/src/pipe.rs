//! Standard output for the bytes of files: a thread of its own writes, so that a reader who takes its time holds up nothing
//! but what it reads. A reader that goes away is not an error; who asks hears of it.

use std::io::{self, Write};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

/// Pieces that wait for the thread.
const QUEUED: usize = 2;

/// The way to standard output.
pub(crate) struct Pipe {
    pieces: mpsc::Sender<Bytes>,
    ended: oneshot::Receiver<io::Result<()>>,
}

impl Pipe {
    /// Starts the thread. It is not waited for: a write that blocks for good ends with the process.
    pub(crate) fn start() -> Self {
        let (pieces, mut queue) = mpsc::channel::<Bytes>(QUEUED);
        let (end, ended) = oneshot::channel();
        std::thread::spawn(move || {
            let mut write = || {
                let mut out = standard_output()?;
                while let Some(piece) = queue.blocking_recv() {
                    out.write_all(&piece)?;
                }
                out.flush()
            };
            // whoever asked may have been interrupted
            let _gone = end.send(write());
        });
        Pipe { pieces, ended }
    }

    /// Writes bytes; waits while the reader is behind. Not cancel-safe: dropped, the bytes may or may not be written.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        match self.pieces.send(bytes).await {
            Ok(()) => Ok(()),
            Err(_) => end(&mut self.ended).await,
        }
    }

    /// Waits until everything is written.
    pub(crate) async fn finish(self) -> io::Result<()> {
        let Pipe { pieces, mut ended } = self;
        drop(pieces);
        end(&mut ended).await
    }
}

async fn end(ended: &mut oneshot::Receiver<io::Result<()>>) -> io::Result<()> {
    ended.await.unwrap_or_else(|_| Err(io::Error::other("the thread that writes is gone")))
}

/// Without the line buffer that text goes through.
#[cfg(unix)]
fn standard_output() -> io::Result<impl Write> {
    use std::os::fd::AsFd;
    Ok(std::fs::File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

#[cfg(not(unix))]
fn standard_output() -> io::Result<impl Write> {
    Ok(io::stdout())
}
