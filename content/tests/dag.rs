//! Trees built, walked and read back; and DAGs such as only an adversary builds.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]

mod support;

use std::collections::BTreeMap;

use proptest::prelude::*;
use shoal_content::{
    Cid, Codec, DecodeError, DirError, EntryKind, HashKind, Link, MAX_BLOCK_BYTES, MAX_DEPTH, MAX_LINKS, Node, RelPath,
    SHOAL_V1, SelectError, UNIXFS_V1_2025, Walk, WalkError, WalkLimits, directory, symlink,
};
use support::{Blocks, DIRECTORY, check_manifest, file_data, file_node, node, number, shard_data, tiny_profile};

/// A tree by hand: what stands at a name.
#[derive(Clone, Debug)]
enum Tree {
    Dir(BTreeMap<String, Tree>),
    File(Vec<u8>, bool),
    Symlink(String),
}

fn trees() -> impl Strategy<Value = Tree> {
    let data = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        // Enough for two levels of nodes, and alike often enough for shared chunks and nodes.
        (0..3u8, 0..8000usize).prop_map(|(seed, len)| {
            let mut bytes = vec![0; len];
            blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
            bytes
        }),
    ];
    let leaf = prop_oneof![
        4 => (data, any::<bool>()).prop_map(|(data, executable)| Tree::File(data, executable)),
        1 => "[a-z./]{1,20}".prop_map(Tree::Symlink),
    ];
    let name = r"[a-zA-Z0-9 _é日\n]{1,12}";
    leaf.prop_recursive(4, 60, 20, move |inner| prop::collection::btree_map(name, inner, 0..20).prop_map(Tree::Dir))
}

fn build(tree: &Tree, blocks: &mut Blocks) -> Link {
    let profile = &tiny_profile();
    match tree {
        Tree::File(data, executable) => blocks.file(profile, data, *executable),
        Tree::Symlink(target) => blocks.symlink(profile, target),
        Tree::Dir(entries) => {
            let entries = entries.iter().map(|(name, tree)| (name.clone(), build(tree, blocks))).collect();
            blocks.directory(profile, entries)
        }
    }
}

/// What a tree holds, by path.
type Listing = BTreeMap<String, (char, Vec<u8>)>;

