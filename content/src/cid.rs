//! Content identifiers: the two codecs and the two hashes of this network in a small `Copy` type.
//!
//! Text and binary forms are those of the multiformats CID specification (v1, base32 lower; v0 is read as what it means,
//! a dag-pb block under sha2-256). Other codecs and hashes are errors that name them. Nothing here fetches or stores.

use std::{
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
};

use cid::multihash::Multihash;
use sha2::Digest as _;

/// How a block's bytes are read (multicodec).
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub enum Codec {
    /// `raw` (0x55): file bytes, a leaf.
    Raw,
    /// `dag-pb` (0x70): a UnixFS node.
    DagPb,
}

impl Codec {
    /// The multicodec number.
    pub const fn code(self) -> u64 {
        match self {
            Self::Raw => 0x55,
            Self::DagPb => 0x70,
        }
    }

    const fn from_code(code: u64) -> Option<Self> {
        match code {
            0x55 => Some(Self::Raw),
            0x70 => Some(Self::DagPb),
            _ => None,
        }
    }
}

/// The hash that names a block (multihash). Both have digests of 32 bytes.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub enum HashKind {
    /// BLAKE3-256 (0x1e), the default.
    Blake3,
    /// sha2-256 (0x12), what most of IPFS uses.
    Sha2_256,
}

impl HashKind {
    /// The multihash number.
    pub const fn code(self) -> u64 {
        match self {
            Self::Blake3 => 0x1e,
            Self::Sha2_256 => 0x12,
        }
    }

    const fn from_code(code: u64) -> Option<Self> {
        match code {
            0x1e => Some(Self::Blake3),
            0x12 => Some(Self::Sha2_256),
            _ => None,
        }
    }

    /// The digest of `data`.
    pub fn digest(self, data: &[u8]) -> [u8; 32] {
        match self {
            Self::Blake3 => *blake3::hash(data).as_bytes(),
            Self::Sha2_256 => sha2::Sha256::digest(data).into(),
        }
    }
}

/// Digests of no bytes; a test computes them.
const BLAKE3_OF_NOTHING: [u8; 32] = [
    0xaf, 0x13, 0x49, 0xb9, 0xf5, 0xf9, 0xa1, 0xa6, 0xa0, 0x40, 0x4d, 0xea, 0x36, 0xdc, 0xc9, 0x49, 0x9b, 0xcb, 0x25,
    0xc9, 0xad, 0xc1, 0x12, 0xb7, 0xcc, 0x9a, 0x93, 0xca, 0xe4, 0x1f, 0x32, 0x62,
];
const SHA2_256_OF_NOTHING: [u8; 32] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27, 0xae, 0x41,
    0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

/// A content identifier: codec, hash and a digest of 32 bytes. Small and `Copy`; ordered by codec, hash, digest.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd)]
pub struct Cid {
    codec: Codec,
    hash: HashKind,
    digest: [u8; 32],
}

impl Cid {
    /// Length of [`Cid::key`], in bytes.
    pub const KEY_LEN: usize = 33;

    /// A CID from its parts.
    pub const fn new(codec: Codec, hash: HashKind, digest: [u8; 32]) -> Self {
        Self { codec, hash, digest }
    }

    /// The CID of `data`.
    pub fn of(codec: Codec, hash: HashKind, data: &[u8]) -> Self {
        Self::new(codec, hash, hash.digest(data))
    }

    /// Whether `data` is the block this CID names.
    pub fn verify(&self, data: &[u8]) -> bool {
        self.hash.digest(data) == self.digest
    }

    /// How the block is read.
    pub const fn codec(&self) -> Codec {
        self.codec
    }

    /// The hash that made the digest.
    pub const fn hash_kind(&self) -> HashKind {
        self.hash
    }

    /// The digest.
    pub const fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Whether this names a raw block of no bytes, so that nothing needs to be fetched for it.
    pub fn is_empty_leaf(&self) -> bool {
        let empty = match self.hash {
            HashKind::Blake3 => &BLAKE3_OF_NOTHING,
            HashKind::Sha2_256 => &SHA2_256_OF_NOTHING,
        };
        self.codec == Codec::Raw && self.digest == *empty
    }

