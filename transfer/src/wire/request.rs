//! Request streams: the head a requester writes. What the serving side answers with is in `pack`. No control messages.

use super::{
    LeafSet, MAX_LEAVES_PER_REQUEST, Packing, Reader, WireError,
    message::{leaf_set, put_leaf_set},
    put_varint,
};
use shoal_content::Cid;

const NODES: u8 = 0x10;
const LEAVES: u8 = 0x11;
const NODE_LIST: u8 = 0x12;
const SOME_NODES: u8 = 0x13;

/// Why a request head is not one.
pub type RequestDecodeError = WireError;

/// What a requester writes on a new bidirectional stream before it closes its side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Inner nodes of `root` in depth-first pre-order, from the `skip`-th on. The answer is packs of node records.
    Nodes {
        /// The content.
        root: Cid,
        /// How they may be sent.
        packing: Packing,
        /// Nodes that the requester has, counted from the front.
        skip: u32,
    },
    /// Leaves of `root`. The answer is packs of them, in ascending order.
    Leaves {
        /// The content.
        root: Cid,
        /// How they may be sent.
        packing: Packing,
        /// Which.
        leaves: LeafSet,
    },
    /// The names of all inner nodes of `root` in depth-first pre-order: their keys, one after another.
    NodeList {
        /// The content.
        root: Cid,
    },
    /// Some inner nodes of `root`, by their places in its list. The answer is as for `Nodes`.
    SomeNodes {
        /// The content.
        root: Cid,
        /// How they may be sent.
        packing: Packing,
        /// Which.
        nodes: LeafSet,
    },
}

impl Request {
    /// The bytes of the head.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        match self {
            Request::Nodes { root, packing, skip } => {
                out.push(NODES);
                out.extend_from_slice(&root.key());
                out.push(packing.byte());
                put_varint(&mut out, (*skip).into());
            }
            Request::Leaves { root, packing, leaves } => {
                out.push(LEAVES);
                out.extend_from_slice(&root.key());
                out.push(packing.byte());
                put_leaf_set(&mut out, leaves);
            }
            Request::NodeList { root } => {
                out.push(NODE_LIST);
                out.extend_from_slice(&root.key());
            }
            Request::SomeNodes { root, packing, nodes } => {
                out.push(SOME_NODES);
                out.extend_from_slice(&root.key());
                out.push(packing.byte());
                put_leaf_set(&mut out, nodes);
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
            NODES => Request::Nodes { root, packing: Packing::from_byte(r.byte()?)?, skip: r.varint_u32("skip")? },
            NODE_LIST => Request::NodeList { root },
            SOME_NODES => {
                Request::SomeNodes { root, packing: Packing::from_byte(r.byte()?)?, nodes: leaf_set(&mut r)? }
            }
            LEAVES => {
                let packing = Packing::from_byte(r.byte()?)?;
                let leaves = leaf_set(&mut r)?;
                let count: u64 = leaves.ranges().iter().map(|r| u64::from(r.end - r.start)).sum();
                if count == 0 || count > MAX_LEAVES_PER_REQUEST as u64 {
                    return Err(WireError::BadField("leaves"));
                }
                Request::Leaves { root, packing, leaves }
            }
            other => return Err(WireError::UnknownType(other)),
        };
        r.end()?;
        Ok(request)
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
        let nodes = Request::Nodes { root, packing: Packing::IfFaster, skip: 300 };
        assert_eq!(hex::encode(nodes.encode()), format!("10{key}01412c"));
        let leaves = Request::Leaves { root, packing: Packing::Off, leaves: LeafSet::Ranges(vec![5..9]) };
        assert_eq!(hex::encode(leaves.encode()), format!("11{key}0000010503"));
        let list = Request::NodeList { root };
        assert_eq!(hex::encode(list.encode()), format!("12{key}"));
        let set = LeafSet::Ranges(vec![0..1, 10..12]);
        let some = Request::SomeNodes { root, packing: Packing::IfSmaller, nodes: set };
        assert_eq!(hex::encode(some.encode()), format!("13{key}02000200000901"));
        for r in [nodes, leaves, list, some] {
            assert_eq!(Request::decode(&r.encode()), Ok(r));
        }
    }

    #[test]
    fn a_request_for_too_much_is_refused() {
        let root = Cid::new(Codec::DagPb, HashKind::Blake3, [7; 32]);
        let all = Request::Leaves { root, packing: Packing::Off, leaves: LeafSet::Ranges(vec![0..u32::MAX]) };
        assert_eq!(Request::decode(&all.encode()), Err(WireError::BadField("leaves")));
        let none = Request::Leaves { root, packing: Packing::Off, leaves: LeafSet::Ranges(vec![]) };
        assert_eq!(Request::decode(&none.encode()), Err(WireError::BadField("leaves")));
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
