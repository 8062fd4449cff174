//! The client's side of the control socket.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncWriteExt, ReadHalf, WriteHalf},
    time::timeout,
};

use super::{Answer, Ask, CONTROL_VERSION, Hello, lines, lines::LineReader, socket};
use crate::{Class, Event, Failure, Home, Operation, Request, operation::Item};

/// A daemon that has accepted a connection says hello within this time, or is stuck.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// A connection to the process that has a home open, before the request.
#[derive(Debug)]
pub struct Client {
    hello: Hello,
    reader: LineReader<ReadHalf<socket::Stream>>,
    writer: WriteHalf<socket::Stream>,
}

impl Client {
    /// Connects; `None` if no process listens there.
    ///
    /// # Errors
    /// [`Class::Home`]: somebody listens but does not answer as a shoal of this version.
    pub async fn connect(home: &Home) -> Result<Option<Client>, Failure> {
        let path = home.socket();
        let stream = match timeout(HELLO_WITHIN, socket::connect(&path)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if is_absence(&error) => return Ok(None),
            Ok(Err(error)) => return Err(unusable(home, &error.to_string())),
            Err(_) => return Err(unusable(home, "no answer")),
        };
        let (reader, writer) = tokio::io::split(stream);
        let mut reader = LineReader::new(reader);
        let hello: Hello = match timeout(HELLO_WITHIN, reader.next()).await {
            Ok(Ok(Some(hello))) => hello,
            // It is just closing.
            Ok(Ok(None)) => return Ok(None),
            Ok(Err(error)) if is_absence(&error) => return Ok(None),
            Ok(Err(error)) => return Err(unusable(home, &error.to_string())),
            Err(_) => return Err(unusable(home, "no answer")),
        };
        if hello.control != CONTROL_VERSION {
            let message = format!(
                "the shoal that runs on {} (process {}, version {}) speaks version {} of the control protocol, this one {}",
                home.dir().display(),
                hello.pid,
                hello.version,
                hello.control,
                CONTROL_VERSION
            );
            return Err(Failure::new(Class::Home, message, "stop it and start it again with this version"));
        }
        Ok(Some(Client { hello, reader, writer }))
    }

    /// Who answers.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Has it run a request.
    ///
    /// # Errors
    /// [`Class::Home`] when the connection broke.
    pub async fn run(mut self, request: Request) -> Result<Operation, Failure> {
        let ask = Ask { control: CONTROL_VERSION, ask: request };
        lines::write(&mut self.writer, &ask).await.map_err(|error| gone(&self.hello, Some(&error)))?;
        Ok(Operation::of_daemon(Answers { hello: self.hello, reader: self.reader, writer: self.writer, raw: 0 }))
    }
}

/// The answers to one request.
#[derive(Debug)]
pub(crate) struct Answers {
    hello: Hello,
    reader: LineReader<ReadHalf<socket::Stream>>,
    writer: WriteHalf<socket::Stream>,
    /// Bytes of a file that come before the next line.
    raw: usize,
}

impl Answers {
    /// The next item. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Item {
        if self.raw == 0 {
            match self.reader.next::<Answer>().await {
                Ok(Some(Answer::Bytes(count))) => self.raw = count as usize,
                Ok(Some(Answer::Event(event))) => return Item::Event(event),
                Ok(Some(Answer::Error(failure))) => return Item::End(Err(failure)),
                Ok(Some(Answer::End)) => return Item::End(Ok(())),
                Ok(None) => return Item::End(Err(gone(&self.hello, None))),
                Err(error) => return Item::End(Err(gone(&self.hello, Some(&error)))),
            }
        }
        match self.reader.raw(self.raw).await {
            Ok(bytes) if bytes.is_empty() => Item::End(Err(gone(&self.hello, None))),
            Ok(bytes) => {
                self.raw -= bytes.len();
                Item::Event(Box::new(Event::Bytes(bytes)))
            }

            Err(error) => Item::End(Err(gone(&self.hello, Some(&error)))),
        }
    }

    /// Closes our side, which cancels the operation.
    pub(crate) async fn cancel(&mut self) {
        // If it is gone already, the next read says so.
        if let Err(error) = self.writer.shutdown().await {
            tracing::debug!(%error, "the daemon went before it could be told to cancel");
        }
    }
}

/// Nobody listens; or whoever did ended, or was killed, before it accepted.
fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused | NotADirectory | ConnectionReset)
}

fn unusable(home: &Home, why: &str) -> Failure {
    let message = format!("the process behind {} cannot be used: {why}", home.socket().display());
    Failure::new(Class::Home, message, "stop the shoal that runs on this home, then try again")
}

fn gone(hello: &Hello, error: Option<&io::Error>) -> Failure {
    let why = error.map(|error| format!(" ({error})")).unwrap_or_default();
    let message = format!("the shoal that ran this (process {}) has stopped{why}", hello.pid);
    Failure::new(Class::Interrupted, message, "run the same command again")
}
