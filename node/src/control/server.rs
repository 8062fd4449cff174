//! The server's side of the control socket: one task that accepts, one for each client, all owned and drained.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, WriteHalf},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Answer, Ask, CONTROL_VERSION, Hello, lines, lines::LineReader, socket};
use crate::{Class, Event, Failure, Home, Operation, Request};

/// Clients at the same time. Each is a command of the user's; beyond it, they wait in the socket's backlog.
const MAX_CLIENTS: usize = 64;
/// Pause after a client could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// That none can be accepted is said this often.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// A client that has connected says what it wants within this time.
const ASK_WITHIN: Duration = Duration::from_secs(10);

/// What runs requests: the node. A seam for tests.
pub(crate) trait Run: Clone + Send + Sync + 'static {
    /// Starts an operation.
    fn run(&self, request: Request) -> Operation;
}

/// The running server.
#[derive(Debug)]
pub(crate) struct Server {
    home: Home,
    accepting: CancellationToken,
    clients: TaskTracker,
}

impl Server {
    /// Listens. The caller holds the home's lock, so nobody else does.
    pub(crate) fn start(home: &Home, hello: Hello, node: impl Run) -> io::Result<Server> {
        let listener = socket::bind(&home.socket())?;
        let (accepting, clients) = (CancellationToken::new(), TaskTracker::new());
        clients.spawn(accept(listener, hello, node, accepting.clone(), clients.clone()));
        Ok(Server { home: home.clone(), accepting, clients })
    }

    /// Takes no more clients and waits until those there have their answers. Cancel-safe.
    pub(crate) async fn finish(&self) {
        if !self.accepting.is_cancelled() {
            // A later process may bind the path as soon as it is free, so it is removed while the lock is still held.
            if let Err(error) = std::fs::remove_file(self.home.socket()) {
                tracing::debug!(%error, "the control socket was gone already");
            }
            self.accepting.cancel();
        }
        self.clients.close();
        self.clients.wait().await;
    }
}

