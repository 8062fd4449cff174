//! The second copy of what could not be found again if the index were lost: roots and base paths. A small file next to
//! the index, replaced as a whole before a commit that changes either. Everything else in the index can be made anew from
//! the packs, the nodes in them and the user's files; see `rebuild`.
//!
//! ```text
//! "SHOALRTS" · BLAKE3 of the rest (32) · next base u32 LE · bases u32 LE · roots u32 LE
//! base  number u32 LE · length u32 LE · path
//! root  CID key (33) · length u32 LE · record as in the index
//! ```
//! In an encrypted store this is sealed, behind "SHOALRTE": nonce (24) · sealed bytes · tag (16).

use std::{collections::BTreeMap, io, path::Path, sync::Arc};

use shoal_content::Cid;

use crate::{
    BaseId, RootRecord,
    cipher::Seal,
    disk::Disk,
    overlay::Key,
    root::{path_from_bytes, path_to_bytes},
};

const MAGIC: &[u8; 8] = b"SHOALRTS";
const SEALED_MAGIC: &[u8; 8] = b"SHOALRTE";

/// What the copy holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spare {
    pub(crate) next_base: u32,
    pub(crate) bases: BTreeMap<BaseId, Arc<Path>>,
    pub(crate) roots: BTreeMap<Key, RootRecord>,
}

impl Spare {
    /// Reads the copy; `None` if there is none, or none that is whole.
    pub(crate) fn read(path: &Path, seal: &Seal) -> io::Result<Option<Self>> {
        match std::fs::read(path) {
            Ok(bytes) => Ok(seal.open_roots(&bytes, SEALED_MAGIC).and_then(|plain| Self::decode(&plain))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the copy. Durable on return. An error says whether it was one of a sync.
    pub(crate) fn write(&self, path: &Path, seal: &Seal, disk: &dyn Disk) -> Result<(), (io::Error, bool)> {
        let new = path.with_extension("new");
        let written = disk.create(&new).and_then(|file| {
            disk.write_at(&file, &new, &seal.seal_roots(self.encode(), SEALED_MAGIC), 0)?;
            Ok(file)
        });
        let file = written.map_err(|error| (error, false))?;
        disk.sync_file(&file, &new).map_err(|error| (error, true))?;
        disk.rename(&new, path).map_err(|error| (error, false))?;
        disk.sync_dir(path.parent().unwrap_or(path)).map_err(|error| (error, true))
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = [&MAGIC[..], &[0; 32]].concat();
        let number = |n: usize, out: &mut Vec<u8>| out.extend_from_slice(&(n as u32).to_le_bytes());
        number(self.next_base as usize, &mut out);
        number(self.bases.len(), &mut out);
        number(self.roots.len(), &mut out);
        for (id, path) in &self.bases {
            let path = path_to_bytes(path);
            number(id.0 as usize, &mut out);
            number(path.len(), &mut out);
            out.extend_from_slice(&path);
        }
        for (key, record) in &self.roots {
            let record = record.encode();
            out.extend_from_slice(key);
            number(record.len(), &mut out);
            out.extend_from_slice(&record);
        }
        let check = blake3::hash(&out[40..]);
        out[8..40].copy_from_slice(check.as_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (magic, rest) = bytes.split_at_checked(8)?;
        let (check, mut rest) = rest.split_at_checked(32)?;
        if magic != MAGIC || blake3::hash(rest).as_bytes()[..] != *check {
            return None;
        }
        let mut take = |n: usize| {
            let (head, tail) = rest.split_at_checked(n)?;
            rest = tail;
            Some(head)
        };
        let number = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_le_bytes);
        let mut spare = Spare { next_base: number(take(4)?)?, ..Spare::default() };
        let (bases, roots) = (number(take(4)?)?, number(take(4)?)?);
        for _ in 0..bases {
            let (id, len) = (number(take(4)?)?, number(take(4)?)?);
            spare.bases.insert(BaseId(id), path_from_bytes(take(len as usize)?)?.into());
        }
        for _ in 0..roots {
            let key: Key = take(Cid::KEY_LEN)?.try_into().ok()?;
            let len = number(take(4)?)?;
            spare.roots.insert(key, RootRecord::decode(Cid::from_key(&key)?, take(len as usize)?)?);
        }
        Some(spare)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shoal_content::{Codec, HashKind};

    use super::*;
    use crate::RootKind;

    fn example() -> Spare {
        let root = Cid::of(Codec::Raw, HashKind::Blake3, b"root");
        let record = RootRecord {
            root,
            name: "näme".into(),
            kind: RootKind::Cached,
            base: None,
            path: "/a".into(),
            bytes: 1,
            files: 2,
            complete: true,
            pinned: false,
            provide: true,
            created_unix: 3,
            selection: None,
            resume: None,
            expires_unix: None,
            pinned_until_unix: None,
        };
        let bases = [(BaseId(3), Path::new("/b/c").into())].into();
        Spare { next_base: 7, bases, roots: [(root.key(), record)].into() }
    }

    #[test]
    fn it_survives_encoding() {
        for spare in [Spare::default(), example()] {
            assert_eq!(Spare::decode(&spare.encode()), Some(spare));
        }
    }

    #[test]
    fn sealed_it_says_nothing_and_opens_with_its_key_only() {
        let (dir, disk) = (tempfile::tempdir().unwrap(), crate::disk::RealDisk);
        let path = dir.path().join("roots");
        let [seal, other] = [1, 2].map(|key| Seal::new(&[key; 32].into()).unwrap());
        example().write(&path, &seal, &disk).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes[..8], *SEALED_MAGIC);
        assert_eq!(bytes.len(), 8 + 24 + example().encode().len() + 16);
        assert!(!bytes.windows(4).any(|four| four == b"/b/c" || four == b"name"));
        assert_eq!(Spare::read(&path, &seal).unwrap(), Some(example()));
        assert_eq!(Spare::read(&path, &other).unwrap(), None);
        assert_eq!(Spare::read(&path, &Seal::default()).unwrap(), None);
        example().write(&path, &Seal::default(), &disk).unwrap();
        assert_eq!(Spare::read(&path, &seal).unwrap(), None, "a plain one is not taken for sealed");
    }

    proptest! {
        #[test]
        fn whatever_is_not_whole_is_none(cut in any::<prop::sample::Index>(), bit in any::<prop::sample::Index>()) {
            let good = example().encode();
            prop_assert_eq!(Spare::decode(&good[..cut.index(good.len())]), None);
            let mut flipped = good.clone();
            let bit = bit.index(8 * good.len());
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Spare::decode(&flipped), None);
        }
    }
}
