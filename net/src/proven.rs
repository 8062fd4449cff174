//! Certificates that were verified of late, and whom they belong to. One handshake asks three times who a certificate's
//! owner is, and two peers connect twice, for libp2p and for data; verifying a certificate takes two signatures each time.
//! What a handshake proves, that the remote holds the certificate's key now, is never remembered.

use libp2p_tls::certificate;
use rustls::{
    CertificateError,
    pki_types::{CertificateDer, SubjectPublicKeyInfoDer},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::PeerId;

/// Certificates remembered: so many, to twice as many.
const REMEMBERED: usize = 256;
/// Longer ones are verified each time. libp2p's have some 380 bytes.
const LONGEST: usize = 1024;
/// They are remembered for so long, to three times as long: a certificate may run out.
const LIFE: Duration = Duration::from_secs(300);

/// Whose a certificate is.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) peer: PeerId,
    /// The key that the certificate binds to the peer.
    pub(crate) key: SubjectPublicKeyInfoDer<'static>,
}

/// What was verified of late, in two generations.
#[derive(Debug, Default)]
pub(crate) struct Proven(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    new: HashMap<Box<[u8]>, Arc<Owner>>,
    old: HashMap<Box<[u8]>, Arc<Owner>>,
    since: Option<Instant>,
}

impl Proven {
    /// Whose certificate this is, by libp2p's rules: it is valid today, signed by its own key, and the peer's key signed that.
    pub(crate) fn owner(&self, certificate: &CertificateDer<'_>, now: Instant) -> Result<Arc<Owner>, rustls::Error> {
        if let Some(owner) = self.generations().get(certificate, now) {
            return Ok(owner);
        }
        let peer = certificate::parse(certificate)?.peer_id();
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
        let key = SubjectPublicKeyInfoDer::from(parsed.public_key().raw).into_owned();
        let owner = Arc::new(Owner { peer, key });
        if certificate.len() <= LONGEST {
            self.generations().insert(certificate, owner.clone());
        }
        Ok(owner)
    }

    /// Held for moments.
    fn generations(&self) -> MutexGuard<'_, Generations> {
        // a panic elsewhere leaves whole entries
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn get(&mut self, certificate: &[u8], now: Instant) -> Option<Arc<Owner>> {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= LIFE {
            self.old = std::mem::take(&mut self.new);
            if now.saturating_duration_since(since) >= 2 * LIFE {
                self.old.clear();
            }
            self.since = Some(now);
        }
        self.new.get(certificate).or_else(|| self.old.get(certificate)).cloned()
    }

    fn insert(&mut self, certificate: &[u8], owner: Arc<Owner>) {
        if self.new.len() >= REMEMBERED {
            self.old = std::mem::take(&mut self.new);
        }
        self.new.insert(certificate.into(), owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Keypair;

    fn certificate() -> (PeerId, CertificateDer<'static>) {
        let keypair = Keypair::generate_ed25519();
        (keypair.public().to_peer_id(), certificate::generate(&keypair).unwrap().0)
    }

    #[test]
    fn a_certificate_is_remembered_for_a_while_and_no_other_is_taken_for_it() {
        let (proven, now) = (Proven::default(), Instant::now());
        let (peer, mine) = certificate();
        let first = proven.owner(&mine, now).unwrap();
        assert_eq!(first.peer, peer);
        assert!(Arc::ptr_eq(&first, &proven.owner(&mine, now).unwrap()), "not verified again");
        let mut refused = 0;
        for at in 0..mine.len() {
            let mut forged = mine.to_vec();
            forged[at] ^= 1;
            match proven.owner(&CertificateDer::from(forged), now) {
                Err(_) => refused += 1,
                Ok(owner) => assert!(owner.peer == peer && owner.key == first.key, "byte {at}"),
            }
        }
        assert!(refused > mine.len() - 8, "a few bytes around the signature's own mean nothing: {refused}");
        let (_, other) = certificate();
        assert_ne!(proven.owner(&other, now).unwrap().peer, peer);
        let later = proven.owner(&mine, now + 2 * LIFE).unwrap();
        assert!(!Arc::ptr_eq(&first, &later), "remembered for ever");
    }

    #[test]
    fn strangers_grow_nothing_without_bound() {
        let (proven, now) = (Proven::default(), Instant::now());
        let (peer, mine) = certificate();
        let owner = proven.owner(&mine, now).unwrap();
        for n in 0..4 * REMEMBERED as u64 {
            let mut generations = proven.generations();
            generations.insert(&n.to_le_bytes(), owner.clone());
            assert!(generations.new.len() <= REMEMBERED && generations.old.len() <= REMEMBERED);
        }
        assert_eq!(proven.owner(&mine, now).unwrap().peer, peer, "forgotten, and verified again");
    }
}