fn list(tree: &Tree, path: &str, out: &mut Listing) {
    let (kind, bytes) = match tree {
        Tree::File(data, true) => ('x', data.clone()),
        Tree::File(data, false) => ('f', data.clone()),
        Tree::Symlink(target) => ('l', target.clone().into_bytes()),
        Tree::Dir(entries) => {
            for (name, tree) in entries {
                let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                list(tree, &path, out);
            }
            ('d', Vec::new())
        }
    };
    out.insert(path.to_string(), (kind, bytes));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_was_built_is_what_the_manifest_holds(tree in trees()) {
        let mut blocks = Blocks::default();
        let root = build(&tree, &mut blocks);
        let manifest = blocks.walk(root.cid).unwrap();
        check_manifest(&manifest);
        prop_assert_eq!(manifest.total_bytes(), root.size);

        let mut found = Listing::new();
        for (index, entry) in (0u32..).zip(manifest.entries()) {
            let what = match &entry.kind {
                EntryKind::Dir => ('d', Vec::new()),
                EntryKind::File { executable, .. } => (if *executable { 'x' } else { 'f' }, blocks.read(&manifest, index)),
                EntryKind::Symlink { target } => ('l', target.as_bytes().to_vec()),
            };
            prop_assert!(found.insert(entry.path.as_str().to_string(), what).is_none());
        }
        let mut expected = Listing::new();
        list(&tree, "", &mut expected);
        prop_assert_eq!(found, expected);

        // The nodes are what a walk asks for, in that order; and building again gives the same.
        let mut walk = Walk::new(root.cid, WalkLimits::default());
        for cid in manifest.nodes() {
            prop_assert_eq!(walk.next_needed(), Some(*cid));
            walk.insert(cid, &blocks.0[cid]).unwrap();
        }
        prop_assert_eq!(walk.next_needed(), None);
        prop_assert_eq!(build(&tree, &mut Blocks::default()), root);

        // What is selected is what is below.
        for entry in manifest.entries() {
            let selection = manifest.select(std::slice::from_ref(&entry.path)).unwrap();
            let below = manifest.entries().iter().filter(|other| other.path.starts_with(&entry.path));
            prop_assert_eq!(selection.bytes, below.clone().filter_map(|below| below.file_size()).sum::<u64>());
            let above = entry.path.parts().count();
            prop_assert_eq!(selection.entries.len(), below.count() + above);
        }
    }

    #[test]
    fn any_bytes_are_a_node_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let cid = Cid::of(Codec::DagPb, HashKind::Blake3, &bytes);
        if let Ok(node) = Node::decode(&cid, &bytes) {
            prop_assert!(node.links().count() < bytes.len());
        }
    }

    #[test]
    fn any_change_to_good_blocks_is_a_root_or_an_error(
        tree in trees(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..6),
    ) {
        let mut blocks = Blocks::default();
        build(&tree, &mut blocks);
        let mut sorted: Vec<_> = blocks.0.iter().filter(|(cid, _)| cid.codec() == Codec::DagPb).collect();
        sorted.sort();
        for (_, bytes) in sorted {
            let mut bytes = bytes.clone();
            for (at, byte, how) in &changes {
                match how {
                    0 if !bytes.is_empty() => *at.get_mut(&mut bytes) = *byte,
                    1 if !bytes.is_empty() => drop(bytes.remove(at.index(bytes.len()))),
                    _ => bytes.insert(at.index(bytes.len() + 1), *byte),
                }
            }
            let mut walk = Walk::new(Cid::of(Codec::DagPb, HashKind::Blake3, &bytes), WalkLimits::default());
            let root = walk.next_needed().unwrap();
            if walk.insert(&root, &bytes).is_ok() {
                // The blocks below are as they were where the change left their names alone.
                while let Some(block) = walk.next_needed().and_then(|cid| blocks.0.get(&cid)) {
                    let cid = walk.next_needed().unwrap();
                    if walk.insert(&cid, block).is_err() {
                        break;
                    }
                }
                if let Ok(manifest) = walk.finish() {
                    check_manifest(&manifest);
                }
            }
        }
    }

    /// Nodes of all kinds over any others, with sizes that are often wrong.
    #[test]
    fn any_dag_is_a_manifest_or_an_error(
        plan in prop::collection::vec((0..4u8, prop::collection::vec((any::<prop::sample::Index>(), 0..6u64), 0..5)), 1..12),
        fix in any::<bool>(),
    ) {
        let mut blocks = Blocks::default();
        // Each with the file bytes below it, where that is known.
        let mut made: Vec<(Cid, u64)> = (0..5u64).map(|len| {
            (blocks.put(Codec::Raw, &vec![b'x'; len as usize]), len)
        }).collect();
        for (kind, picks) in plan {
            let children: Vec<(Cid, u64)> = picks.iter().map(|(pick, lie)| {
                let (cid, size) = made[pick.index(made.len())];
                (cid, if fix || *lie < 4 { size } else { *lie })
            }).collect();
            let names: Vec<String> = (0..children.len()).map(|i| format!("{i:02X}{}", if kind == 2 { "" } else { "n" })).collect();
            let links: Vec<_> = names.iter().zip(&children).map(|(name, (cid, size))| (name.as_str(), *cid, Some(*size))).collect();
            let (block, size) = match kind {
                0 => (file_node(b"", &children), children.iter().map(|child| child.1).sum()),
                1 => (node(&links, DIRECTORY), 0),
                _ => (node(&links, &shard_data(256)), 0),
            };
            made.push((blocks.put(Codec::DagPb, &block), size));
        }
        let limits = WalkLimits { entries: 500, extents: 500, ..WalkLimits::default() };
        for (root, _) in made {
            if let Ok(manifest) = blocks.walk_within(root, limits.clone()) {
                check_manifest(&manifest);
                prop_assert!(manifest.entries().len() <= 500);
            }
        }
    }
}

fn of(data: &[u8]) -> Cid {
    Cid::of(Codec::Raw, HashKind::Blake3, data)
}

