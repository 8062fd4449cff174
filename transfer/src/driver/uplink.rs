//! Where answers wait for their turn: the uplink's [`Turns`], with a clock, the endpoint's count of what arrived, and those
//! who wait. It decides nothing.

use crate::turns::{TurnId, Turns};
use shoal_net::{Endpoint, PeerId};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};

/// The uplink that all answers share.
pub(super) struct Uplink {
    endpoint: Endpoint,
    origin: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    turns: Turns<PeerId>,
    waiting: BTreeMap<TurnId, oneshot::Sender<()>>,
}

/// An answer that may be sent. Dropping it says that it has arrived, or is not sent any more.
pub(super) struct Turn<'a> {
    uplink: &'a Uplink,
    id: TurnId,
}

impl Uplink {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Uplink { endpoint, origin: Instant::now(), state: Mutex::default() }
    }

    /// Waits until an answer of `bytes` to `peer` may begin. `leaves` tell its leaves apart from all others. Cancel safe:
    /// an answer that is given up waits no more.
    pub(super) async fn turn(&self, peer: PeerId, bytes: u64, leaves: impl Iterator<Item = u64>) -> Turn<'_> {
        let (begin, begins) = oneshot::channel();
        let turn = {
            let mut state = self.state();
            let id = state.turns.handle_request(self.now(), peer, bytes, leaves);
            state.waiting.insert(id, begin);
            self.go_on(&mut state);
            Turn { uplink: self, id }
        };
        // the sender is kept until it is used, or the turn is dropped
        let _begun = begins.await;
        turn
    }

    /// How long what was asked for will take, as far as that is known.
    pub(super) fn backlog(&self) -> Option<Duration> {
        self.state().turns.backlog()
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Held for moments.
    fn state(&self) -> MutexGuard<'_, State> {
        // a panic elsewhere leaves a turn too many, at worst
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn go_on(&self, state: &mut State) {
        while let Some(id) = state.turns.poll_begin(self.now()) {
            if let Some(begin) = state.waiting.remove(&id) {
                // whoever gave up meanwhile says so next
                let _given_up = begin.send(());
            }
        }
    }
}

impl Turn<'_> {
    /// Runs what sends the answer, and what else is due meanwhile. Cancelling cancels both.
    pub(super) async fn during<T>(&self, sending: impl Future<Output = T>) -> T {
        tokio::pin!(sending);
        loop {
            let due = self.uplink.state().turns.poll_timeout().map(|at| self.uplink.origin + at);
            let wait = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                sent = &mut sending => return sent,
                () = wait => {
                    let mut state = self.uplink.state();
                    state.turns.handle_timeout(self.uplink.now(), self.uplink.endpoint.bytes_acknowledged());
                    self.uplink.go_on(&mut state);
                }
            }
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.uplink.state();
        state.waiting.remove(&self.id);
        state.turns.handle_ended(self.uplink.now(), self.id);
        self.uplink.go_on(&mut state);
    }
}
