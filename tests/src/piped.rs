//! A process of the binary whose standard output is the bytes of a file: they are taken at the test's pace, and a process
//! that is not read from is held up, as by any pipe. Killed when dropped.

use std::{
    io::Read,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread::JoinHandle,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{AT_MOST, process::Finished};

/// Bytes that are taken out of the pipe at once.
const PIECE: usize = 64 << 10;

/// A process. Killed when dropped.
#[derive(Debug)]
pub struct Piped {
    name: String,
    child: Child,
    pieces: Option<Receiver<Vec<u8>>>,
    /// Taken out of the pipe and not asked for yet.
    left: Vec<u8>,
    readers: Vec<JoinHandle<Vec<u8>>>,
}

impl Piped {
    pub(crate) fn start(mut command: Command, name: String) -> Piped {
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        // without room: one piece is on its way, no more
        let (sender, pieces) = sync_channel(0);
        let out = std::thread::spawn(move || {
            let mut buffer = vec![0; PIECE];
            while let Ok(n @ 1..) = stdout.read(&mut buffer) {
                // the test hung up
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
            Vec::new()
        });
        let err = std::thread::spawn(move || {
            let mut all = Vec::new();
            stderr.read_to_end(&mut all).unwrap();
            all
        });
        Piped { name, child, pieces: Some(pieces), left: Vec::new(), readers: vec![out, err] }
    }

    /// The next bytes, so many if there are as many.
    pub fn read(&mut self, count: usize) -> Vec<u8> {
        while self.left.len() < count {
            match self.pieces.as_ref().unwrap().recv_timeout(AT_MOST) {
                Ok(piece) => self.left.extend(piece),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("{}: no more bytes after {}", self.name, self.left.len()),
            }
        }
        let rest = self.left.split_off(count.min(self.left.len()));
        std::mem::replace(&mut self.left, rest)
    }

    /// The rest of the bytes, and how the process ended. What it said on standard error is events where it is JSON.
    pub fn finish(mut self) -> (Vec<u8>, Finished) {
        let rest = self.read(usize::MAX);
        (rest, self.end())
    }

    /// Closes the pipe, as a reader does that has enough, and waits.
    pub fn hang_up(mut self) -> Finished {
        self.pieces = None;
        self.end()
    }

    /// Asks it to stop, as Ctrl-C does, and waits.
    pub fn interrupt(self) -> Finished {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        self.finish().1
    }

    fn end(&mut self) -> Finished {
        let code = self.child.wait().unwrap().code();
        let outputs: Vec<Vec<u8>> = self.readers.drain(..).map(|reader| reader.join().unwrap()).collect();
        let stderr = String::from_utf8_lossy(&outputs[1]).into_owned();
        let events = stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).collect();
        Finished { name: self.name.clone(), code, events, stderr }
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to kill.
        if self.child.kill().is_ok()
            && let Err(error) = self.child.wait()
        {
            eprintln!("{} was not seen to end: {error}", self.name);
        }
    }
}
