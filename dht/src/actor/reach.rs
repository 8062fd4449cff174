//! Under which addresses others are told to find us, and what is done when nobody can dial us: relays.

use super::Actor;
use crate::scope::{Scope, dialable};
use libp2p::{Multiaddr, kad, multiaddr::Protocol};
use shoal_net::to_multiaddr;
use std::collections::BTreeSet;

/// So many failed tests of our public addresses in a row, by whichever peers, mean that we cannot be dialled.
pub(super) const PRIVATE_AFTER: u32 = 3;
/// Relays that an unreachable peer asks to be reached through.
pub(super) const MAX_RELAYS: usize = 2;

impl Actor {
    /// Tells others our addresses on local networks: no peer outside could test them, and those inside can use them.
    /// Public ones wait for AutoNAT's test. Loopback counts only where there is nothing else.
    pub(super) fn claim(&mut self) {
        let local: Vec<_> = self
            .swarm
            .listeners()
            .filter_map(|addr| dialable(addr).map(|(_, _, scope)| (addr.clone(), scope)))
            .collect();
        let only_loopback = local.iter().all(|(_, scope)| *scope == Scope::Loopback);
        let wanted: BTreeSet<_> = local
            .into_iter()
            .filter(|(_, scope)| *scope == Scope::Private || (*scope == Scope::Loopback && only_loopback))
            .map(|(addr, _)| addr)
            .collect();
        for gone in self.claimed.difference(&wanted) {
            self.swarm.remove_external_address(gone);
        }
        for new in wanted.difference(&self.claimed) {
            self.swarm.add_external_address(new.clone());
        }
        self.claimed = wanted;
    }

    pub(super) fn reachable(&mut self) {
        self.failed_tests = 0;
        if self.config.server_mode {
            self.kad().set_mode(Some(kad::Mode::Server));
        }
        for (listener, _) in std::mem::take(&mut self.relays) {
            self.swarm.remove_listener(listener);
        }
    }

    /// Nobody can dial us from outside: be a client of the DHT, and be reached through relays.
    pub(super) fn unreachable(&mut self) {
        if self.swarm.external_addresses().any(is_global) {
            self.failed_tests = 0;
            return;
        }
        tracing::info!("no peer could dial us; asking relays");
        self.kad().set_mode(Some(kad::Mode::Client));
        self.use_relays();
    }

    pub(super) fn use_relays(&mut self) {
        let candidates: Vec<_> = self.book.relays().collect();
        for (relay, socket) in candidates {
            if self.relays.len() >= MAX_RELAYS {
                return;
            }
            if self.relays.iter().any(|(_, known)| *known == relay) {
                continue;
            }
            let addr = to_multiaddr(socket).with(Protocol::P2p(relay)).with(Protocol::P2pCircuit);
            match self.swarm.listen_on(addr) {
                Ok(listener) => self.relays.push((listener, relay)),
                Err(error) => tracing::debug!(%relay, %error, "no circuit"),
            }
        }
    }
}

pub(super) fn is_global(addr: &Multiaddr) -> bool {
    dialable(addr).is_some_and(|(_, _, scope)| scope == Scope::Global)
}
