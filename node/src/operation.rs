//! An operation under way: a stream of events that ends in success or in a failure, whether it runs in this process or
//! in a daemon behind the control socket. Progress is a value; nobody registers a callback.

use std::future::Future;

use tokio::sync::mpsc;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{Event, Failure, control};

/// Events that wait for their reader. Progress beyond it is dropped, everything else waits.
const QUEUED_EVENTS: usize = 64;

/// An operation under way. Dropping it cancels it.
#[derive(Debug)]
pub struct Operation {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Here { items: mpsc::Receiver<Item>, cancel: DropGuard },
    Daemon(control::Answers),
    Failed(Option<Failure>),
    Ended,
}

/// What an operation says: events, then its end.
#[derive(Debug)]
pub(crate) enum Item {
    Event(Box<Event>),
    End(Result<(), Failure>),
}

impl Operation {
    /// The next event; `None` after the last one of an operation that succeeded. Results are events as well.
    ///
    /// Cancel-safe: an event is never lost. After the end it stays `Ok(None)`.
    ///
    /// # Errors
    /// The operation's failure, once.
    pub async fn next(&mut self) -> Result<Option<Event>, Failure> {
        let item = match &mut self.source {
            Source::Here { items, .. } => items
                .recv()
                .await
                .unwrap_or_else(|| Item::End(Err(Failure::internal("an operation ended without a result")))),
            Source::Daemon(answers) => answers.next().await,
            Source::Failed(failure) => Item::End(failure.take().map_or(Ok(()), Err)),
            Source::Ended => return Ok(None),
        };
        match item {
            Item::Event(event) => Ok(Some(*event)),
            Item::End(result) => {
                self.source = Source::Ended;
                result.map(|()| None)
            }
        }
    }

    /// Asks it to stop. It ends soon after, usually with [`crate::Class::Interrupted`]; go on with [`Operation::next`].
    pub async fn cancel(&mut self) {
        match &mut self.source {
            Source::Here { cancel, .. } => {
                // A guard can only be disarmed or dropped; a fresh one of an equal token takes its place.
                let fresh = CancellationToken::new().drop_guard();
                drop(std::mem::replace(cancel, fresh));
            }
            Source::Daemon(answers) => answers.cancel().await,
            Source::Failed(_) | Source::Ended => {}
        }
    }

    /// Runs `work` as a task of `tasks`, cancelled with `parent`.
    pub(crate) fn spawn<F, Fut>(tasks: &TaskTracker, parent: &CancellationToken, work: F) -> Operation
    where
        F: FnOnce(Sink) -> Fut,
        Fut: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let (sender, items) = mpsc::channel(QUEUED_EVENTS);
        let token = parent.child_token();
        let work = work(Sink { items: sender.clone(), cancel: token.clone() });
        tasks.spawn(async move {
            let result = work.await;
            // The reader may be gone: it dropped the operation and wants no answer.
            if sender.send(Item::End(result)).await.is_err() {
                tracing::debug!("an operation ended that nobody waited for");
            }
        });
        Operation { source: Source::Here { items, cancel: token.drop_guard() } }
    }

    /// An operation that could not begin.
    pub(crate) fn failed(failure: Failure) -> Operation {
        Operation { source: Source::Failed(Some(failure)) }
    }

    /// An operation that a daemon runs.
    pub(crate) fn of_daemon(answers: control::Answers) -> Operation {
        Operation { source: Source::Daemon(answers) }
    }
}

/// Where an operation's task says what happens.
#[derive(Clone, Debug)]
pub(crate) struct Sink {
    items: mpsc::Sender<Item>,
    cancel: CancellationToken,
}

impl Sink {
    /// Says something that must not be lost. Waits while the reader is behind; cancellation ends the wait.
    pub(crate) async fn event(&self, event: Event) -> Result<(), Failure> {
        tokio::select! {
            sent = self.items.send(Item::Event(Box::new(event))) => sent.map_err(|_| Failure::interrupted()),
            () = self.cancel.cancelled() => Err(Failure::interrupted()),
        }
    }

    /// Says something even though the operation is being cancelled, if the reader keeps up.
    pub(crate) fn progress(&self, event: Event) {
        // A reader that is behind gets the next figures instead; one that is gone wants none.
        if self.items.try_send(Item::Event(Box::new(event))).is_err() {
            tracing::trace!("progress was dropped");
        }
    }

    /// Whether to stop.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// The token that says so.
    pub(crate) fn token(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Completes when it is time to stop.
    pub(crate) async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Class;

    fn warning(message: &str) -> Event {
        Event::Warning { message: message.to_owned() }
    }

    #[tokio::test]
    async fn events_come_in_order_and_then_the_end() {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let mut operation = Operation::spawn(&tasks, &stop, |sink| async move {
            sink.event(warning("a")).await?;
            sink.event(warning("b")).await
        });
        assert_eq!(operation.next().await.unwrap(), Some(warning("a")));
        assert_eq!(operation.next().await.unwrap(), Some(warning("b")));
        assert_eq!(operation.next().await.unwrap(), None);
        assert_eq!(operation.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn cancelling_and_dropping_stop_the_work() {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let wait = |sink: Sink| async move {
            sink.cancelled().await;
            Err(Failure::interrupted())
        };
        let mut operation = Operation::spawn(&tasks, &stop, wait);
        operation.cancel().await;
        assert_eq!(operation.next().await.unwrap_err().class, Class::Interrupted);
        drop(Operation::spawn(&tasks, &stop, wait));
        tasks.close();
        tasks.wait().await;
    }

    #[tokio::test]
    async fn a_reader_that_is_behind_holds_up_events_but_not_progress() {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let mut operation = Operation::spawn(&tasks, &stop, |sink| async move {
            for _ in 0..10 * QUEUED_EVENTS {
                sink.progress(warning("p"));
            }
            sink.event(warning("last")).await
        });
        let mut events = Vec::new();
        while let Some(event) = operation.next().await.unwrap() {
            events.push(event);
        }
        assert_eq!(events.len(), QUEUED_EVENTS + 1);
        assert_eq!(events.last(), Some(&warning("last")));
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_failure() {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let mut operation = Operation::spawn(&tasks, &stop, |_| async { panic!("on purpose") });
        assert_eq!(operation.next().await.unwrap_err().class, Class::Internal);
    }
}