#[test]
fn roots_of_every_kind() {
    let mut blocks = Blocks::default();
    let raw = blocks.file(&SHOAL_V1, b"hello", false);
    let manifest = blocks.walk(raw.cid).unwrap();
    check_manifest(&manifest);
    assert_eq!((manifest.nodes(), manifest.leaves().len(), manifest.total_bytes()), (&[raw.cid][..], 1, 5));
    assert!(manifest.entries()[0].path.is_root());

    let empty = blocks.file(&SHOAL_V1, b"", false);
    let manifest = blocks.walk(empty.cid).unwrap();
    assert_eq!((manifest.nodes().len(), manifest.leaves().len(), manifest.file_count()), (0, 0, 1));

    for data in [&b"#!"[..], b""] {
        let program = blocks.file(&SHOAL_V1, data, true);
        let manifest = blocks.walk(program.cid).unwrap();
        check_manifest(&manifest);
        assert!(matches!(manifest.entries()[0].kind, EntryKind::File { executable: true, .. }));
        assert_eq!(blocks.read(&manifest, 0), data);
        // The other profile keeps no modes.
        assert_eq!(blocks.file(&UNIXFS_V1_2025, data, true), blocks.file(&UNIXFS_V1_2025, data, false));
    }

    let link = blocks.symlink(&SHOAL_V1, "../anywhere");
    let manifest = blocks.walk(link.cid).unwrap();
    assert_eq!(manifest.entries()[0].kind, EntryKind::Symlink { target: "../anywhere".into() });
    assert!(manifest.entries()[0].path.is_root());
}

#[test]
fn what_cannot_be_built_is_named() {
    let leaf = Link::leaf(of(b"x"), 1);
    let mut out = Vec::new();
    let mut make =
        |names: &[&str]| directory(&SHOAL_V1, names.iter().map(|name| (name.to_string(), leaf)).collect(), &mut out);
    assert_eq!(make(&["a", "b", "a"]), Err(DirError::Duplicate("a".into())));
    for name in ["", ".", "..", "a/b", "a\0"] {
        assert!(matches!(make(&["a", name]), Err(DirError::Name(_))), "{name:?}");
    }
    for target in ["", "a\0", &"a".repeat(4097)] {
        assert!(matches!(symlink(&SHOAL_V1, target), Err(DirError::Target(_))));
    }
}

#[test]
fn a_plain_directory_of_the_shortest_names_is_decoded() {
    let leaf = Link::leaf(of(b"x"), 1);
    let mut out = Vec::new();
    // Nearly the most that fit in 256 KiB.
    let names = (0..5500).map(|i| (format!("{i:x}"), leaf)).collect();
    let root = directory(&SHOAL_V1, names, &mut out).unwrap();
    assert_eq!(out.len(), 1);
    assert!(matches!(Node::decode(&root.cid, &out[0].bytes), Ok(Node::Directory { .. })));
}

#[test]
fn a_walk_takes_only_what_it_asked_for() {
    let mut blocks = Blocks::default();
    let data: Vec<u8> = (0..20_000u32).flat_map(u32::to_le_bytes).collect();
    let root = blocks.file(&tiny_profile(), &data, false).cid;
    let mut walk = Walk::new(root, WalkLimits::default());
    let other = blocks.put(Codec::DagPb, &node(&[], DIRECTORY));
    let error = walk.insert(&other, &blocks.0[&other]).unwrap_err();
    assert!(error.is_sender_fault() && matches!(error, WalkError::NotNeeded(_)));
    let error = walk.insert(&root, b"something else").unwrap_err();
    assert!(error.is_sender_fault() && matches!(error, WalkError::WrongHash(_)));
    // Neither did harm.
    assert_eq!(walk.next_needed(), Some(root));
    walk.insert(&root, &blocks.0[&root]).unwrap();
    let next = walk.next_needed().unwrap();
    assert!(matches!(walk.insert(&root, &blocks.0[&root]), Err(WalkError::NotNeeded(_))), "a block twice");
    assert!(matches!(walk.finish(), Err(WalkError::Incomplete(cid)) if cid == next));
}

