//! Running one request to its end: here or in the process that has the home open, with its events shown and signals
//! obeyed.

use std::{io, time::Duration};

use shoal_node::{Class, Config, Event, Failure, Home, Host, Node, Request, Role};

use crate::{output::Output, pipe::Pipe, signals::Signals, view::View};

/// A wait for other commands that is longer than this is worth a word.
const WORTH_A_WORD: Duration = Duration::from_millis(500);

/// Runs a request.
pub(crate) async fn request(
    home: &Home,
    config: &Config,
    output: &Output,
    mut request: Request,
) -> Result<(), Failure> {
    let mut signals = listen()?;
    let host = tokio::select! {
        host = Host::open(home, config, &request) => host?,
        () = signals.next() => return Err(Failure::interrupted()),
    };
    let mut view = View::new(output);
    if let Some(hello) = host.other() {
        view.handed_over(hello.pid, hello.daemon);
        if hello.daemon
            && let Request::Share { stay, .. } | Request::Fetch { stay, .. } = &mut request
        {
            // The daemon stays anyway.
            *stay = false;
        }
    }
    let stays = matches!(request, Request::Share { stay: true, .. } | Request::Fetch { stay: true, .. });
    let mut pipe = matches!(request, Request::Read { .. }).then(Pipe::start);
    // Why no more is to be written.
    let mut closed: Option<io::Error> = None;
    let (mut operation, node) = host.run(request).await?;
    let mut served = false;
    let mut interrupted = false;
    let result = loop {
        let next = tokio::select! {
            next = operation.next() => next,
            () = signals.next() => {
                if interrupted {
                    // The second one: at once.
                    view.finish();
                    return Err(Failure::interrupted());
                }
                interrupted = true;
                operation.cancel().await;
                continue;
            }
        };
        match next {
            Ok(Some(Event::Bytes(bytes))) => {
                let Some(open) = pipe.as_mut().filter(|_| closed.is_none() && !interrupted) else { continue };
                tokio::select! {
                    written = open.write(bytes) => if let Err(error) = written {
                        closed = Some(error);
                        operation.cancel().await;
                    },
                    () = signals.next() => {
                        interrupted = true;
                        operation.cancel().await;
                    }
                }
            }
            Ok(Some(event)) => {
                if matches!(event, Event::Shared(_) | Event::Done(_)) && !served {
                    served = true;
                    // Since it stays, what the home has besides is served as well.
                    if let Some(node) = node.as_ref().filter(|_| stays) {
                        node.serve_known();
                    }
                }
                view.event(event);
            }
            Ok(None) => break Ok(()),
            Err(failure) => break Err(failure),
        }
    };
    view.finish();
    // A process that had served what it was asked to was stopped, not interrupted.
    let result = match result {
        Err(_) if interrupted && served => Ok(()),
        other => other,
    };
    if let Some(pipe) = pipe.filter(|_| closed.is_none() && result.is_ok()) {
        tokio::select! {
            written = pipe.finish() => closed = written.err(),
            () = signals.next() => return Err(Failure::interrupted()),
        }
    }
    let result = match closed {
        // Whoever read has enough.
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Some(error) => Err(unwritten(&error)),
        None => result,
    };
    drop(operation);
    match node {
        Some(node) => result.and(close(&node, output, &mut signals, interrupted).await),
        None => result,
    }
}

fn unwritten(error: &io::Error) -> Failure {
    let message = format!("cannot write to standard output: {error}");
    Failure::new(Class::Disk, message, "check where it goes, then run this again")
}

/// Runs a node until it is told to stop.
pub(crate) async fn daemon(home: &Home, config: &Config, output: &Output) -> Result<(), Failure> {
    let mut signals = listen()?;
    let node = tokio::select! {
        node = Node::start(home.clone(), config.clone(), Role::Daemon) => node?,
        () = signals.next() => return Err(Failure::interrupted()),
    };
    node.serve_known();
    node.resume_fetches();
    let mut view = View::new(output);
    view.event(Event::Listening(node.listening()));
    let mut warnings = node.warnings();
    loop {
        tokio::select! {
            message = warnings.next() => view.event(Event::Warning { message }),
            () = signals.next() => break,
        }
    }
    close(&node, output, &mut signals, true).await
}

/// Shuts a node down in order. Unless it was told to stop, it first waits for commands that others handed to it. A
/// signal meanwhile cuts it short.
async fn close(node: &Node, output: &Output, signals: &mut Signals, told_to_stop: bool) -> Result<(), Failure> {
    if !told_to_stop {
        let waiting = async {
            let mut linger = std::pin::pin!(node.linger());
            if tokio::time::timeout(WORTH_A_WORD, &mut linger).await.is_err() {
                output.talk("Waiting for other commands that run through this process; Ctrl-C stops them.");
                linger.await;
            }
        };
        tokio::select! {
            () = waiting => {}
            () = signals.next() => {}
        }
    }
    tokio::select! {
        closed = node.shutdown() => closed,
        () = signals.next() => Err(Failure::interrupted()),
    }
}

pub(crate) fn listen() -> Result<Signals, Failure> {
    Signals::new().map_err(|error| Failure::internal(format!("cannot listen for signals: {error}")))
}
