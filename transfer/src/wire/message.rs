//! Control messages: their values, their bytes, and the streaming decoder of the control stream. No request streams.

use super::{
    MAX_ADDRS, MAX_BITMAP_BYTES, MAX_FRAME_BYTES, MAX_PEER_HINTS, MAX_PEER_ID_BYTES, MAX_RANGES, MAX_TEXT_BYTES,
    Reader, WireError, put_varint,
};
use shoal_content::Cid;
use shoal_net::PeerId;
use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
};

const HELLO: u8 = 0x01;
const JOIN: u8 = 0x02;
const LEAVE: u8 = 0x03;
const HAVE: u8 = 0x04;
const DONT_HAVE: u8 = 0x05;
const INTERESTED: u8 = 0x06;
const CHOKE: u8 = 0x07;
const PEERS: u8 = 0x08;
const GOODBYE: u8 = 0x09;
/// Types from here on may be skipped by a peer that does not know them.
const OPTIONAL: u8 = 0x80;
const LOAD: u8 = 0x80;
const REACH: u8 = 0x81;

/// The first message on each control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Version of the messages inside the ALPN's major version; a peer speaks the lower of the two.
    pub version: u32,
    /// Capability bits; unknown ones are ignored.
    pub features: u64,
    /// Name and version of the program, for people.
    pub agent: String,
    /// Addresses at which the sender believes to be reachable. Hints, never trusted.
    pub addrs: Vec<SocketAddr>,
}

/// A set of leaves of one root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeafSet {
    /// Non-empty ranges, ascending, not touching.
    Ranges(Vec<Range<u32>>),
    /// Bit `i` of the bytes (least significant first) stands for leaf `first + i`.
    Bitmap {
        /// Leaf of the first bit.
        first: u32,
        /// At most [`MAX_BITMAP_BYTES`].
        bits: Vec<u8>,
    },
}

impl LeafSet {
    /// The ranges of the set, ascending.
    pub fn ranges(&self) -> Vec<Range<u32>> {
        match self {
            LeafSet::Ranges(r) => r.clone(),
            LeafSet::Bitmap { first, bits } => {
                let set = (0..bits.len() * 8).filter(|i| bits[i / 8] >> (i % 8) & 1 == 1);
                collect_ranges(set.map(|i| first.saturating_add(i as u32)))
            }
        }
    }

    /// Packs ascending leaves into as few sets as the limits allow, each the shorter of its two forms.
    pub fn pack(leaves: impl IntoIterator<Item = u32>) -> Vec<LeafSet> {
        let mut sets = vec![];
        let mut ranges = collect_ranges(leaves).into_iter().peekable();
        while let Some(head) = ranges.peek() {
            let first = head.start;
            // A bitmap covers a fixed span; ranges beyond it start the next set.
            let span_end = first.saturating_add((MAX_BITMAP_BYTES * 8) as u32);
            let mut here = vec![];
            while let Some(r) = ranges.next_if(|r| r.end <= span_end || (here.is_empty() && r.start == first)) {
                here.push(r);
                if here.len() == MAX_RANGES {
                    break;
                }
            }
            let end = here.last().map_or(first, |r| r.end);
            let bitmap_bytes = (end - first).div_ceil(8) as usize;
            if bitmap_bytes <= MAX_BITMAP_BYTES && bitmap_bytes < here.len() * 3 {
                let mut bits = vec![0; bitmap_bytes];
                for leaf in here.iter().cloned().flatten() {
                    bits[((leaf - first) / 8) as usize] |= 1 << ((leaf - first) % 8);
                }
                sets.push(LeafSet::Bitmap { first, bits });
            } else {
                sets.push(LeafSet::Ranges(here));
            }
        }
        sets
    }
}

