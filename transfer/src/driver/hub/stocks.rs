//! The hub's half that knows what is here: it has the store looked at, notes what came and what went, and tells members.

use super::*;
use crate::{
    haves::{News, Pace},
    wire::feature,
};

impl Hub {
    pub(super) fn look_for_losses(&mut self) {
        if self.store.has_lost() {
            self.agenda.note_losses();
        }
    }

    /// Starts the next look at the store, if there is one to start.
    pub(super) fn look(&mut self) {
        let Some(look) = self.agenda.next(self.now()) else { return };
        let (store, served, inbox) = (self.store.clone(), self.served.borrow().clone(), self.inbox.clone());
        self.tasks.spawn(async move {
            let looked = tokio::task::spawn_blocking(move || stock::look(&store, &served, look)).await;
            // a look that panicked found nothing; a hub that is gone is shutting down
            let _gone = inbox.send(Input::Looked(looked.unwrap_or_default())).await;
        });
    }

    /// A look is over.
    pub(super) fn looked(&mut self, found: Vec<(Cid, Found)>) {
        self.agenda.looked(self.now(), &found);
        for (root, found) in found {
            let Some(r) = self.roots.get_mut(&root) else { continue };
            match found {
                Found::Gone(leaves) => {
                    tracing::info!(%root, leaves = leaves.len(), "leaves are gone");
                    r.lost(leaves);
                }
                Found::Read(leaves, _) => r.gained(leaves),
                // a fetch knows better what it has brought meanwhile; the look is taken again when it ends
                Found::Here(_) if r.fetch.is_some() => {}
                Found::Here(here) => {
                    let gone: Vec<u32> = r.have.difference(&here).map(|leaf| leaf as u32).collect();
                    r.lost(gone);
                    r.gained(here.ones().map(|leaf| leaf as u32));
                }
            }
            self.touched.insert(root);
        }
    }

    /// Leaves cannot be read now: nobody else should ask for them until they can.
    pub(super) fn unread(&mut self, root: Cid, leaves: Vec<u32>) {
        let Some(r) = self.roots.get_mut(&root) else { return };
        self.agenda.note_unread(self.origin.elapsed(), root, leaves.iter().copied());
        r.lost(leaves);
        self.touched.insert(root);
    }

    /// What a fetch brought may be what another root has lost.
    pub(super) fn look_for_what_is_missing(&mut self) {
        for (root, r) in &self.roots {
            if r.seeding && r.fetch.is_none() && !r.have.is_full() {
                self.agenda.note_root(*root);
            }
        }
    }

    /// Tells members which leaves came, if it is time to, and which went.
    pub(super) fn announce(&mut self, root: Cid) {
        let now = self.now();
        let Some(r) = self.roots.get_mut(&root) else { return };
        if r.fresh.waiting().len() == 0 && r.gone.is_empty() {
            return;
        }
        let swarm = r.fetch.as_mut().and_then(|f| f.running()).map(|running| &running.swarm);
        let rare = swarm.is_some_and(|swarm| r.fresh.waiting().any(|leaf| swarm.is_rare(leaf)));
        let urgent = rare || r.have.is_full() || !r.gone.is_empty();
        let backlog = self.server.backlog();
        let pace = if urgent { Pace::Urgent } else { Pace::of(backlog) };
        let pack = |mut leaves: Vec<u32>, here: bool| {
            leaves.retain(|leaf| r.have.contains(*leaf as usize) == here);
            leaves.sort_unstable();
            leaves.dedup();
            LeafSet::pack(leaves)
        };
        let gone = pack(std::mem::take(&mut r.gone), false);
        for leaves in gone {
            for (_, member) in r.members.iter() {
                if let Some(link) = self.links.get_mut(&member.link) {
                    link.say_of(&root, |channel| Message::DontHave { channel, leaves: leaves.clone() });
                }
            }
        }
        let wait_ms = backlog.map(|wait| wait.as_millis().try_into().unwrap_or(u32::MAX));
        for News { peers, leaves } in r.fresh.poll_news(now, pace) {
            let fresh = pack(leaves, true);
            if fresh.is_empty() {
                continue;
            }
            for (_, link) in peers.into_iter().filter_map(|ix| r.members.by_ix(ix)) {
                let Some(link) = self.links.get_mut(&link) else { continue };
                for leaves in &fresh {
                    link.say_of(&root, |channel| Message::Have { channel, leaves: leaves.clone() });
                }
                if let Some(wait_ms) = wait_ms
                    && link.shared.can(feature::LOAD)
                {
                    link.say_of(&root, |channel| Message::Load { channel, wait_ms });
                }
            }
        }
    }
}