    /// A fixed-length key for indexes: one byte for codec and hash, then the digest. The byte is part of the store's
    /// format and of the wire's, and never changes: bit 0 is the codec (raw 0), bit 1 the hash (BLAKE3 0).
    pub fn key(&self) -> [u8; Self::KEY_LEN] {
        let mut key = [0; Self::KEY_LEN];
        key[0] = u8::from(self.codec == Codec::DagPb) | u8::from(self.hash == HashKind::Sha2_256) << 1;
        key[1..].copy_from_slice(&self.digest);
        key
    }

    /// The CID of a [`Cid::key`]; `None` where the length or the first byte is not of that form.
    pub fn from_key(key: &[u8]) -> Option<Self> {
        let (&tag, digest) = key.split_first()?;
        let digest = <[u8; 32]>::try_from(digest).ok()?;
        if tag > 3 {
            return None;
        }
        let codec = if tag & 1 == 0 { Codec::Raw } else { Codec::DagPb };
        let hash = if tag & 2 == 0 { HashKind::Blake3 } else { HashKind::Sha2_256 };
        Some(Self::new(codec, hash, digest))
    }

    /// The binary CIDv1 (36 bytes).
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_array().to_vec()
    }

    /// The binary CIDv1. All the numbers in front of the digest are below 128, so that each is a varint of one byte.
    pub(crate) fn to_array(self) -> [u8; 36] {
        let mut bytes = [0; 36];
        bytes[..4].copy_from_slice(&[1, self.codec.code() as u8, self.hash.code() as u8, 32]);
        bytes[4..].copy_from_slice(&self.digest);
        bytes
    }

    /// Reads a whole binary CID, v1 or v0.
    ///
    /// # Errors
    /// [`CidError::Malformed`] for what is no CID or has bytes after it; the other variants for a CID of another network.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CidError> {
        // What nearly every link of a node is, without the detour over the general form.
        if let [1, codec @ (0x55 | 0x70), hash @ (0x12 | 0x1e), 32, digest @ ..] = bytes
            && let Ok(digest) = <[u8; 32]>::try_from(digest)
        {
            let codec = if *codec == 0x55 { Codec::Raw } else { Codec::DagPb };
            let hash = if *hash == 0x1e { HashKind::Blake3 } else { HashKind::Sha2_256 };
            return Ok(Self::new(codec, hash, digest));
        }
        let mut rest = bytes;
        let cid = cid::Cid::read_bytes(&mut rest)?;
        if !rest.is_empty() {
            return Err(CidError::Trailing(rest.len()));
        }
        Self::from_foreign(&cid)
    }

    /// The binary multihash (34 bytes): the key under which the DHT knows the block, whatever its codec.
    pub fn multihash(&self) -> Vec<u8> {
        self.to_array()[2..].to_vec()
    }

    /// The general form of the `cid` crate, which knows how to print it.
    fn foreign(&self) -> cid::Cid {
        // 32 bytes always fit in the 64 that `cid` reserves.
        match Multihash::wrap(self.hash.code(), &self.digest) {
            Ok(hash) => cid::Cid::new_v1(self.codec.code(), hash),
            Err(_) => unreachable!("a digest of 32 bytes fits in 64"),
        }
    }

    fn from_foreign(cid: &cid::Cid) -> Result<Self, CidError> {
        let codec = Codec::from_code(cid.codec()).ok_or(CidError::Codec(cid.codec()))?;
        let hash = HashKind::from_code(cid.hash().code()).ok_or(CidError::Hash(cid.hash().code()))?;
        let digest = <[u8; 32]>::try_from(cid.hash().digest()).map_err(|_| CidError::Digest(cid.hash().size()))?;
        Ok(Self::new(codec, hash, digest))
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.foreign().to_string())
    }
}

impl fmt::Debug for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Cid {
    type Err = CidError;

    /// Accepts any multibase, and CIDv0 (`Qm…`).
    fn from_str(text: &str) -> Result<Self, CidError> {
        // The longest text of 36 bytes is base2: 289 characters.
        if text.len() > 300 {
            return Err(CidError::TooLong(text.len()));
        }
        // `cid::Cid::from_str` looks for "/ipfs/" in front of a CID; a path is for the link parser to take apart.
        if text.contains('/') {
            return Err(CidError::Malformed(cid::Error::ParsingError));
        }
        Self::from_foreign(&cid::Cid::from_str(text)?)
    }
}

/// In one piece: a large root's leaves are looked up one by one, and a hasher takes long over each small part.
impl Hash for Cid {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.key());
    }
}