#[test]
fn foreign_files_with_bytes_in_their_nodes_are_whole() {
    let mut blocks = Blocks::default();
    // As CIDv0 tools do it: dag-pb leaves; one of type Raw, one of type File; and a trickle node with bytes of its own.
    let mut raw = vec![0x08, 0];
    support::bytes(&mut raw, 2, b"one ");
    number(&mut raw, 3, 4);
    let one = blocks.put(Codec::DagPb, &node(&[], &raw));
    let two = blocks.put(Codec::DagPb, &file_node(b"two ", &[]));
    let three = blocks.put(Codec::Raw, b"three ");
    let middle = blocks.put(Codec::DagPb, &file_node(b"", &[(one, 4), (two, 4)]));
    let root = blocks.put(Codec::DagPb, &file_node(b"zero ", &[(middle, 8), (three, 6), (one, 4)]));
    let manifest = blocks.walk(root).unwrap();
    check_manifest(&manifest);
    assert_eq!(blocks.read(&manifest, 0), b"zero one two three one ");
    assert_eq!((manifest.leaves().len(), manifest.nodes().len()), (1, 4));

    let limits = WalkLimits { inline_bytes: 16, ..WalkLimits::default() };
    assert!(matches!(blocks.walk_within(root, limits), Err(WalkError::Limit { limit: 16, .. })), "17 with the repeat");
}

#[test]
fn packed_sizes_metadata_and_unknown_fields_are_read() {
    let leaf = of(b"hello");
    let mut data = vec![0x08, 2];
    number(&mut data, 3, 10);
    support::bytes(&mut data, 4, &[5, 5]);
    number(&mut data, 7, 0o100_755);
    // mtime: seconds, and nanoseconds as fixed32.
    support::bytes(&mut data, 8, &[0x08, 1, 0x15, 1, 0, 0, 0]);
    number(&mut data, 9, 7);
    let block = node(&[("", leaf, None), ("", leaf, Some(5))], &data);
    let cid = Cid::of(Codec::DagPb, HashKind::Blake3, &block);
    let Node::File { links, size, mode, .. } = Node::decode(&cid, &block).unwrap() else { panic!("not a file") };
    assert_eq!((links.len(), size, mode), (2, 10, Some(0o755)));
}

#[test]
fn a_raw_entry_of_unknown_length_is_asked_for() {
    let mut blocks = Blocks::default();
    let leaf = blocks.put(Codec::Raw, b"hello");
    for claim in [None, Some(0)] {
        let root = blocks.put(Codec::DagPb, &node(&[("a", leaf, claim), ("b", leaf, Some(5))], DIRECTORY));
        let manifest = blocks.walk(root).unwrap();
        check_manifest(&manifest);
        assert_eq!((manifest.nodes(), manifest.total_bytes()), (&[root, leaf][..], 10));
    }
    let root = blocks.put(Codec::DagPb, &node(&[("a", leaf, None), ("b", leaf, Some(6))], DIRECTORY));
    let manifest = blocks.walk(root).unwrap();
    assert_eq!(manifest.total_bytes(), 10, "the block itself knows better than a link");
}

#[test]
fn sizes_that_contradict_each_other_are_refused() {
    let mut blocks = Blocks::default();
    let leaf = of(b"hello");
    let two_sizes = blocks.put(Codec::DagPb, &node(&[("a", leaf, Some(5)), ("b", leaf, Some(6))], DIRECTORY));
    assert!(matches!(blocks.walk(two_sizes), Err(WalkError::SizeConflict { sizes: (5, 6), .. })));
    let part = blocks.put(Codec::DagPb, &file_node(b"", &[(leaf, 5)]));
    let other = blocks.put(Codec::DagPb, &file_node(b"", &[(part, 6)]));
    assert!(matches!(blocks.walk(other), Err(WalkError::SizeConflict { sizes: (5, 6), .. })));
    let none = blocks.put(Codec::DagPb, &file_node(b"", &[(part, 0)]));
    assert!(matches!(blocks.walk(none), Err(WalkError::SizeConflict { sizes: (5, 0), .. })));
    let empty = blocks.put(Codec::DagPb, &file_node(b"", &[(leaf, 0)]));
    assert!(matches!(blocks.walk(empty), Err(WalkError::LeafSize { len: 0, .. })));
    let nothing = blocks.put(Codec::DagPb, &file_node(b"", &[(of(b""), 3)]));
    assert!(matches!(blocks.walk(nothing), Err(WalkError::LeafSize { len: 3, .. })));
    let huge = blocks.put(Codec::DagPb, &node(&[("a", leaf, Some(u64::MAX))], DIRECTORY));
    assert!(matches!(blocks.walk(huge), Err(WalkError::LeafSize { .. })));
    for error in [two_sizes, other].map(|root| blocks.walk(root).unwrap_err()) {
        assert!(!error.is_sender_fault());
    }
}

