//! The file `key` of an encrypted store: its data key, wrapped with a key that is made from the passphrase. What the data
//! key is used for is `cipher`'s; that there is such a file is `home`'s to know.
//!
//! ```text
//! "SHOALKEY" · version u32 LE (1) · memory KiB u32 LE · passes u32 LE · lanes u32 LE · salt (16) · nonce (24)
//! wrapped key (32) · tag (16) · check (32: BLAKE3 of all before)
//! ```
//! The wrapping key is Argon2id (RFC 9106, version 0x13) of the passphrase. Everything before the nonce is authenticated
//! with the wrapped key. The check tells a file that rotted from a passphrase that is wrong.

use std::{fmt, io, path::Path, sync::Arc};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use chacha20poly1305::{AeadInPlace, KeyInit, Tag, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use crate::{
    cipher::{NONCE_BYTES, SecretKey, TAG_BYTES, random, seal_in_place},
    disk::Disk,
};

const MAGIC: &[u8; 8] = b"SHOALKEY";
const VERSION: u32 = 1;
const SALT_BYTES: usize = 16;
/// Before the nonce.
const HEAD: usize = 8 + 4 * 4 + SALT_BYTES;
/// Before the check.
const CHECKED: usize = HEAD + NONCE_BYTES + 32 + TAG_BYTES;
/// Length of the file in bytes.
const FILE_BYTES: usize = CHECKED + 32;

/// The file is not trusted with more memory than this, in KiB: 1 GiB, sixteen times what is written.
const MAX_MEMORY_KIB: u32 = 1 << 20;
/// Nor with more passes: with all of the memory, a minute.
const MAX_PASSES: u32 = 64;
/// Nor with more lanes.
const MAX_LANES: u32 = 64;

/// What an encrypted store is opened with. Any bytes but none; wiped from memory when the last clone is dropped, and never
/// shown.
#[derive(Clone)]
pub struct Passphrase(Arc<Zeroizing<Vec<u8>>>);

impl Passphrase {
    /// A passphrase of these bytes; `None` for an empty one, which would protect nothing.
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Option<Self> {
        if bytes.is_empty() { None } else { Some(Passphrase(Arc::new(bytes))) }
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase")
    }
}

/// What it costs to try a passphrase, in the terms of Argon2id. Chosen when a store is made, and kept in its key file. The
/// default is the second recommended option of RFC 9106 (section 4): 64 MiB, 3 passes, 4 lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyCost {
    /// Memory in KiB: at least 8 for each lane, at most 1 GiB.
    pub memory_kib: u32,
    /// Passes over it: 1 to 64.
    pub passes: u32,
    /// Lanes: 1 to 64.
    pub lanes: u32,
}

impl Default for KeyCost {
    fn default() -> Self {
        Self { memory_kib: 64 << 10, passes: 3, lanes: 4 }
    }
}

impl KeyCost {
    fn is_bearable(&self) -> bool {
        (1..=MAX_LANES).contains(&self.lanes)
            && (1..=MAX_PASSES).contains(&self.passes)
            && (8 * self.lanes..=MAX_MEMORY_KIB).contains(&self.memory_kib)
    }
}

