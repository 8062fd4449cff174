//! Request streams: the head a requester writes, and the record heads the serving side answers with. No control messages.

use super::{
    LeafSet, MAX_LEAVES_PER_REQUEST, Reader, WireError,
    message::{leaf_set, put_leaf_set},
    put_varint,
};
use shoal_content::Cid;

const NODES: u8 = 0x10;
const LEAVES: u8 = 0x11;

/// Bytes that the head of a leaf or node record takes at most: a status byte and a 4-byte integer.
pub const MAX_HEAD_BYTES: usize = 5;
/// Status byte of a leaf record without bytes.
pub const DONT_HAVE: u8 = 1;
const PLAIN: u8 = 0;

/// Why a request head is not one.
pub type RequestDecodeError = WireError;

/// What a requester writes on a new bidirectional stream before it closes its side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Inner nodes of `root` in depth-first pre-order, from the `skip`-th on. The answer is a run of node records.
    Nodes {
        /// The content.
        root: Cid,
        /// Nodes that the requester has, counted from the front.
        skip: u32,
    },
    /// Leaves of `root`, answered in ascending order, one leaf record each.
    Leaves {
        /// The content.
        root: Cid,
        /// Which.
        leaves: LeafSet,
    },
}

impl Request {
    /// The bytes of the head.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        match self {
            Request::Nodes { root, skip } => {
                out.push(NODES);
                out.extend_from_slice(&root.key());
                put_varint(&mut out, (*skip).into());
            }
            Request::Leaves { root, leaves } => {
                out.push(LEAVES);
                out.extend_from_slice(&root.key());
                put_leaf_set(&mut out, leaves);
            }
        }
        out
    }

    /// Reads a whole head.
    pub fn decode(bytes: &[u8]) -> Result<Request, RequestDecodeError> {
        let mut r = Reader::new(bytes);
        let kind = r.byte()?;
        let root = Cid::from_key(r.take(Cid::KEY_LEN)?).ok_or(WireError::BadField("root"))?;
        let request = match kind {
            NODES => Request::Nodes { root, skip: r.varint_u32("skip")? },
            LEAVES => {
                let leaves = leaf_set(&mut r)?;
                let count: u64 = leaves.ranges().iter().map(|r| u64::from(r.end - r.start)).sum();
                if count == 0 || count > MAX_LEAVES_PER_REQUEST as u64 {
                    return Err(WireError::BadField("leaves"));
                }
                Request::Leaves { root, leaves }
            }
            other => return Err(WireError::UnknownType(other)),
        };
        r.end()?;
        Ok(request)
    }
}

/// The head of a leaf record: `0 ‖ length (4 bytes, big endian)` before the bytes, or `1 ‖ 0` for a leaf that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeafHead {
    /// So many bytes follow.
    Data(u32),
    /// The serving side does not have it (any more).
    DontHave,
}

/// The head of a node record: its length, 4 bytes, big endian.
pub type NodeHead = [u8; 4];

/// Encodes a leaf record's head. Fixed width, so that it is read in one step.
pub fn encode_leaf_head(head: LeafHead) -> [u8; MAX_HEAD_BYTES] {
    let (status, len) = match head {
        LeafHead::Data(len) => (PLAIN, len),
        LeafHead::DontHave => (DONT_HAVE, 0),
    };
    let [a, b, c, d] = len.to_be_bytes();
    [status, a, b, c, d]
}

/// Decodes a leaf record's head.
pub fn decode_leaf_head(bytes: [u8; MAX_HEAD_BYTES]) -> Result<LeafHead, WireError> {
    let [status, a, b, c, d] = bytes;
    match (status, u32::from_be_bytes([a, b, c, d])) {
        (PLAIN, len) => Ok(LeafHead::Data(len)),
        (DONT_HAVE, 0) => Ok(LeafHead::DontHave),
        _ => Err(WireError::BadField("leaf record head")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shoal_content::{Codec, HashKind};

    #[test]
    fn vectors() {
        let root = Cid::new(Codec::DagPb, HashKind::Blake3, [7; 32]);
        let key = hex::encode(root.key());
        let nodes = Request::Nodes { root, skip: 300 };
        assert_eq!(hex::encode(nodes.encode()), format!("10{key}412c"));
        let leaves = Request::Leaves { root, leaves: LeafSet::Ranges(vec![5..9]) };
        assert_eq!(hex::encode(leaves.encode()), format!("11{key}00010503"));
        assert_eq!(encode_leaf_head(LeafHead::Data(0x0004_0000)), [0, 0, 4, 0, 0]);
        assert_eq!(encode_leaf_head(LeafHead::DontHave), [1, 0, 0, 0, 0]);
        for r in [nodes, leaves] {
            assert_eq!(Request::decode(&r.encode()), Ok(r));
        }
    }

    #[test]
    fn a_request_for_too_much_is_refused() {
        let root = Cid::new(Codec::DagPb, HashKind::Blake3, [7; 32]);
        let all = Request::Leaves { root, leaves: LeafSet::Ranges(vec![0..u32::MAX]) };
        assert_eq!(Request::decode(&all.encode()), Err(WireError::BadField("leaves")));
        let none = Request::Leaves { root, leaves: LeafSet::Ranges(vec![]) };
        assert_eq!(Request::decode(&none.encode()), Err(WireError::BadField("leaves")));
        assert!(decode_leaf_head([1, 0, 0, 0, 1]).is_err());
        assert!(decode_leaf_head([2, 0, 0, 0, 1]).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(r) = Request::decode(&bytes) {
                prop_assert_eq!(Request::decode(&r.encode()), Ok(r));
            }
        }
    }
}
