//! Driving the real binary: children with a time-out and a guard, their JSON lines, and made-up content. No test here
//! sleeps for a condition or uses a fixed port.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// Nothing here takes this long, unless it hangs.
pub const AT_MOST: Duration = Duration::from_secs(60);

pub const LOOPBACK: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// A place for homes and files, removed at the end.
pub struct Place {
    dir: TempDir,
}

impl Place {
    pub fn new() -> Self {
        Place { dir: TempDir::new().unwrap() }
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file of bytes that do not repeat, and says where.
    pub fn file(&self, name: &str, len: usize) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, noise(len as u64, len)).unwrap();
        path
    }

    /// A command on the home of this name: loopback only, no mDNS, JSON.
    pub fn shoal(&self, home: &str) -> Command {
        let mut command = self.bare(home);
        command.args(["--listen", LOOPBACK, "--json"]);
        command
    }

    /// The same without the flags.
    pub fn bare(&self, home: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SHOAL_") {
                command.env_remove(name);
            }
        }
        command.env("SHOAL_MDNS", "false").env("SHOAL_HOME", self.path(home)).current_dir(self.dir.path());
        command
    }

    /// Runs a command of this home to its end.
    pub fn run<S: AsRef<OsStr>>(&self, home: &str, args: impl IntoIterator<Item = S>) -> Finished {
        let mut command = self.shoal(home);
        command.args(args);
        Running::start(command).finish()
    }

    /// Starts one.
    pub fn start<S: AsRef<OsStr>>(&self, home: &str, args: impl IntoIterator<Item = S>) -> Running {
        let mut command = self.shoal(home);
        command.args(args);
        Running::start(command)
    }

    /// Starts sharing; says the link of the first path.
    pub fn share(&self, home: &str, path: &Path) -> (Running, String) {
        let mut running = self.start(home, [OsStr::new("share"), path.as_os_str()]);
        let link = text(&running.event("shared"), "link");
        (running, link)
    }
}

/// A child process. Killed when dropped.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    events: Vec<Value>,
    readers: Vec<JoinHandle<String>>,
    began: Instant,
}

/// A child that has ended.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub events: Vec<Value>,
    pub stdout: String,
    pub stderr: String,
}

impl Running {
    pub fn start(mut command: Command) -> Running {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (sender, lines) = sync_channel(1 << 16);
        let out = std::thread::spawn(move || {
            let mut all = String::new();
            for line in BufReader::new(stdout).lines() {
                let line = line.unwrap();
                all.push_str(&line);
                all.push('\n');
                // The test may have lost interest.
                if sender.send(line).is_err() {
                    break;
                }
            }
            all
        });
        let err = std::thread::spawn(move || {
            let mut all = Vec::new();
            stderr.read_to_end(&mut all).unwrap();
            String::from_utf8_lossy(&all).into_owned()
        });
        Running { child, lines, events: Vec::new(), readers: vec![out, err], began: Instant::now() }
    }

    /// Waits for an event of this name.
    pub fn event(&mut self, name: &str) -> Value {
        loop {
            let event: Value = serde_json::from_str(&self.line()).unwrap();
            self.events.push(event.clone());
            if event["event"] == name {
                return event;
            }
            assert_ne!(event["event"], "error", "while waiting for {name}: {event}");
        }
    }

    /// Waits for a line of standard output.
    pub fn line(&mut self) -> String {
        match self.lines.recv_timeout(AT_MOST.saturating_sub(self.began.elapsed())) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("nothing said in time; so far {:?}", self.events),
            Err(RecvTimeoutError::Disconnected) => {
                self.child.wait().unwrap();
                let err = self.readers.pop().unwrap().join().unwrap();
                panic!("ended early; said {:?} and {err}", self.events)
            }
        }
    }

    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Asks it to stop, as Ctrl-C does, and waits.
    pub fn interrupt(self) -> Finished {
        self.signal(rustix::process::Signal::INT);
        self.finish()
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Finished {
        // Standard output ends with the process, so waiting for that is waiting for it.
        loop {
            match self.lines.recv_timeout(AT_MOST.saturating_sub(self.began.elapsed())) {
                Ok(line) => self.events.extend(serde_json::from_str::<Value>(&line)),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("not done in time; so far {:?}", self.events),
            }
        }
        let code = self.child.wait().unwrap().code();
        let stderr = self.readers.pop().unwrap().join().unwrap();
        let stdout = self.readers.pop().unwrap().join().unwrap();
        Finished { code, events: std::mem::take(&mut self.events), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended; then both say so, and that is fine.
        if self.child.kill().is_ok() {
            self.child.wait().unwrap();
        }
    }
}

impl Finished {
    /// The event of this name.
    pub fn event(&self, name: &str) -> &Value {
        self.events.iter().find(|event| event["event"] == name).unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }

    pub fn all(&self, name: &str) -> Vec<&Value> {
        self.events.iter().filter(|event| event["event"] == name).collect()
    }

    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// It failed with this exit code, and said so: one sentence, a hint, no control characters.
    pub fn failed(&self, class: &str, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        let error = self.event("error");
        assert_eq!(error["class"], class, "{error}");
        assert_eq!(error["exit"], code, "{error}");
        let message = format!("{}; {}", text(error, "message"), text(error, "hint"));
        assert!(!message.contains('\n') && !text(error, "hint").is_empty(), "{message}");
        message
    }
}

pub fn text(value: &Value, key: &str) -> String {
    let found = if key.starts_with('/') { value.pointer(key) } else { value.get(key) };
    found.and_then(Value::as_str).unwrap_or_else(|| panic!("no text {key} in {value}")).to_owned()
}

/// Bytes that neither repeat nor compress (xorshift).
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
