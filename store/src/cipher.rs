//! Encryption at rest: how records of packs, values of the index and the second copy of the roots are sealed. Keys in use
//! only; where they come from, and the passphrase, are `keyfile`'s. Nothing here does IO.
//!
//! All of it is XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03), under keys derived from the store's data key, one for
//! each use. A record's nonce is a keyed hash of its CID: the CID determines the plaintext, so a nonce never meets two.
//! Every other nonce is 24 random bytes, and goes in front of what it sealed. What is authenticated besides (a record's
//! header, or table and key of a value) keeps what was sealed in one place from being taken for another.

use std::{
    borrow::Cow,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use chacha20poly1305::{AeadInPlace, KeyInit, Tag, XChaCha20Poly1305, XNonce};
use rand::{TryRng, rngs::SysRng};
use shoal_content::Cid;
use zeroize::Zeroizing;

/// Length of what authenticates a sealed record or value, in bytes.
pub(crate) const TAG_BYTES: usize = 16;
/// Length of a nonce, in bytes.
pub(crate) const NONCE_BYTES: usize = 24;
/// What a sealed value is longer than the plain one, in bytes.
pub(crate) const VALUE_OVERHEAD: usize = NONCE_BYTES + TAG_BYTES;

/// A secret key, wiped when it is dropped.
pub(crate) type SecretKey = Zeroizing<[u8; 32]>;

/// How a store keeps its own files: as they are, or sealed. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seal(Option<Arc<Cipher>>);

/// The keys of an open store.
struct Cipher {
    packs: XChaCha20Poly1305,
    index: XChaCha20Poly1305,
    roots: XChaCha20Poly1305,
    /// Makes the nonces of records.
    names: SecretKey,
    nonces: Nonces,
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher")
    }
}

/// Nonces that are as good as random: a keyed hash of a counter, under a key drawn when the store was opened. Asking the
/// operating system for each of a million rows would take longer than sealing them.
struct Nonces {
    seed: SecretKey,
    next: AtomicU64,
}

impl Nonces {
    fn take(&self) -> XNonce {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        nonce(&self.seed, &n.to_le_bytes())
    }
}

fn nonce(key: &SecretKey, of: &[u8]) -> XNonce {
    *XNonce::from_slice(&blake3::keyed_hash(key, of).as_bytes()[..NONCE_BYTES])
}

/// Fills `bytes` from the operating system.
pub(crate) fn random(bytes: &mut [u8]) -> io::Result<()> {
    SysRng.try_fill_bytes(bytes).map_err(io::Error::other)
}

/// Seals in place. A plaintext of 256 GiB would be too long; blocks are bounded, and a value is in memory.
pub(crate) fn seal_in_place(cipher: &XChaCha20Poly1305, nonce: &XNonce, context: &[u8], bytes: &mut [u8]) -> Tag {
    match cipher.encrypt_in_place_detached(nonce, context, bytes) {
        Ok(tag) => tag,
        Err(_) => unreachable!("a plaintext of 256 GiB"),
    }
}

impl Seal {
    /// Sealed with keys derived from a data key. Without randomness from the operating system there are none.
    pub(crate) fn new(data_key: &SecretKey) -> io::Result<Self> {
        let derive = |context| Zeroizing::new(blake3::derive_key(context, &data_key[..]));
        let cipher = |context| XChaCha20Poly1305::new((&*derive(context)).into());
        let mut seed = SecretKey::default();
        random(&mut seed[..])?;
        Ok(Seal(Some(Arc::new(Cipher {
            packs: cipher("shoal store 2026 records of packs"),
            index: cipher("shoal store 2026 values of the index"),
            roots: cipher("shoal store 2026 second copy of the roots"),
            names: derive("shoal store 2026 nonces of records"),
            nonces: Nonces { seed, next: AtomicU64::new(0) },
        }))))
    }

    /// Whether anything is sealed.
    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// What follows the payload of a record, in bytes.
    pub(crate) fn tag_bytes(&self) -> usize {
        if self.is_on() { TAG_BYTES } else { 0 }
    }

    /// Seals a record's payload in place. Gives what is to follow it: nothing if the store is plain.
    pub(crate) fn seal_record(&self, cid: &Cid, header: &[u8], payload: &mut [u8]) -> Option<[u8; TAG_BYTES]> {
        let cipher = self.0.as_ref()?;
        let nonce = nonce(&cipher.names, &cid.key());
        Some(seal_in_place(&cipher.packs, &nonce, header, payload).into())
    }

    /// Opens a record's payload in place. False if that is not what was sealed under this header; then it stays as it was.
    pub(crate) fn open_record(&self, cid: &Cid, header: &[u8], payload: &mut [u8], tag: &[u8; TAG_BYTES]) -> bool {
        self.0.as_ref().is_some_and(|cipher| {
            let nonce = nonce(&cipher.names, &cid.key());
            cipher.packs.decrypt_in_place_detached(&nonce, header, payload, tag.into()).is_ok()
        })
    }

