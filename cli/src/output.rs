//! Where words go: results to standard output, talk to standard error, JSON lines instead of results where asked. Where
//! standard output is for the bytes of a file (`pipe`), all words go to standard error.
//! A reader of our output that goes away (`| head`) is not an error.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use indicatif::ProgressBar;
use serde::Serialize;
use shoal_node::{Event, Failure};

use crate::{args::Global, text::clean};

/// Standard output and standard error, as the flags want them.
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    /// Standard output is for the bytes of a file.
    aside: bool,
    /// Standard output is gone.
    closed: AtomicBool,
    /// The bar that is drawn, so that lines do not go through it.
    bar: Mutex<Option<ProgressBar>>,
}

/// An error as a JSON line.
#[derive(Serialize)]
struct ErrorLine<'a> {
    event: &'static str,
    class: &'static str,
    message: &'a str,
    hint: Option<&'a str>,
    exit: u8,
}

impl Output {
    pub(crate) fn new(global: &Global) -> Self {
        Output {
            json: global.json,
            quiet: global.quiet,
            aside: false,
            closed: AtomicBool::new(false),
            bar: Mutex::new(None),
        }
    }

    /// What would go to standard output goes to standard error from now on.
    pub(crate) fn leave_stdout(&mut self) {
        self.aside = true;
    }

    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Whether a progress bar makes sense.
    pub(crate) fn draws(&self) -> bool {
        !self.json && !self.quiet && io::stderr().is_terminal()
    }

    /// Whether progress is said at all.
    pub(crate) fn talks(&self) -> bool {
        !self.json && !self.quiet
    }

    /// Makes room for lines above this bar from now on.
    pub(crate) fn set_bar(&self, bar: Option<ProgressBar>) {
        *self.bar.lock().unwrap_or_else(PoisonError::into_inner) = bar;
    }

    /// A result for people: one line on standard output.
    pub(crate) fn result(&self, line: &str) {
        self.out(line);
    }

    /// An event as a JSON line.
    pub(crate) fn event(&self, event: &Event) {
        self.line(event);
    }

    /// Any JSON line.
    pub(crate) fn line(&self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(line) => self.out(&line),
            Err(error) => self.talk(&format!("an event could not be written as JSON: {error}")),
        }
    }

    /// Talk: one line on standard error, unless `--quiet`.
    pub(crate) fn talk(&self, line: &str) {
        if !self.quiet {
            self.err(line);
        }
    }

    /// A failure: on standard error for people, on standard output as JSON.
    pub(crate) fn failure(&self, failure: &Failure) {
        if self.json {
            self.line(&ErrorLine {
                event: "error",
                class: failure.class.name(),
                message: &failure.message,
                hint: failure.hint.as_deref(),
                exit: failure.class.exit_code(),
            });
        } else {
            self.err(&format!("shoal: {}", clean(&failure.to_string())));
        }
    }

    fn out(&self, line: &str) {
        if self.aside {
            return self.err(line);
        }
        if self.closed.load(Ordering::Relaxed) {
            return;
        }
        let write = || {
            let mut out = io::stdout().lock();
            writeln!(out, "{line}")?;
            out.flush()
        };
        if let Err(error) = self.suspended(write) {
            self.closed.store(true, Ordering::Relaxed);
            if error.kind() != io::ErrorKind::BrokenPipe {
                self.err(&format!("shoal: cannot write to standard output: {error}"));
            }
        }
    }

    fn err(&self, line: &str) {
        // There is no place left to say that standard error is gone.
        if self.suspended(|| writeln!(io::stderr().lock(), "{line}")).is_err() {
            self.closed.store(true, Ordering::Relaxed);
        }
    }

    fn suspended<T>(&self, write: impl FnOnce() -> T) -> T {
        match &*self.bar.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}
