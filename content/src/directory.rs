//! Building directories and symlinks: plain dag-pb nodes, and HAMT shards for the large ones (UnixFS specification,
//! "HAMT Structure"), bit for bit as boxo builds them under IPIP-0499.

use crate::{
    Block, Link, MAX_LINKS, PathError, Profile,
    build::seal,
    dagpb::{Encoder, data_len, link_len},
    murmur3::murmur3_x64_64,
    node::check_target,
    path::check_name,
    unixfs,
};

/// Slots of a HAMT shard. Both profiles have the same; one slot number is one byte of the hash.
const FANOUT: usize = 256;

/// Levels a HAMT can have: bytes of the hash.
const HASH_BYTES: usize = 8;

/// Builds a directory from its entries, which need no order; its nodes are pushed to `out`, children before parents. A
/// directory whose plain block would be longer than the profile's threshold becomes a HAMT.
///
/// # Errors
/// [`DirError`]; `out` may then hold blocks that nothing refers to.
pub fn directory(profile: &Profile, mut entries: Vec<(String, Link)>, out: &mut Vec<Block>) -> Result<Link, DirError> {
    entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    for (name, _) in &entries {
        check_name(name.as_bytes())?;
    }
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(DirError::Duplicate(crate::printable(&pair[0].0).to_string()));
    }
    let block_len = entries
        .iter()
        .fold(data_len(unixfs::DIRECTORY.len()), |sum, (name, link)| sum + link_len(name.len(), link.dag_size));
    if block_len > profile.hamt_over_bytes || entries.len() > MAX_LINKS {
        return hamt(profile, entries, out);
    }
    let mut node = Encoder::with_capacity(block_len);
    for (name, link) in &entries {
        node.link("", name, link);
    }
    Ok(seal(profile, node, unixfs::DIRECTORY, entries.iter().map(|(_, link)| link), out))
}

/// Builds a symlink. The target is kept as it is; where it leads is judged by whoever writes it to a disk.
///
/// # Errors
/// [`DirError::Target`] where it is empty, holds a NUL or is longer than [`crate::MAX_SYMLINK_BYTES`].
pub fn symlink(profile: &Profile, target: &str) -> Result<(Link, Block), DirError> {
    if check_target(target.as_bytes()).is_none() {
        return Err(DirError::Target(crate::printable(target).to_string()));
    }
    let mut out = Vec::with_capacity(1);
    let node = Encoder::with_capacity(16 + target.len());
    let link = seal(profile, node, &unixfs::symlink(target), std::iter::empty(), &mut out);
    match out.pop() {
        Some(block) => Ok((link, block)),
        None => unreachable!("sealing a node pushes its block"),
    }
}

/// An entry on its way into a HAMT.
struct Hashed {
    /// Its path through the slots, the first level in the most significant byte.
    hash: u64,
    name: String,
    link: Link,
}

fn hamt(profile: &Profile, entries: Vec<(String, Link)>, out: &mut Vec<Block>) -> Result<Link, DirError> {
    let mut entries: Vec<Hashed> =
        entries.into_iter().map(|(name, link)| Hashed { hash: murmur3_x64_64(name.as_bytes()), name, link }).collect();
    // In the order of their hashes, whoever shares a slot at any level stands together.
    entries.sort_unstable_by_key(|entry| entry.hash);
    shard(profile, &entries, 0, out)
}

/// Builds the shard of `entries`, which share the first `level` bytes of their hashes and are in the order of them.
fn shard(profile: &Profile, entries: &[Hashed], level: usize, out: &mut Vec<Block>) -> Result<Link, DirError> {
    if level == HASH_BYTES {
        return Err(DirError::Collision(crate::printable(&entries[0].name).to_string()));
    }
    let slot = |entry: &Hashed| entry.hash.to_be_bytes()[level];
    let mut bitfield = [0u8; FANOUT / 8];
    let mut children = Vec::new();
    // Slots come in rising order, which is also the order of the names that begin with their numbers.
    for group in entries.chunk_by(|a, b| slot(a) == slot(b)) {
        let number = slot(&group[0]);
        // A big-endian number: slot 0 is the lowest bit of the last byte.
        bitfield[FANOUT / 8 - 1 - usize::from(number) / 8] |= 1 << (number % 8);
        children.push(match group {
            [entry] => (number, entry.name.as_str(), entry.link),
            _ => (number, "", shard(profile, group, level + 1, out)?),
        });
    }
    let leading_zeros = bitfield.iter().take_while(|&&byte| byte == 0).count();
    let data = unixfs::hamt(&bitfield[leading_zeros..], FANOUT as u64);
    let capacity = children.iter().map(|(_, name, link)| link_len(2 + name.len(), link.dag_size)).sum::<usize>();
    let mut node = Encoder::with_capacity(capacity + data_len(data.len()));
    for (number, name, link) in &children {
        node.link(&format!("{number:02X}"), name, link);
    }
    Ok(seal(profile, node, &data, children.iter().map(|(_, _, link)| link), out))
}

/// Why a directory cannot be built. The names in it are printable as they are.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DirError {
    /// A name that no destination could take.
    #[error(transparent)]
    Name(#[from] PathError),
    /// The same name twice.
    #[error("the directory has two entries named \"{0}\"")]
    Duplicate(String),
    /// More names share one hash than a HAMT can hold apart. Only made-up names do.
    #[error("\"{0}\" and another name of its directory have the same 64-bit hash; rename one")]
    Collision(String),
    /// A symlink target that cannot be kept.
    #[error("the symlink target \"{0}\" is empty, longer than 4,096 bytes or has a NUL in it")]
    Target(String),
}
