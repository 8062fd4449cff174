//! Where answers wait for their turn: the uplink's [`Turns`], with a clock, what the endpoint counts, and those who wait. It
//! decides nothing.

use super::hub::sleep_until;
use crate::turns::{TurnId, Turns};
use shoal_net::{Endpoint, PeerId};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

/// The uplink that all answers share.
pub(super) struct Uplink {
    endpoint: Endpoint,
    origin: Instant,
    state: Mutex<State>,
    /// Something else may be due next.
    changed: Notify,
}

#[derive(Default)]
struct State {
    turns: Turns<PeerId>,
    waiting: BTreeMap<TurnId, oneshot::Sender<()>>,
    /// What [`Uplink::run`] waits for: a time, and room.
    awaited: (Option<Duration>, Option<u64>),
}

/// An answer that may be sent. Dropping it says that it has arrived, or is not sent any more.
pub(super) struct Turn<'a> {
    uplink: &'a Uplink,
    id: TurnId,
}

impl Uplink {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Uplink { endpoint, origin: Instant::now(), state: Mutex::default(), changed: Notify::new() }
    }

    /// Lets answers begin when time passes and when the uplink has room. Runs until it is dropped; without it those begin
    /// late that wait for that.
    pub(super) async fn run(&self) {
        loop {
            let (due, room) = {
                let mut state = self.state();
                state.awaited = (state.turns.poll_timeout(), state.turns.poll_room());
                state.awaited
            };
            tokio::select! {
                () = sleep_until(due.map(|at| self.origin + at)) => {
                    let mut state = self.state();
                    state.turns.handle_timeout(self.now(), self.endpoint.carried().acknowledged);
                    self.begin(&mut state);
                }
                () = self.endpoint.room(room.unwrap_or(0)), if room.is_some() => self.begin(&mut self.state()),
                () = self.changed.notified() => {}
            }
        }
    }

    /// Waits until an answer of `bytes` to `peer` may begin. `leaves` tell its leaves apart from all others. Cancel safe:
    /// an answer that is given up waits no more.
    pub(super) async fn turn(&self, peer: PeerId, bytes: u64, leaves: impl Iterator<Item = u64>) -> Turn<'_> {
        let (begin, begins) = oneshot::channel();
        let turn = {
            let mut state = self.state();
            let id = state.turns.handle_request(self.now(), peer, bytes, leaves);
            state.waiting.insert(id, begin);
            self.begin(&mut state);
            self.tell(&state);
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

    fn begin(&self, state: &mut State) {
        let rate = self.endpoint.carried().rate;
        while let Some(id) = state.turns.poll_begin(self.now(), rate) {
            if let Some(begin) = state.waiting.remove(&id) {
                // whoever gave up meanwhile says so next
                let _given_up = begin.send(());
            }
        }
    }

    /// Wakes [`run`](Self::run), if it waits for something else than what is next.
    fn tell(&self, state: &State) {
        let ((due, room), next) = (state.awaited, state.turns.poll_timeout());
        let sooner = next.is_some_and(|next| due.is_none_or(|due| next < due));
        if sooner || room != state.turns.poll_room() {
            self.changed.notify_one();
        }
    }
}

impl Turn<'_> {
    /// Some of it is being sent.
    pub(super) fn is_sent(&self) {
        let mut state = self.uplink.state();
        state.turns.handle_sent(self.id);
        self.uplink.tell(&state);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.uplink.state();
        state.waiting.remove(&self.id);
        state.turns.handle_ended(self.uplink.now(), self.id);
        self.uplink.begin(&mut state);
        self.uplink.tell(&state);
    }
}