/// Decodes `block`, which has to fail.
fn refused(block: &[u8]) -> DecodeError {
    Node::decode(&Cid::of(Codec::DagPb, HashKind::Blake3, block), block).unwrap_err()
}

#[test]
fn malformed_nodes_each_have_an_error() {
    let leaf = of(b"hello");
    let dir = |name: &str| refused(&node(&[(name, leaf, Some(5))], DIRECTORY));
    for name in ["", ".", "..", "../x", "/x", "a/b", "a\0b", &"a".repeat(256)] {
        assert!(matches!(dir(name), DecodeError::Name(_)), "{name:?}");
    }
    assert_eq!(dir("a/\u{1b}[2J").to_string(), "the name \"a/\\u{1b}[2J\" has a \"/\" in it");
    let twice = node(&[("a", leaf, None), ("b", leaf, None), ("a", leaf, None)], DIRECTORY);
    assert!(matches!(refused(&twice), DecodeError::Duplicate(name) if name == "a"));

    let with_sizes = |sizes: &[u64]| refused(&node(&[("", leaf, None), ("", leaf, None)], &file_data(b"", sizes)));
    assert!(matches!(with_sizes(&[5]), DecodeError::BlockSizes { links: 2, sizes: 1 }));
    assert!(matches!(with_sizes(&[5, 5, 5]), DecodeError::BlockSizes { links: 2, sizes: 3 }));
    assert!(matches!(with_sizes(&[5, MAX_BLOCK_BYTES as u64 + 1]), DecodeError::LeafTooLarge(_)));
    let part = Cid::of(Codec::DagPb, HashKind::Blake3, b"");
    assert!(matches!(refused(&file_node(b"", &[(part, u64::MAX), (part, 1)])), DecodeError::FileSize));
    let mut wrong_sum = file_data(b"", &[5]);
    number(&mut wrong_sum, 3, 6);
    assert!(matches!(refused(&node(&[("", leaf, None)], &wrong_sum)), DecodeError::FileSize));

    for fanout in [0, 1, 4, 100, 2048, u64::MAX] {
        assert!(matches!(refused(&node(&[], &shard_data(fanout))), DecodeError::Fanout(_)), "{fanout}");
    }
    let shard = |links: &[(&str, Cid, Option<u64>)]| refused(&node(links, &shard_data(16)));
    // For a width of 16, one digit; no sign, no lower case; each slot once; a shard is a node.
    for name in ["", "+a", "g", "aX"] {
        assert!(matches!(shard(&[(name, part, None)]), DecodeError::Slot), "{name:?}");
    }
    assert!(matches!(shard(&[("Aa", leaf, None), ("Ab", leaf, None)]), DecodeError::Slot));
    assert!(matches!(shard(&[("A", leaf, None)]), DecodeError::Slot));
    assert!(matches!(shard(&[("A..", leaf, None)]), DecodeError::Name(_)));
    assert!(matches!(refused(&node(&[], &[8, 5, 0x28, 0x12, 0x30, 16])), DecodeError::HamtHash(Some(0x12))));

    assert!(matches!(refused(b""), DecodeError::NoData));
    assert!(matches!(refused(&node(&[], b"")), DecodeError::NoType));
    assert!(matches!(refused(&node(&[], &[8, 3])), DecodeError::Type(3)));
    assert!(matches!(refused(&[0x0a, 2, 8, 1, 0x0a, 2, 8, 1]), DecodeError::Field(_)), "data twice");
    assert!(matches!(refused(&[0x12, 0, 0x0a, 2, 8, 1]), DecodeError::NoCid));
    assert!(matches!(refused(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]), DecodeError::Wire(_)));
    assert!(matches!(refused(&node(&[], &[8, 4])), DecodeError::Target));
    assert!(matches!(refused(&node(&[("a", leaf, None)], &[8, 4, 0x12, 1, b'x'])), DecodeError::Field(_)));
    assert!(matches!(refused(&vec![0; MAX_BLOCK_BYTES + 1]), DecodeError::BlockTooLarge(_)));
    assert!(matches!(Node::decode(&leaf, b"hello"), Err(DecodeError::Raw)));
    let wide = vec![("", leaf, None); MAX_LINKS + 1];
    assert!(matches!(refused(&node(&wide, DIRECTORY)), DecodeError::TooManyLinks));
}