/// Why there is no data key.
#[derive(Debug)]
pub(crate) enum KeyError {
    /// The file could not be read or written.
    Io(&'static str, io::Error),
    /// It is not what was written, and why.
    Damaged(String),
    /// The passphrase is not the one it was made with.
    Wrong,
}

/// Makes a data key and the file that keeps it. Durable once the directory is synced.
pub(crate) fn make(
    path: &Path,
    passphrase: &Passphrase,
    cost: KeyCost,
    disk: &dyn Disk,
) -> Result<SecretKey, KeyError> {
    let mut key = SecretKey::default();
    random(&mut key[..]).map_err(|error| KeyError::Io("draw random bytes for", error))?;
    wrap(path, &key, passphrase, cost, disk)?;
    Ok(key)
}

/// Writes the file that keeps a data key, in the place of one that may be there. Durable once the directory is synced.
pub(crate) fn wrap(
    path: &Path,
    key: &SecretKey,
    passphrase: &Passphrase,
    cost: KeyCost,
    disk: &dyn Disk,
) -> Result<(), KeyError> {
    let (mut salt, mut nonce) = ([0; SALT_BYTES], [0; NONCE_BYTES]);
    for bytes in [&mut salt[..], &mut nonce] {
        random(bytes).map_err(|error| KeyError::Io("draw random bytes for", error))?;
    }
    let file = encode(key, &salt, &nonce, passphrase, cost)?;
    let new = path.with_extension("new");
    let written = disk.create(&new).and_then(|made| {
        disk.write_at(&made, &new, &file, 0)?;
        disk.sync_file(&made, &new)?;
        disk.rename(&new, path)
    });
    written.map_err(|error| KeyError::Io("write", error))
}

/// Reads the data key.
pub(crate) fn read(path: &Path, passphrase: &Passphrase) -> Result<SecretKey, KeyError> {
    match std::fs::read(path) {
        Ok(bytes) => decode(&bytes, passphrase),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(KeyError::Damaged("it is missing".into())),
        Err(error) => Err(KeyError::Io("read", error)),
    }
}

fn encode(
    key: &SecretKey,
    salt: &[u8; SALT_BYTES],
    nonce: &[u8; NONCE_BYTES],
    passphrase: &Passphrase,
    cost: KeyCost,
) -> Result<Vec<u8>, KeyError> {
    let mut out = MAGIC.to_vec();
    for n in [VERSION, cost.memory_kib, cost.passes, cost.lanes] {
        out.extend_from_slice(&n.to_le_bytes());
    }
    out.extend_from_slice(salt);
    let wrapping = wrapping_key(passphrase, salt, cost)?;
    let mut wrapped = key.clone();
    let tag = seal_in_place(&wrapping, XNonce::from_slice(nonce), &out, &mut wrapped[..]);
    out.extend_from_slice(nonce);
    out.extend_from_slice(&wrapped[..]);
    out.extend_from_slice(&tag);
    let check = blake3::hash(&out);
    out.extend_from_slice(check.as_bytes());
    Ok(out)
}

fn decode(bytes: &[u8], passphrase: &Passphrase) -> Result<SecretKey, KeyError> {
    let damaged = |why: &str| KeyError::Damaged(why.into());
    let bytes: &[u8; FILE_BYTES] = bytes.try_into().map_err(|_| damaged("it has not the length of a key file"))?;
    let (checked, check) = bytes.split_at(CHECKED);
    if &checked[..8] != MAGIC || blake3::hash(checked).as_bytes()[..] != *check {
        return Err(damaged("its bytes are not those that were written"));
    }
    let number = |at: usize| checked[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
    if number(8) != VERSION {
        return Err(KeyError::Damaged(format!(
            "it has version {}, which this version of shoal does not know",
            number(8)
        )));
    }
    let cost = KeyCost { memory_kib: number(12), passes: number(16), lanes: number(20) };
    let wrapping = wrapping_key(passphrase, &checked[24..HEAD], cost)?;
    let mut key = SecretKey::default();
    key.copy_from_slice(&checked[HEAD + NONCE_BYTES..][..32]);
    let (nonce, tag) =
        (XNonce::from_slice(&checked[HEAD..][..NONCE_BYTES]), Tag::from_slice(&checked[CHECKED - TAG_BYTES..]));
    let opened = wrapping.decrypt_in_place_detached(nonce, &checked[..HEAD], &mut key[..], tag);
    opened.map_err(|_| KeyError::Wrong)?;
    Ok(key)
}

fn wrapping_key(passphrase: &Passphrase, salt: &[u8], cost: KeyCost) -> Result<XChaCha20Poly1305, KeyError> {
    let unbearable = || {
        let KeyCost { memory_kib, passes, lanes } = cost;
        KeyError::Damaged(format!(
            "it asks for {memory_kib} KiB of memory, {passes} passes and {lanes} lanes, where at most {MAX_MEMORY_KIB} KiB, \
             {MAX_PASSES} and {MAX_LANES} make sense"
        ))
    };
    if !cost.is_bearable() {
        return Err(unbearable());
    }
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).map_err(|_| unbearable())?;
    // Reserved by hand: too little memory is an error and not the end of the process.
    let mut memory = Zeroizing::new(Vec::new());
    let blocks = params.block_count();
    memory
        .try_reserve_exact(blocks)
        .map_err(|_| KeyError::Io("find the memory to read", io::ErrorKind::OutOfMemory.into()))?;
    memory.resize(blocks, Block::default());
    let mut key = SecretKey::default();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(&passphrase.0, salt, &mut key[..], &mut memory[..])
        .map_err(|error| KeyError::Damaged(error.to_string()))?;
    Ok(XChaCha20Poly1305::new((&*key).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: KeyCost = KeyCost { memory_kib: 8, passes: 1, lanes: 1 };

    fn phrase(text: &str) -> Passphrase {
        Passphrase::new(text.as_bytes().to_vec().into()).unwrap()
    }

    fn file() -> Vec<u8> {
        encode(&Zeroizing::new([7; 32]), &[1; 16], &[2; 24], &phrase("swordfish"), CHEAP).unwrap()
    }

    /// Puts the check right again, as whoever writes such a file on purpose would.
    fn checked(mut bytes: Vec<u8>) -> Vec<u8> {
        let check = blake3::hash(&bytes[..CHECKED]);
        bytes[CHECKED..].copy_from_slice(check.as_bytes());
        bytes
    }

    #[test]
    fn the_format_byte_by_byte() {
        let bytes = file();
        assert_eq!(bytes.len(), 144);
        assert_eq!(&bytes[..8], b"SHOALKEY");
        assert_eq!(&bytes[8..24], b"\x01\0\0\0\x08\0\0\0\x01\0\0\0\x01\0\0\0", "version, KiB, passes, lanes");
        assert_eq!(&bytes[24..40], &[1; 16], "salt");
        assert_eq!(&bytes[40..64], &[2; 24], "nonce");
        let wrapping = wrapping_key(&phrase("swordfish"), &[1; 16], CHEAP).unwrap();
        let mut wrapped = [7; 32];
        let tag = seal_in_place(&wrapping, XNonce::from_slice(&[2; 24]), &bytes[..40], &mut wrapped);
        assert_eq!(&bytes[64..96], &wrapped);
        assert_eq!(&bytes[96..112], &tag[..]);
        assert_eq!(&bytes[112..], blake3::hash(&bytes[..112]).as_bytes());
    }

    #[test]
    fn the_right_passphrase_gives_the_key_and_no_other_does() {
        let key = decode(&file(), &phrase("swordfish")).unwrap();
        assert_eq!(*key, [7; 32]);
        assert!(matches!(decode(&file(), &phrase("swordfisi")), Err(KeyError::Wrong)));
        assert!(Passphrase::new(Zeroizing::new(Vec::new())).is_none());
        assert_eq!(format!("{:?}", phrase("swordfish")), "Passphrase");
    }

    #[test]
    fn rot_is_told_from_a_wrong_passphrase() {
        for bit in 0..8 * FILE_BYTES {
            let mut bytes = file();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(decode(&bytes, &phrase("swordfish")), Err(KeyError::Damaged(_))), "bit {bit}");
        }
        for len in 0..FILE_BYTES {
            assert!(matches!(decode(&file()[..len], &phrase("swordfish")), Err(KeyError::Damaged(_))));
        }
    }

    #[test]
    fn absurd_costs_are_refused_before_they_are_paid() {
        for (at, n) in [(12, u32::MAX), (12, MAX_MEMORY_KIB + 1), (12, 7), (16, u32::MAX), (16, 0), (20, 0), (20, 65)] {
            let mut bytes = file();
            bytes[at..at + 4].copy_from_slice(&n.to_le_bytes());
            let error = decode(&checked(bytes), &phrase("swordfish")).unwrap_err();
            assert!(matches!(&error, KeyError::Damaged(why) if why.contains("KiB of memory")), "{error:?}");
        }
        let mut later = file();
        later[8] = 2;
        assert!(
            matches!(decode(&checked(later), &phrase("swordfish")), Err(KeyError::Damaged(why)) if why.contains("version 2"))
        );
    }

    /// Other costs give another key, so they cannot be lowered behind somebody's back.
    #[test]
    fn what_is_before_the_nonce_is_authenticated() {
        for (at, n) in [(12, 9u32), (16, 2), (24, 7)] {
            let mut bytes = file();
            bytes[at..at + 4].copy_from_slice(&n.to_le_bytes());
            assert!(matches!(decode(&checked(bytes), &phrase("swordfish")), Err(KeyError::Wrong)), "at {at}");
        }
    }

    /// RFC 9106 names its second choice so.
    #[test]
    fn a_store_costs_what_is_recommended() {
        assert_eq!(KeyCost::default(), KeyCost { memory_kib: 65_536, passes: 3, lanes: 4 });
        assert!(KeyCost::default().is_bearable());
    }
}
