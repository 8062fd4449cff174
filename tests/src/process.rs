//! A process of the binary: its JSON lines as they come, signals, its end. Killed when dropped.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::AT_MOST;

/// Lines of a process that wait for their reader; it is far ahead of any test then.
const QUEUED_LINES: usize = 1 << 16;

/// A process. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    lines: Receiver<Value>,
    events: Vec<Value>,
    stderr: Arc<Mutex<Vec<u8>>>,
    readers: Vec<JoinHandle<()>>,
    deadline: Duration,
}

/// A process that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The home it ran on, for messages.
    pub name: String,
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// All its JSON lines.
    pub events: Vec<Value>,
    /// Its talk.
    pub stderr: String,
}

impl Running {
    pub(crate) fn start(mut command: Command, name: String) -> Running {
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (stdout, mut from) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (sender, lines) = sync_channel(QUEUED_LINES);
        let out = std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let line = line.unwrap();
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                // The test may have lost interest.
                if sender.send(event).is_err() {
                    break;
                }
            }
        });
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let into = stderr.clone();
        let err = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                into.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        });
        Running { name, child, lines, events: Vec::new(), stderr, readers: vec![out, err], deadline: AT_MOST }
    }

    /// Allows more time for each wait.
    #[must_use]
    pub fn patient(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Waits for an event of this name.
    pub fn event(&mut self, name: &str) -> Value {
        self.until(name, |event| event["event"] == name)
    }

    /// Waits for an event. An `error` that is not what is waited for fails the test.
    pub fn until(&mut self, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let by = Instant::now() + self.deadline;
        loop {
            match self.lines.recv_timeout(by.saturating_duration_since(Instant::now())) {
                Ok(event) => {
                    self.events.push(event.clone());
                    if wanted(&event) {
                        return event;
                    }
                    assert_ne!(event["event"], "error", "{}, while waiting for {what}: {event}", self.name);
                }
                Err(RecvTimeoutError::Timeout) => panic!("{} said no {what} in time: {}", self.name, self.tail()),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("{} ended without {what} ({:?}): {}", self.name, self.child.wait(), self.tail())
                }
            }
        }
    }

    /// What it said so far, without waiting.
    pub fn said(&mut self) -> &[Value] {
        while let Ok(event) = self.lines.try_recv() {
            self.events.push(event);
        }
        &self.events
    }

    /// Whether it has ended.
    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Its talk so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().unwrap()).into_owned()
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Kills it at once and waits until it is gone. What it said until then is kept.
    pub fn kill(mut self) -> Finished {
        // It may have ended by itself just now.
        if let Err(error) = self.child.kill() {
            eprintln!("{} could not be killed: {error}", self.name);
        }
        self.end()
    }

    /// Asks it to stop, as Ctrl-C does, and waits.
    pub fn interrupt(self) -> Finished {
        self.signal(Signal::INT);
        self.finish()
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Finished {
        // Standard output ends with the process, so waiting for that is waiting for it.
        let by = Instant::now() + self.deadline;
        loop {
            match self.lines.recv_timeout(by.saturating_duration_since(Instant::now())) {
                Ok(event) => self.events.push(event),
                Err(RecvTimeoutError::Disconnected) => return self.end(),
                Err(RecvTimeoutError::Timeout) => panic!("{} did not end in time: {}", self.name, self.tail()),
            }
        }
    }

    fn end(mut self) -> Finished {
        let code = self.child.wait().unwrap().code();
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        self.said();
        let stderr = self.stderr();
        Finished { name: self.name.clone(), code, events: std::mem::take(&mut self.events), stderr }
    }

    /// The last things it said.
    fn tail(&self) -> String {
        let from = self.events.len().saturating_sub(8);
        let events: Vec<String> = self.events[from..].iter().map(Value::to_string).collect();
        format!("…{}\n{}", events.join("\n"), self.stderr())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to kill.
        if self.child.kill().is_ok()
            && let Err(error) = self.child.wait()
        {
            eprintln!("{} was not seen to end: {error}", self.name);
        }
    }
}

impl Finished {
    /// The first event of this name.
    pub fn event(&self, name: &str) -> &Value {
        self.events.iter().find(|event| event["event"] == name).unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }

    /// The last event of this name, if there is one.
    pub fn last(&self, name: &str) -> Option<&Value> {
        self.events.iter().rfind(|event| event["event"] == name)
    }

    /// It succeeded.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// It succeeded; its `done` event.
    pub fn done(self) -> Value {
        self.ok().event("done").clone()
    }

    /// It failed with this class and exit code; what people read of it, with the hint.
    pub fn failed(&self, class: &str, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        let error = self.event("error");
        assert_eq!(error["class"], class, "{error}");
        format!("{}; {}", text(error, "message"), text(error, "hint"))
    }
}

/// A text of an event.
pub fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_else(|| panic!("no text {key} in {value}")).to_owned()
}

/// A number of an event.
pub fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("no number {key} in {value}"))
}

/// Tries until there is an answer, at most for so long. Each try runs a process or waits for one, so this does not spin.
pub fn poll<T>(what: &str, at_most: Duration, mut attempt: impl FnMut() -> Option<T>) -> T {
    let by = Instant::now() + at_most;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < by, "{what}: not within {at_most:?}");
    }
}