#[test]
fn nodes_where_another_kind_belongs_are_refused() {
    let mut blocks = Blocks::default();
    let dir = blocks.put(Codec::DagPb, &node(&[], DIRECTORY));
    let file = blocks.put(Codec::DagPb, &file_node(b"x", &[]));
    let empty = blocks.put(Codec::DagPb, &node(&[], &shard_data(256)));
    for (root, expected) in [
        (file_node(b"", &[(dir, 0)]), "part of a file"),
        (node(&[("00", dir, None)], &shard_data(256)), "shard"),
        (node(&[("00", file, None)], &shard_data(256)), "shard"),
        (node(&[("00", empty, None)], &shard_data(256)), "shard"),
    ] {
        let root = blocks.put(Codec::DagPb, &root);
        let error = blocks.walk(root).unwrap_err();
        assert!(matches!(error, WalkError::Kind { .. }) && error.to_string().contains(expected), "{error}");
    }
    // A sharded directory that is empty itself is odd, but no lie.
    assert_eq!(blocks.walk(empty).unwrap().entries().len(), 1);
}

#[test]
fn a_name_twice_in_a_sharded_directory_is_refused() {
    let mut blocks = Blocks::default();
    let leaf = of(b"x");
    let below = blocks.put(Codec::DagPb, &node(&[("00a", leaf, Some(1))], &shard_data(256)));
    let sharded = node(&[("00", below, None), ("01a", leaf, Some(1))], &shard_data(256));
    let sharded = blocks.put(Codec::DagPb, &sharded);
    assert!(matches!(blocks.walk(sharded), Err(WalkError::Duplicate { name, .. }) if &*name == "a"));
    // The same name in the shards of two directories, one inside the other, is none.
    let inner = blocks.put(Codec::DagPb, &node(&[("00a", leaf, Some(1))], &shard_data(256)));
    let outer = node(&[("00b", inner, None), ("01a", leaf, Some(1)), ("02c", inner, None)], &shard_data(256));
    let outer = blocks.put(Codec::DagPb, &outer);
    assert_eq!(blocks.walk(outer).unwrap().entries().len(), 6);
}

/// Small DAGs that stand for enormous trees: each level refers to the one below twice, in various ways.
#[test]
fn small_dags_of_enormous_trees_are_refused_quickly() {
    let mut blocks = Blocks::default();
    let leaf = of(b"x");
    let mut dir = leaf;
    let (mut file, mut size) = (leaf, 1);
    let mut shard = blocks.put(Codec::DagPb, &node(&[("00a", leaf, Some(1))], &shard_data(256)));
    let mut nothing = blocks.put(Codec::DagPb, &file_node(b"", &[]));
    let mut inline = blocks.put(Codec::DagPb, &file_node(b"inline", &[]));
    let mut inline_size = 6;
    for _ in 0..MAX_DEPTH - 2 {
        dir = blocks.put(Codec::DagPb, &node(&[("a", dir, Some(1)), ("b", dir, Some(1))], DIRECTORY));
        file = blocks.put(Codec::DagPb, &file_node(b"", &[(file, size), (file, size)]));
        size *= 2;
        inline = blocks.put(Codec::DagPb, &file_node(b"", &[(inline, inline_size), (inline, inline_size)]));
        inline_size *= 2;
        shard = blocks.put(Codec::DagPb, &node(&[("00", shard, None), ("01", shard, None)], &shard_data(256)));
        nothing = blocks.put(Codec::DagPb, &file_node(b"", &[(nothing, 0), (nothing, 0)]));
    }
    let limits = || WalkLimits { entries: 10_000, extents: 10_000, ..WalkLimits::default() };
    for root in [dir, file, inline] {
        let error = blocks.walk_within(root, limits()).unwrap_err();
        assert!(matches!(error, WalkError::Limit { limit: 10_000, .. }), "{error}");
    }
    assert!(matches!(blocks.walk_within(shard, limits()), Err(WalkError::Duplicate { .. })));
    assert_eq!(blocks.walk_within(nothing, limits()).unwrap().total_bytes(), 0, "2^30 times nothing is passed over");
    let named = blocks.put(Codec::DagPb, &node(&[("a", nothing, None)], DIRECTORY));
    assert_eq!(blocks.walk(named).unwrap().entries().len(), 2);
}

