//! Packs: how chunks and nodes travel on a request stream, plain or under zstd (RFC 8878). The head of a pack, and the two
//! ways between its bytes on the wire and its plain bytes. When to compress is not decided here.

use super::WireError;

/// Bytes of the head of a pack.
pub const PACK_HEAD_BYTES: usize = 11;
/// Plain bytes of a pack at most: a block of the longest kind with a length before it, or many short ones.
pub const MAX_PACK_BYTES: u32 = (2 << 20) + 4;
/// A compressed pack grows by at most this factor. What would grow more is sent plain: it is rare, and a short message that
/// makes its reader busy for long is how an attack begins.
pub const MAX_PACK_RATIO: u32 = 256;

/// How the serving side may send what is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Packing {
    /// Plain.
    #[default]
    Off,
    /// Compressed where that is faster than the link.
    IfFaster,
    /// Compressed where that makes it smaller.
    IfSmaller,
}

impl Packing {
    pub(super) fn byte(self) -> u8 {
        match self {
            Packing::Off => 0,
            Packing::IfFaster => 1,
            Packing::IfSmaller => 2,
        }
    }

    pub(super) fn from_byte(byte: u8) -> Result<Packing, WireError> {
        Ok(match byte {
            0 => Packing::Off,
            1 => Packing::IfFaster,
            2 => Packing::IfSmaller,
            _ => return Err(WireError::BadField("packing")),
        })
    }
}

/// What follows the head of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackKind {
    /// The items, one after another.
    Plain,
    /// Nothing: the serving side does not have these items (any more).
    Missing,
    /// One zstd frame that holds the items, one after another.
    Zstd,
}

/// The head of a pack: `kind (1 byte) ‖ items (2) ‖ plain bytes (4) ‖ bytes that follow (4)`, big endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackHead {
    /// What follows.
    pub kind: PackKind,
    /// How many items it stands for, at least one.
    pub items: u16,
    /// Their bytes in all, at most [`MAX_PACK_BYTES`].
    pub plain: u32,
    /// The bytes that follow.
    pub wire: u32,
}

impl PackHead {
    /// The bytes of the head.
    pub fn encode(&self) -> [u8; PACK_HEAD_BYTES] {
        let mut out = [0; PACK_HEAD_BYTES];
        out[0] = match self.kind {
            PackKind::Plain => 0,
            PackKind::Missing => 1,
            PackKind::Zstd => 2,
        };
        out[1..3].copy_from_slice(&self.items.to_be_bytes());
        out[3..7].copy_from_slice(&self.plain.to_be_bytes());
        out[7..].copy_from_slice(&self.wire.to_be_bytes());
        out
    }

    /// Reads a head and holds it to the limits.
    pub fn decode(bytes: &[u8; PACK_HEAD_BYTES]) -> Result<PackHead, WireError> {
        let [kind, i0, i1, p0, p1, p2, p3, w0, w1, w2, w3] = *bytes;
        let items = u16::from_be_bytes([i0, i1]);
        let (plain, wire) = (u32::from_be_bytes([p0, p1, p2, p3]), u32::from_be_bytes([w0, w1, w2, w3]));
        let (kind, sound) = match kind {
            0 => (PackKind::Plain, plain == wire),
            1 => (PackKind::Missing, plain == 0 && wire == 0),
            2 => (PackKind::Zstd, wire < plain && plain <= wire.saturating_mul(MAX_PACK_RATIO)),
            _ => return Err(WireError::BadField("pack kind")),
        };
        if !sound || items == 0 || plain > MAX_PACK_BYTES {
            return Err(WireError::BadField("pack head"));
        }
        Ok(PackHead { kind, items, plain, wire })
    }
}

/// Compresses a pack; `None` where that would not save a tenth, or the limits forbid it.
pub fn compress(plain: &[u8], level: i32) -> Option<Vec<u8>> {
    let frame = zstd::bulk::compress(plain, level).ok()?;
    let saves = frame.len() + plain.len() / 10 < plain.len();
    let within = plain.len() <= MAX_PACK_BYTES as usize && plain.len() <= frame.len() * MAX_PACK_RATIO as usize;
    (saves && within).then_some(frame)
}