/// Joins ascending leaves into ranges.
fn collect_ranges(leaves: impl IntoIterator<Item = u32>) -> Vec<Range<u32>> {
    let mut out: Vec<Range<u32>> = vec![];
    for leaf in leaves {
        match out.last_mut() {
            Some(last) if last.end == leaf => last.end = leaf.saturating_add(1),
            _ => out.push(leaf..leaf.saturating_add(1)),
        }
    }
    out
}

/// A peer that the sender knows of. A hint: the receiver dials it as an untrusted address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerHint {
    /// Who it claims to be; the handshake checks it.
    pub peer: PeerId,
    /// Where the sender saw or was told to find it.
    pub addrs: Vec<SocketAddr>,
}

/// A control message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Opens the stream.
    Hello(Hello),
    /// The sender takes part in the swarm of `root` and will call it `channel` on this stream.
    Join {
        /// The sender's number for this root on this connection.
        channel: u32,
        /// The content.
        root: Cid,
        /// How many leaves the sender counts, 0 while it does not know the tree yet.
        leaves: u32,
        /// The receiver, if it takes part too, is to answer with its own `Join` and all that it has.
        answer: bool,
    },
    /// The sender no longer takes part.
    Leave {
        /// As named in `Join`.
        channel: u32,
    },
    /// The sender can serve these leaves from now on.
    Have {
        /// As named in `Join`.
        channel: u32,
        /// Which.
        leaves: LeafSet,
    },
    /// The sender can no longer serve these leaves.
    DontHave {
        /// As named in `Join`.
        channel: u32,
        /// Which.
        leaves: LeafSet,
    },
    /// The sender does (or does not) want anything that the receiver has.
    Interested {
        /// As named in `Join`.
        channel: u32,
        /// Wants something.
        yes: bool,
    },
    /// The sender will not (or will) serve requests. A channel begins unchoked.
    Choke {
        /// As named in `Join`.
        channel: u32,
        /// Requests would be refused.
        yes: bool,
    },
    /// Other peers of the swarm.
    Peers {
        /// As named in `Join`.
        channel: u32,
        /// At most [`MAX_PEER_HINTS`].
        peers: Vec<PeerHint>,
    },
    /// How long an answer of the sender's takes now to be asked for and sent, as far as it knows. A hint, skipped by who
    /// does not know it.
    Load {
        /// As named in `Join`.
        channel: u32,
        /// Milliseconds.
        wait_ms: u32,
    },
    /// Whether a peer that has all of the root is among the sender's. Until it is said, one is. A hint, skipped by who does
    /// not know it.
    Reach {
        /// As named in `Join`.
        channel: u32,
        /// One is.
        yes: bool,
    },
    /// The sender is about to close the connection.
    Goodbye {
        /// For people.
        reason: String,
    },
}