/// Why something is not a CID that this network can use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CidError {
    /// Not a CID at all.
    #[error("not a content identifier (CID): {0}; check that all of it was copied")]
    Malformed(#[from] cid::Error),
    /// Longer than any CID of this network.
    #[error("not a content identifier (CID): {0} characters is too long for one")]
    TooLong(usize),
    /// Bytes after the CID.
    #[error("{0} bytes follow the content identifier (CID)")]
    Trailing(usize),
    /// A codec other than raw and dag-pb.
    #[error("this CID names content of codec {0:#x}; only raw (0x55) and dag-pb (0x70), which hold files, can be used")]
    Codec(u64),
    /// A hash other than BLAKE3 and sha2-256.
    #[error("this CID uses hash {0:#x}; only BLAKE3 (0x1e) and sha2-256 (0x12) can be used")]
    Hash(u64),
    /// A digest that was cut short or extended.
    #[error("this CID has a digest of {0} bytes; only full digests of 32 bytes can be used")]
    Digest(u8),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_round_trips() {
        for codec in [Codec::Raw, Codec::DagPb] {
            for hash in [HashKind::Blake3, HashKind::Sha2_256] {
                let cid = Cid::of(codec, hash, b"abc");
                assert!(cid.verify(b"abc") && !cid.verify(b"abd"));
                assert_eq!(Cid::from_key(&cid.key()), Some(cid));
                assert_eq!(Cid::from_bytes(&cid.to_bytes()).unwrap(), cid);
                assert_eq!(cid.to_string().parse::<Cid>().unwrap(), cid);
                assert_eq!(cid.to_bytes(), cid.foreign().to_bytes());
                assert_eq!(cid.multihash(), cid.foreign().hash().to_bytes());
                assert_eq!(Cid::of(codec, hash, b"").is_empty_leaf(), codec == Codec::Raw);
                assert!(!cid.is_empty_leaf());
            }
        }
    }

    #[test]
    fn well_known_names_are_these() {
        let hello: Cid = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e".parse().unwrap();
        assert_eq!(Cid::of(Codec::Raw, HashKind::Sha2_256, b"hello world"), hello);
        // The empty directory as v0 and v1: one block, so one CID here.
        let v0: Cid = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn".parse().unwrap();
        let v1: Cid = "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354".parse().unwrap();
        assert_eq!(v0, v1);
        assert_eq!(v0.codec(), Codec::DagPb);
        assert_eq!(Cid::from_bytes(&v0.multihash()).unwrap(), v0);
        // Other bases than base32 (here base16 and base58btc).
        let base16 = format!("f{}", hex::encode(v1.to_bytes()));
        assert_eq!(base16.parse::<Cid>().unwrap(), v1);
        assert_eq!(
            v1.foreign().to_string_of_base(cid::multibase::Base::Base58Btc).unwrap().parse::<Cid>().unwrap(),
            v1
        );
        assert_eq!(v1.to_string().to_uppercase().parse::<Cid>().unwrap(), v1);
    }

    #[test]
    fn cids_of_other_networks_are_named() {
        // dag-cbor with sha2-256, raw with identity, raw with a truncated digest.
        let mut cbor = Cid::of(Codec::Raw, HashKind::Sha2_256, b"").to_bytes();
        cbor[1] = 0x71;
        assert!(matches!(Cid::from_bytes(&cbor), Err(CidError::Codec(0x71))));
        assert!(matches!(Cid::from_bytes(&[1, 0x55, 0, 2, 9, 9]), Err(CidError::Hash(0))));
        assert!(matches!(Cid::from_bytes(&[1, 0x55, 0x12, 2, 9, 9]), Err(CidError::Digest(2))));
        let mut long = Cid::of(Codec::Raw, HashKind::Blake3, b"").to_bytes();
        long.push(0);
        assert!(matches!(Cid::from_bytes(&long), Err(CidError::Trailing(1))));
        for text in
            ["", "b", "hello", "/ipfs/bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e", "Qm", "\u{301}"]
        {
            assert!(text.parse::<Cid>().is_err(), "{text:?}");
        }
        assert!(matches!("b".repeat(301).parse::<Cid>(), Err(CidError::TooLong(301))));
        for key in [&[0; 32][..], &[4; 33], &[0; 34], &[]] {
            assert_eq!(Cid::from_key(key), None);
        }
    }
}