async fn accept(
    listener: socket::Listener,
    hello: Hello,
    node: impl Run,
    stop: CancellationToken,
    clients: TaskTracker,
) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    // When it was last said that no client can be accepted.
    let mut told: Option<Instant> = None;
    loop {
        let next = async {
            let Ok(place) = places.clone().acquire_owned().await else { std::future::pending().await };
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (hello, node) = (hello.clone(), node.clone());
                clients.spawn(async move {
                    if let Err(error) = serve(stream, hello, node).await {
                        tracing::debug!(%error, "a client of the control socket went");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: wait for some to come free rather than spin. Clients wait too.
                if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
                    told = Some(Instant::now());
                    tracing::warn!(%error, "cannot accept on the control socket; trying on");
                }
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn serve(stream: socket::Stream, hello: Hello, node: impl Run) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(stream);
    lines::write(&mut writer, &hello).await?;
    let mut reader = LineReader::new(reader);
    let ask = match timeout(ASK_WITHIN, reader.next::<Ask>()).await {
        Ok(Ok(Some(ask))) if ask.control == CONTROL_VERSION => ask.ask,
        // It only looked who is there.
        Ok(Ok(None)) => return Ok(()),
        Ok(Ok(Some(ask))) => {
            let message =
                format!("the request is of version {} of the control protocol, not {CONTROL_VERSION}", ask.control);
            return refuse(&mut writer, &message).await;
        }
        Ok(Err(error)) => return refuse(&mut writer, &format!("the request cannot be read: {error}")).await,
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    };
    let mut operation = node.run(ask);
    let mut reader = reader.into_inner();
    let mut gone = false;
    let mut byte = [0];
    loop {
        let next = tokio::select! {
            next = operation.next() => next,
            _ = reader.read(&mut byte), if !gone => {
                // The client closed its side, or talks out of turn: either way it wants no more.
                gone = true;
                operation.cancel().await;
                continue;
            }
        };
        let answer = match next {
            Ok(Some(Event::Bytes(bytes))) => {
                // a client that takes its time holds up the operation, and nothing else
                for piece in bytes.chunks(u32::MAX as usize) {
                    lines::write(&mut writer, &Answer::Bytes(piece.len() as u32)).await?;
                    writer.write_all(piece).await?;
                }
                continue;
            }
            Ok(Some(event)) => Answer::Event(Box::new(event)),
            Ok(None) => Answer::End,
            Err(failure) => Answer::Error(failure),
        };
        let last = !matches!(answer, Answer::Event(_));
        lines::write(&mut writer, &answer).await?;
        if last {
            return Ok(());
        }
    }
}

async fn refuse(writer: &mut WriteHalf<socket::Stream>, message: &str) -> io::Result<()> {
    let failure = Failure::new(Class::Usage, message, "use the same version of shoal on both sides");
    lines::write(writer, &Answer::Error(failure)).await
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::control::Client;

    fn note(message: &str) -> Event {
        Event::Warning { message: message.to_owned() }
    }

    #[derive(Clone)]
    struct Echo {
        tasks: TaskTracker,
        stop: CancellationToken,
    }

    impl Run for Echo {
        fn run(&self, request: Request) -> Operation {
            Operation::spawn(&self.tasks, &self.stop, |sink| async move {
                match request {
                    Request::Stat { what } => sink.event(note(&what)).await,
                    Request::Read { offset, .. } => {
                        for n in 0..offset {
                            sink.event(Event::Bytes(vec![n as u8; 70_000].into())).await?;
                        }
                        sink.event(note("read")).await
                    }
                    Request::Peers => {
                        sink.event(note("waiting")).await?;
                        sink.cancelled().await;
                        Err(Failure::interrupted())
                    }
                    _ => Err(Failure::new(Class::NotFound, "no such thing", "look elsewhere")),
                }
            })
        }
    }

    fn start(dir: &std::path::Path) -> (Home, Server) {
        let home = Home::locate(Some(dir), None).unwrap();
        home.open().unwrap();
        let hello =
            Hello { control: CONTROL_VERSION, version: "test".to_owned(), peer: "p".to_owned(), pid: 1, daemon: true };
        let echo = Echo { tasks: TaskTracker::new(), stop: CancellationToken::new() };
        let server = Server::start(&home, hello, echo).unwrap();
        (home, server)
    }

    async fn run(home: &Home, request: Request) -> Operation {
        Client::connect(home).await.unwrap().unwrap().run(request).await.unwrap()
    }

    #[tokio::test]
    async fn events_failures_and_cancellation_cross_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        // Long enough not to fit in a socket address.
        let (home, server) = start(&dir.path().join("x".repeat(150)));
        let mut operation = run(&home, Request::Stat { what: "hällo\n".to_owned() }).await;
        assert_eq!(operation.next().await.unwrap(), Some(note("hällo\n")));
        assert_eq!(operation.next().await.unwrap(), None);

        let failure = run(&home, Request::Id).await.next().await.unwrap_err();
        assert_eq!((failure.class, failure.hint.as_deref()), (Class::NotFound, Some("look elsewhere")));

        let mut operation = run(&home, Request::Peers).await;
        assert_eq!(operation.next().await.unwrap(), Some(note("waiting")));
        operation.cancel().await;
        assert_eq!(operation.next().await.unwrap_err().class, Class::Interrupted);

        // Bytes cross as they are, with newlines and all, and events after them.
        let what = Request::Read { what: String::new(), path: None, offset: 40, length: None };
        let mut operation = run(&home, what).await;
        let mut read = Vec::new();
        while let Some(event) = operation.next().await.unwrap() {
            match event {
                Event::Bytes(bytes) => read.extend_from_slice(&bytes),
                event => assert_eq!(event, note("read")),
            }
        }
        assert!(read.chunks(70_000).zip(0..).all(|(chunk, n)| chunk == vec![n; 70_000]) && read.len() == 40 * 70_000);

        // A client that vanishes is cancelled as well, or this would wait for ever.
        let mut operation = run(&home, Request::Peers).await;
        assert!(operation.next().await.unwrap().is_some());
        drop(operation);
        server.finish().await;
        assert!(Client::connect(&home).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn nonsense_is_answered_and_survived() {
        let dir = tempfile::tempdir().unwrap();
        let (home, server) = start(&dir.path().join("h"));
        for bytes in [&b"nonsense\n"[..], b"{\"control\":9,\"ask\":{\"request\":\"id\"}}\n", b"{\"control\":1}\n"] {
            let mut stream = tokio::net::UnixStream::connect(home.socket()).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut reader = LineReader::new(stream);
            reader.next::<Hello>().await.unwrap().unwrap();
            assert!(matches!(reader.next::<Answer>().await.unwrap(), Some(Answer::Error(_))));
        }
        let mut operation = run(&home, Request::Stat { what: "still here".to_owned() }).await;
        assert!(operation.next().await.unwrap().is_some());
        drop(operation);
        server.finish().await;
    }

    #[tokio::test]
    async fn a_socket_left_by_a_dead_process_is_nobody_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(dir.path()), None).unwrap();
        drop(std::os::unix::net::UnixListener::bind(home.socket()).unwrap());
        assert!(Client::connect(&home).await.unwrap().is_none());
        std::fs::remove_file(home.socket()).unwrap();
        let (home, server) = start(dir.path());
        assert!(Client::connect(&home).await.unwrap().is_some());
        server.finish().await;
    }
}