impl Message {
    /// Appends the framed message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut body = vec![];
        let b = &mut body;
        match self {
            Message::Hello(hello) => {
                b.push(HELLO);
                put_varint(b, hello.version.into());
                put_varint(b, hello.features);
                put_text(b, &hello.agent);
                put_addrs(b, &hello.addrs);
            }
            Message::Join { channel, root, leaves, answer } => {
                b.push(JOIN);
                put_varint(b, (*channel).into());
                b.extend_from_slice(&root.key());
                put_varint(b, (*leaves).into());
                b.push(u8::from(*answer));
            }
            Message::Leave { channel } => {
                b.push(LEAVE);
                put_varint(b, (*channel).into());
            }
            Message::Have { channel, leaves } => {
                b.push(HAVE);
                put_varint(b, (*channel).into());
                put_leaf_set(b, leaves);
            }
            Message::DontHave { channel, leaves } => {
                b.push(DONT_HAVE);
                put_varint(b, (*channel).into());
                put_leaf_set(b, leaves);
            }
            Message::Interested { channel, yes } => {
                b.push(INTERESTED);
                put_varint(b, (*channel).into());
                b.push(u8::from(*yes));
            }
            Message::Choke { channel, yes } => {
                b.push(CHOKE);
                put_varint(b, (*channel).into());
                b.push(u8::from(*yes));
            }
            Message::Peers { channel, peers } => {
                b.push(PEERS);
                put_varint(b, (*channel).into());
                let peers = &peers[..peers.len().min(MAX_PEER_HINTS)];
                put_varint(b, peers.len() as u64);
                for hint in peers {
                    let id = hint.peer.to_bytes();
                    put_varint(b, id.len() as u64);
                    b.extend_from_slice(&id);
                    put_addrs(b, &hint.addrs);
                }
            }
            Message::Load { channel, wait_ms } => {
                b.push(LOAD);
                put_varint(b, (*channel).into());
                put_varint(b, (*wait_ms).into());
            }
            Message::Reach { channel, yes } => {
                b.push(REACH);
                put_varint(b, (*channel).into());
                b.push(u8::from(*yes));
            }
            Message::Goodbye { reason } => {
                b.push(GOODBYE);
                put_text(b, reason);
            }
        }
        put_varint(out, body.len() as u64);
        out.append(&mut body);
    }

    /// Reads type and body of one frame. `Ok(None)`: a type of the optional range that this version does not know.
    fn decode(frame: &[u8]) -> Result<Option<Message>, WireError> {
        let mut r = Reader::new(frame);
        let kind = r.byte()?;
        let message = match kind {
            HELLO => Message::Hello(Hello {
                version: r.varint_u32("version")?,
                features: r.varint()?,
                agent: text(&mut r, "agent")?,
                addrs: addrs(&mut r)?,
            }),
            JOIN => Message::Join {
                channel: r.varint_u32("channel")?,
                root: Cid::from_key(r.take(Cid::KEY_LEN)?).ok_or(WireError::BadField("root"))?,
                leaves: r.varint_u32("leaves")?,
                answer: flag(&mut r, "answer")?,
            },
            LEAVE => Message::Leave { channel: r.varint_u32("channel")? },
            HAVE => Message::Have { channel: r.varint_u32("channel")?, leaves: leaf_set(&mut r)? },
            DONT_HAVE => Message::DontHave { channel: r.varint_u32("channel")?, leaves: leaf_set(&mut r)? },
            INTERESTED => Message::Interested { channel: r.varint_u32("channel")?, yes: flag(&mut r, "interested")? },
            CHOKE => Message::Choke { channel: r.varint_u32("channel")?, yes: flag(&mut r, "choke")? },
            PEERS => {
                let channel = r.varint_u32("channel")?;
                let count = r.varint()?;
                if count > MAX_PEER_HINTS as u64 {
                    return Err(WireError::BadField("peers"));
                }
                let mut peers = vec![];
                for _ in 0..count {
                    let id = r.bytes("peer id", MAX_PEER_ID_BYTES)?;
                    let peer = PeerId::from_bytes(id).map_err(|_| WireError::BadField("peer id"))?;
                    peers.push(PeerHint { peer, addrs: addrs(&mut r)? });
                }
                Message::Peers { channel, peers }
            }
            GOODBYE => Message::Goodbye { reason: text(&mut r, "reason")? },
            LOAD => Message::Load { channel: r.varint_u32("channel")?, wait_ms: r.varint_u32("wait")? },
            REACH => Message::Reach { channel: r.varint_u32("channel")?, yes: flag(&mut r, "reach")? },
            other if other >= OPTIONAL => return Ok(None),
            other => return Err(WireError::UnknownType(other)),
        };
        r.end()?;
        Ok(Some(message))
    }
}

/// Cuts a control stream into messages. Feed bytes with [`push`](Self::push), then call [`poll`](Self::poll) until it
/// gives `None`. Holds at most one frame plus what one `push` brought.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    read: usize,
}