/// The plain bytes of a compressed pack. Allocates what the head says, which its decoder has bounded, and nothing else that
/// depends on the frame.
///
/// # Errors
/// [`WireError::BadPack`] for what is no zstd frame, or holds another number of bytes than the head says.
pub fn decompress(head: &PackHead, frame: &[u8]) -> Result<Vec<u8>, WireError> {
    let plain = zstd::bulk::decompress(frame, head.plain as usize).map_err(|_| WireError::BadPack)?;
    if plain.len() == head.plain as usize { Ok(plain) } else { Err(WireError::BadPack) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn vectors() {
        let head = |kind, items, plain, wire| PackHead { kind, items, plain, wire };
        let heads = [
            (head(PackKind::Plain, 2, 0x0004_0000, 0x0004_0000), "0000020004000000040000"),
            (head(PackKind::Missing, 1, 0, 0), "0100010000000000000000"),
            (head(PackKind::Zstd, 300, 0x0010_0000, 0x0001_8000), "02012c0010000000018000"),
        ];
        for (head, hex) in heads {
            assert_eq!(hex::encode(head.encode()), hex);
            assert_eq!(PackHead::decode(&head.encode()), Ok(head));
        }
        let frame = hex::decode("28b52ffd2003190000616263").unwrap();
        assert_eq!(decompress(&head(PackKind::Zstd, 1, 3, 2), &frame).unwrap(), b"abc");
    }

    #[test]
    fn heads_past_the_limits_are_refused() {
        let bad = |kind, items, plain, wire| PackHead::decode(&PackHead { kind, items, plain, wire }.encode()).is_err();
        assert!(bad(PackKind::Plain, 1, 5, 4) && bad(PackKind::Plain, 0, 5, 5));
        assert!(bad(PackKind::Plain, 1, MAX_PACK_BYTES + 1, MAX_PACK_BYTES + 1));
        assert!(bad(PackKind::Missing, 1, 1, 0) && bad(PackKind::Missing, 1, 0, 1));
        assert!(bad(PackKind::Zstd, 1, 5, 5) && bad(PackKind::Zstd, 1, MAX_PACK_BYTES + 1, 1 << 20));
        assert!(bad(PackKind::Zstd, 1, 257 * 100, 100), "a bomb");
        assert!(!bad(PackKind::Zstd, 1, 256 * 100, 100));
        assert!(PackHead::decode(&[3, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]).is_err());
    }

    #[test]
    fn a_frame_that_is_longer_or_shorter_than_it_says_is_refused() {
        let plain = vec![7; 1 << 20];
        let frame = zstd::bulk::compress(&plain, 1).unwrap();
        let head = |plain| PackHead { kind: PackKind::Zstd, items: 1, plain, wire: frame.len() as u32 };
        assert_eq!(decompress(&head(1 << 20), &frame).unwrap(), plain);
        assert_eq!(decompress(&head((1 << 20) - 1), &frame), Err(WireError::BadPack));
        assert_eq!(decompress(&head((1 << 20) + 1), &frame), Err(WireError::BadPack));
        assert_eq!(decompress(&head(1 << 20), &frame[..frame.len() - 1]), Err(WireError::BadPack));
        assert_eq!(compress(&plain, 1), None, "it would be a bomb");
    }

    proptest! {
        #[test]
        fn packs_survive(words in prop::collection::vec(any::<u16>(), 1..2000), level in 1..4) {
            let plain: Vec<u8> = words.iter().flat_map(|word| [b' ', (word % 9) as u8]).collect();
            if let Some(frame) = compress(&plain, level) {
                let head = PackHead { kind: PackKind::Zstd, items: 1, plain: plain.len() as u32, wire: frame.len() as u32 };
                prop_assert_eq!(PackHead::decode(&head.encode()), Ok(head));
                prop_assert_eq!(decompress(&head, &frame).unwrap(), plain);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(head: [u8; PACK_HEAD_BYTES], frame in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(head) = PackHead::decode(&head) {
                prop_assert_eq!(PackHead::decode(&head.encode()), Ok(head));
                let _plain = decompress(&head, &frame);
            }
        }
    }
}
