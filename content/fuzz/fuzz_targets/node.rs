//! Any block is a node or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_content::{Cid, Codec, HashKind, Node};

fuzz_target!(|block: &[u8]| {
    let cid = Cid::new(Codec::DagPb, HashKind::Blake3, [0; 32]);
    if let Ok(node) = Node::decode(&cid, block) {
        assert!(node.links().count() <= shoal_content::MAX_LINKS);
    }
});