impl Decoder {
    /// Takes bytes in the order of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read);
        self.read = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message; `None` asks for more bytes. An error is final.
    pub fn poll(&mut self) -> Result<Option<Message>, WireError> {
        loop {
            let mut r = Reader::new(&self.buffer[self.read..]);
            let before = r.remaining();
            let length = match r.varint() {
                Ok(0) => return Err(WireError::Truncated),
                Ok(n) if n > MAX_FRAME_BYTES as u64 => return Err(WireError::TooLong(n)),
                Ok(n) => n as usize,
                Err(_) => return Ok(None),
            };
            let Ok(frame) = r.take(length) else { return Ok(None) };
            let message = Message::decode(frame)?;
            self.read += before - r.remaining();
            if message.is_some() {
                return Ok(message);
            }
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(MAX_TEXT_BYTES)];
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn text(r: &mut Reader<'_>, field: &'static str) -> Result<String, WireError> {
    let bytes = r.bytes(field, MAX_TEXT_BYTES)?;
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| WireError::BadField(field))
}

fn flag(r: &mut Reader<'_>, field: &'static str) -> Result<bool, WireError> {
    match r.byte()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(WireError::BadField(field)),
    }
}

/// Address: `4 ‖ 4 octets ‖ port` or `6 ‖ 16 octets ‖ port`, the port as two bytes, big endian.
fn put_addrs(out: &mut Vec<u8>, addrs: &[SocketAddr]) {
    let addrs = &addrs[..addrs.len().min(MAX_ADDRS)];
    put_varint(out, addrs.len() as u64);
    for addr in addrs {
        match addr.ip() {
            IpAddr::V4(ip) => {
                out.push(4);
                out.extend_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                out.push(6);
                out.extend_from_slice(&ip.octets());
            }
        }
        out.extend_from_slice(&addr.port().to_be_bytes());
    }
}

fn addrs(r: &mut Reader<'_>) -> Result<Vec<SocketAddr>, WireError> {
    let count = r.varint()?;
    if count > MAX_ADDRS as u64 {
        return Err(WireError::BadField("addresses"));
    }
    (0..count)
        .map(|_| {
            let ip: IpAddr = match r.byte()? {
                4 => r.array::<4>()?.into(),
                6 => r.array::<16>()?.into(),
                _ => return Err(WireError::BadField("address family")),
            };
            Ok(SocketAddr::new(ip, u16::from_be_bytes(r.array()?)))
        })
        .collect()
}

/// `0 ‖ count ‖ (gap, length − 1)…` for ranges (a gap counts from the end of the range before), `1 ‖ first ‖ bytes` for
/// a bitmap.
pub(super) fn put_leaf_set(out: &mut Vec<u8>, set: &LeafSet) {
    match set {
        LeafSet::Ranges(ranges) => {
            out.push(0);
            put_varint(out, ranges.len() as u64);
            let mut at = 0;
            for r in ranges {
                put_varint(out, u64::from(r.start - at));
                put_varint(out, u64::from(r.end - r.start - 1));
                at = r.end;
            }
        }
        LeafSet::Bitmap { first, bits } => {
            out.push(1);
            put_varint(out, (*first).into());
            put_varint(out, bits.len() as u64);
            out.extend_from_slice(bits);
        }
    }
}