#[test]
fn depth_is_bounded_by_kind() {
    let mut blocks = Blocks::default();
    let leaf = of(b"x");
    let (mut file, mut shard, mut dir) = (leaf, None, blocks.put(Codec::DagPb, &node(&[], DIRECTORY)));
    for depth in 1..=300 {
        file = blocks.put(Codec::DagPb, &file_node(b"", &[(file, 1)]));
        let below = shard.map_or(("00a", leaf, Some(1)), |shard| ("00", shard, None));
        let sharded = blocks.put(Codec::DagPb, &node(&[below], &shard_data(256)));
        shard = Some(sharded);
        dir = blocks.put(Codec::DagPb, &node(&[("d", dir, None)], DIRECTORY));
        let (file, sharded, dir) = (blocks.walk(file), blocks.walk(sharded), blocks.walk(dir));
        assert_eq!((file.is_ok(), sharded.is_ok()), (depth <= MAX_DEPTH, depth <= MAX_DEPTH), "{depth}");
        // Directories nest as deep as paths may.
        assert_eq!(dir.is_ok(), depth <= 256, "{depth}");
        if depth > MAX_DEPTH {
            assert!(matches!((file, sharded), (Err(WalkError::TooDeep(_)), Err(WalkError::TooDeep(_)))));
        }
        if depth > 256 {
            assert!(matches!(dir, Err(WalkError::Path { .. })));
        }
    }
}

#[test]
fn every_limit_is_kept() {
    let mut blocks = Blocks::default();
    let data: Vec<u8> = (0..2000u32).flat_map(u32::to_le_bytes).collect();
    let file = blocks.file(&tiny_profile(), &data, false);
    let link = blocks.symlink(&SHOAL_V1, "somewhere");
    let inner = blocks.directory(&SHOAL_V1, vec![("file".into(), file), ("link".into(), link)]);
    let root = blocks.directory(&SHOAL_V1, vec![("one".into(), inner), ("two".into(), inner)]).cid;
    let manifest = blocks.walk(root).unwrap();
    let extents = (0..7).map(|entry| manifest.pieces(entry).count()).sum();
    let exact = WalkLimits {
        nodes: manifest.nodes().len(),
        leaves: manifest.leaves().len(),
        entries: 7,
        path_bytes: 2 * ("one".len() + "one/file".len() + "one/link".len() + "somewhere".len()),
        extents,
        inline_bytes: 0,
    };
    assert!(blocks.walk_within(root, exact.clone()).is_ok());
    for less in [
        WalkLimits { nodes: exact.nodes - 1, ..exact.clone() },
        WalkLimits { leaves: exact.leaves - 1, ..exact.clone() },
        WalkLimits { entries: exact.entries - 1, ..exact.clone() },
        WalkLimits { path_bytes: exact.path_bytes - 1, ..exact.clone() },
        WalkLimits { extents: exact.extents - 1, ..exact.clone() },
    ] {
        assert!(matches!(blocks.walk_within(root, less.clone()), Err(WalkError::Limit { .. })), "{less:?}");
    }
}

#[test]
fn selecting_what_is_not_there_names_it() {
    let mut blocks = Blocks::default();
    let file = blocks.file(&SHOAL_V1, b"x", false);
    let inner = blocks.directory(&SHOAL_V1, vec![("file".into(), file), ("file2".into(), file)]);
    let root = blocks.directory(&SHOAL_V1, vec![("a".into(), inner), ("b".into(), inner), ("ab".into(), file)]);
    let manifest = blocks.walk(root.cid).unwrap();
    let path = |text: &str| text.parse::<RelPath>().unwrap();
    let names = |paths: &[RelPath]| -> Vec<String> {
        let selection = manifest.select(paths).unwrap();
        selection.entries.iter().map(|&entry| manifest.entries()[entry as usize].path.as_str().to_string()).collect()
    };
    assert_eq!(names(&[path("b/file"), path("a")]), ["", "a", "a/file", "a/file2", "b", "b/file"]);
    assert_eq!(names(&[path("a/file"), path("a")]), ["", "a", "a/file", "a/file2"]);
    assert_eq!(names(&[]).len(), 8);
    assert_eq!(names(&[RelPath::root(), path("ab")]).len(), 8);
    assert_eq!(
        manifest.select(&[path("a"), path("a/fil")]),
        Err(SelectError::NotFound { path: path("a/fil"), root: root.cid })
    );
}