    /// A value as it is to lie in a table of the index.
    pub(crate) fn seal_value<'a>(&self, table: &str, key: &[u8], plain: &'a [u8]) -> Cow<'a, [u8]> {
        match &self.0 {
            Some(cipher) => Cow::Owned(cipher.seal(&cipher.index, &context(table, key), plain)),
            None => Cow::Borrowed(plain),
        }
    }

    /// A value of the index as it was before it was sealed; `None` if it was not sealed for this place.
    pub(crate) fn open_value<'a>(&self, table: &str, key: &[u8], stored: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        let Some(cipher) = &self.0 else { return Some(Cow::Borrowed(stored)) };
        let opened = open(&cipher.index, &context(table, key), stored);
        if opened.is_none() {
            tracing::warn!(table, "a value of the index is not what was written there");
        }
        opened.map(Cow::Owned)
    }

    /// The second copy of the roots as it is to lie on the disk.
    pub(crate) fn seal_roots(&self, plain: Vec<u8>, magic: &[u8]) -> Vec<u8> {
        match &self.0 {
            Some(cipher) => [magic, &cipher.seal(&cipher.roots, magic, &plain)].concat(),
            None => plain,
        }
    }

    /// The second copy of the roots before it was sealed; `None` if it is not that.
    pub(crate) fn open_roots<'a>(&self, stored: &'a [u8], magic: &[u8]) -> Option<Cow<'a, [u8]>> {
        let Some(cipher) = &self.0 else { return Some(Cow::Borrowed(stored)) };
        open(&cipher.roots, magic, stored.strip_prefix(magic)?).map(Cow::Owned)
    }
}

impl Cipher {
    fn seal(&self, key: &XChaCha20Poly1305, context: &[u8], plain: &[u8]) -> Vec<u8> {
        let nonce = self.nonces.take();
        let mut out = Vec::with_capacity(plain.len() + VALUE_OVERHEAD);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plain);
        let tag = seal_in_place(key, &nonce, context, &mut out[NONCE_BYTES..]);
        out.extend_from_slice(&tag);
        out
    }
}

fn open(key: &XChaCha20Poly1305, context: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = sealed.split_at_checked(NONCE_BYTES)?;
    let (sealed, tag) = sealed.split_at_checked(sealed.len().checked_sub(TAG_BYTES)?)?;
    let mut plain = sealed.to_vec();
    let (nonce, tag) = (XNonce::from_slice(nonce), Tag::from_slice(tag));
    key.decrypt_in_place_detached(nonce, context, &mut plain, tag).ok()?;
    Some(plain)
}

/// Names a place in the index. No table has a zero in its name.
fn context(table: &str, key: &[u8]) -> Vec<u8> {
    [table.as_bytes(), &[0], key].concat()
}

#[cfg(test)]
mod tests {
    use shoal_content::{Codec, HashKind};

    use super::*;

    fn keyed(key: u8) -> Seal {
        Seal::new(&Zeroizing::new([key; 32])).unwrap()
    }

    #[test]
    fn a_value_opens_in_its_place_only() {
        let seal = keyed(1);
        let sealed = seal.seal_value("roots", b"a", b"plain");
        assert_eq!(sealed.len(), 5 + VALUE_OVERHEAD);
        assert_eq!(seal.open_value("roots", b"a", &sealed).as_deref(), Some(&b"plain"[..]));
        assert_eq!(seal.open_value("roots", b"b", &sealed), None);
        assert_eq!(seal.open_value("bases", b"a", &sealed), None);
        assert_eq!(keyed(2).open_value("roots", b"a", &sealed), None);
        for i in 0..sealed.len() {
            assert_eq!(seal.open_value("roots", b"a", &sealed[..i]), None);
            let mut flipped = sealed.to_vec();
            flipped[i] ^= 1;
            assert_eq!(seal.open_value("roots", b"a", &flipped), None);
        }
        assert_ne!(seal.seal_value("roots", b"a", b"plain"), sealed, "a nonce was used twice");
        assert_eq!(Seal::default().seal_value("roots", b"a", b"plain"), &b"plain"[..]);
    }

    #[test]
    fn a_record_opens_under_its_own_header_only() {
        let cid = |bytes: &[u8]| Cid::of(Codec::Raw, HashKind::Blake3, bytes);
        let (seal, mut payload) = (keyed(1), b"hello".to_vec());
        let tag = seal.seal_record(&cid(b"hello"), b"header", &mut payload).unwrap();
        let sealed = payload.clone();
        assert_ne!(sealed, b"hello");
        assert!(!seal.open_record(&cid(b"hello"), b"other", &mut payload, &tag));
        assert!(!seal.open_record(&cid(b"other"), b"header", &mut payload, &tag));
        assert!(!keyed(2).open_record(&cid(b"hello"), b"header", &mut payload, &tag));
        assert_eq!(payload, sealed, "as it was");
        assert!(seal.open_record(&cid(b"hello"), b"header", &mut payload, &tag));
        assert_eq!(payload, b"hello");
    }

    #[test]
    fn no_key_is_shown() {
        assert_eq!(format!("{:?}", keyed(0xab)), "Seal(Some(Cipher))");
    }
}