pub(super) fn leaf_set(r: &mut Reader<'_>) -> Result<LeafSet, WireError> {
    match r.byte()? {
        0 => {
            let count = r.varint()?;
            if count > MAX_RANGES as u64 {
                return Err(WireError::BadField("ranges"));
            }
            let mut at = 0u32;
            let mut ranges = vec![];
            for i in 0..count {
                let gap = r.varint_u32("gap")?;
                let length = r.varint_u32("length")?.checked_add(1).ok_or(WireError::BadField("length"))?;
                if i > 0 && gap == 0 {
                    return Err(WireError::BadField("gap"));
                }
                let start = at.checked_add(gap).ok_or(WireError::BadField("gap"))?;
                at = start.checked_add(length).ok_or(WireError::BadField("length"))?;
                ranges.push(start..at);
            }
            Ok(LeafSet::Ranges(ranges))
        }
        1 => {
            let first = r.varint_u32("first")?;
            let bits = r.bytes("bitmap", MAX_BITMAP_BYTES)?;
            if first.checked_add(bits.len() as u32 * 8).is_none() {
                return Err(WireError::BadField("bitmap"));
            }
            Ok(LeafSet::Bitmap { first, bits: bits.to_vec() })
        }
        _ => Err(WireError::BadField("leaf set form")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shoal_content::{Codec, HashKind};

    fn root() -> Cid {
        Cid::new(Codec::DagPb, HashKind::Blake3, [7; 32])
    }

    fn hex_of(m: &Message) -> String {
        let mut out = vec![];
        m.encode(&mut out);
        hex::encode(out)
    }

    /// The vectors of docs/protocol.md.
    #[test]
    fn vectors() {
        let hello = Message::Hello(Hello {
            version: 1,
            features: 0,
            agent: "shoal/0.1.0".into(),
            addrs: vec!["192.0.2.1:4001".parse().unwrap()],
        });
        //                       len type ver feat agent                          addrs
        assert_eq!(
            hex_of(&hello),
            format!("17{}", "01010 0 0b 73686f616c2f302e312e30 01 04c0000201 0fa1".replace(' ', ""))
        );
        let have = Message::Have { channel: 2, leaves: LeafSet::Ranges(vec![0..3, 10..11]) };
        //                      len type ch form count gap len-1 gap len-1
        assert_eq!(hex_of(&have), "08 04 02 00 02 00 02 07 00".replace(' ', ""));
        let bitmap = Message::DontHave { channel: 1, leaves: LeafSet::Bitmap { first: 64, bits: vec![0x81] } };
        assert_eq!(hex_of(&bitmap), "07 05 01 01 4040 01 81".replace(' ', ""));
        assert_eq!(hex_of(&Message::Choke { channel: 0, yes: true }), "03070001");
        assert_eq!(hex_of(&Message::Interested { channel: 0, yes: false }), "03060000");
        assert_eq!(hex_of(&Message::Leave { channel: 5 }), "020305");
        assert_eq!(hex_of(&Message::Load { channel: 2, wait_ms: 350 }), "048002415e");
        assert_eq!(hex_of(&Message::Reach { channel: 2, yes: false }), "03810200");
        assert_eq!(hex_of(&Message::Goodbye { reason: "bye".into() }), "050903627965");
        let join = Message::Join { channel: 1, root: root(), leaves: 512, answer: true };
        assert_eq!(hex_of(&join), format!("26 02 01 {} 4200 01", hex::encode(root().key())).replace(' ', ""));
    }

    #[test]
    fn limits_are_found_before_anything_is_allocated() {
        // a frame of 2^61 bytes
        let mut d = Decoder::default();
        d.push(&[0xe0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(matches!(d.poll(), Err(WireError::TooLong(_))));
        // 2^30 ranges in a short frame
        let mut d = Decoder::default();
        d.push(&[7, HAVE, 0, 0, 0xbf, 0xff, 0xff, 0xff]);
        assert_eq!(d.poll(), Err(WireError::BadField("ranges")));
        // ranges that run over the end of u32
        let mut d = Decoder::default();
        d.push(&[13, HAVE, 0, 0, 1]);
        d.push(&[0x80 | 0x3f, 0xff, 0xff, 0xff, 0xc0, 0, 0, 0, 0xff]);
        assert!(d.poll().is_err() || d.poll() == Ok(None));
        // an unknown type of the mandatory range ends it, one of the optional range is skipped
        let mut d = Decoder::default();
        d.push(&[1, 0x7f]);
        assert_eq!(d.poll(), Err(WireError::UnknownType(0x7f)));
        let mut d = Decoder::default();
        d.push(&[2, 0xff, 9, 2, LEAVE, 4]);
        assert_eq!(d.poll(), Ok(Some(Message::Leave { channel: 4 })));
        // trailing bytes
        let mut d = Decoder::default();
        d.push(&[3, LEAVE, 4, 4]);
        assert_eq!(d.poll(), Err(WireError::Trailing(1)));
    }

    fn any_message() -> impl Strategy<Value = Message> {
        let addr = (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.into(), port));
        let addrs = prop::collection::vec(addr, 0..=MAX_ADDRS);
        let leaves = prop::collection::btree_set(0..5_000u32, 1..200).prop_map(|s| LeafSet::pack(s).remove(0));
        prop_oneof![
            ("\\PC{0,40}", any::<u32>(), addrs.clone()).prop_map(|(agent, version, addrs)| {
                Message::Hello(Hello { version, features: u64::from(version) << 7, agent, addrs })
            }),
            (any::<u32>(), any::<[u8; 32]>(), any::<u32>(), any::<bool>()).prop_map(
                |(channel, digest, leaves, answer)| {
                    Message::Join { channel, root: Cid::new(Codec::DagPb, HashKind::Blake3, digest), leaves, answer }
                }
            ),
            any::<u32>().prop_map(|channel| Message::Leave { channel }),
            (any::<u32>(), leaves.clone()).prop_map(|(channel, leaves)| Message::Have { channel, leaves }),
            (any::<u32>(), leaves).prop_map(|(channel, leaves)| Message::DontHave { channel, leaves }),
            (any::<u32>(), any::<bool>()).prop_map(|(channel, yes)| Message::Interested { channel, yes }),
            (any::<u32>(), any::<bool>()).prop_map(|(channel, yes)| Message::Choke { channel, yes }),
            (any::<u32>(), prop::collection::vec(addrs, 0..5)).prop_map(|(channel, lists)| Message::Peers {
                channel,
                peers: lists.into_iter().map(|addrs| PeerHint { peer: PeerId::random(), addrs }).collect()
            }),
            (any::<u32>(), any::<u32>()).prop_map(|(channel, wait_ms)| Message::Load { channel, wait_ms }),
            (any::<u32>(), any::<bool>()).prop_map(|(channel, yes)| Message::Reach { channel, yes }),
            "\\PC{0,60}".prop_map(|reason| Message::Goodbye { reason }),
        ]
    }

    proptest! {
        #[test]
        fn round_trip_in_any_slices(messages in prop::collection::vec(any_message(), 1..6), step in 1usize..40) {
            let mut bytes = vec![];
            messages.iter().for_each(|m| m.encode(&mut bytes));
            let mut decoder = Decoder::default();
            let mut back = vec![];
            for piece in bytes.chunks(step) {
                decoder.push(piece);
                while let Some(m) = decoder.poll().unwrap() {
                    back.push(m);
                }
            }
            prop_assert_eq!(back, messages);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.poll() {}
        }

        #[test]
        fn packed_sets_keep_their_leaves(leaves in prop::collection::btree_set(0..2_000_000u32, 0..3000), dense in 0..9000u32) {
            let mut all = leaves;
            all.extend(100_000..100_000 + dense);
            let sets = LeafSet::pack(all.iter().copied());
            let mut back = vec![];
            for set in &sets {
                let mut bytes = vec![];
                Message::Have { channel: 9, leaves: set.clone() }.encode(&mut bytes);
                prop_assert!(bytes.len() <= MAX_FRAME_BYTES);
                let mut decoder = Decoder::default();
                decoder.push(&bytes);
                let got = decoder.poll().unwrap().unwrap();
                let Message::Have { leaves, .. } = got else { panic!("not a have") };
                back.extend(leaves.ranges().into_iter().flatten());
            }
            prop_assert_eq!(back, all.into_iter().collect::<Vec<_>>());
        }
    }
}
