//! The control socket: how `shoal` commands reach the process that has the home directory open.
//!
//! A unix socket, mode 0600 in a directory of mode 0700, so whoever can connect is the user. JSON lines: the server says
//! [`Hello`], the client one request, the server its events and the end; bytes of files follow a line that says how many. A client that shuts down its side, or goes,
//! cancels its operation. Lines are bounded both ways.

mod client;
mod lines;
mod server;
mod socket;

use serde::{Deserialize, Serialize};

use crate::{Event, Failure, Request};

pub(crate) use client::Answers;
pub use client::Client;
pub(crate) use server::{Run, Server};

/// The version of what is said on the socket. Another one is refused, with advice.
pub const CONTROL_VERSION: u32 = 1;

/// What the server says first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`CONTROL_VERSION`] of the server.
    pub control: u32,
    /// Its program's version.
    pub version: String,
    /// Its peer id.
    pub peer: String,
    /// Its process.
    pub pid: u32,
    /// Whether it runs until it is told to stop. A process that does not lives as long as its own operation and
    /// those of its clients.
    pub daemon: bool,
}

/// What the client says.
#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    control: u32,
    ask: Request,
}

/// What the server answers, line by line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Event(Box<Event>),
    /// So many bytes of a file follow, as they are.
    Bytes(u32),
    Error(Failure),
    End,
}
