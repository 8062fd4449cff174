//! The header blocks of a tar archive, as far as they say where things are: POSIX ustar and pax (IEEE Std 1003.1, `pax`),
//! GNU (base-256 sizes, long names, sparse files). Names, times and owners are never looked at.
//!
//! Total: every block is one of the [`Block`]s. Nothing here reads, skips or allocates.

/// Everything in an archive is padded to blocks of this many bytes.
pub(crate) const BLOCK_BYTES: u64 = 512;

/// What a block is that stands where a header may.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Block {
    /// All zeros: two end an archive, and fill it up to its record size.
    Zeros,
    /// No header, or one with a wrong checksum or an impossible size.
    Malformed,
    /// A header, and how many bytes of data follow it, unpadded.
    Header(Kind, u64),
}

/// What the data behind a header are.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Kind {
    /// There are none: a link, device, directory or fifo, whatever its size field says.
    Nothing,
    /// The contents of an entry.
    Contents,
    /// The contents of a GNU sparse file; if set, after at least one block that goes on with its map.
    Sparse(bool),
    /// pax records about the next entry.
    Pax,
    /// Something else about the next entries: a long name, pax records for all of them.
    About,
}

impl Block {
    pub(crate) fn decode(block: &[u8; BLOCK_BYTES as usize]) -> Self {
        if &block[257..262] != b"ustar" {
            return if block.iter().all(|&byte| byte == 0) { Self::Zeros } else { Self::Malformed };
        }
        let (Some(sum), Some(size)) = (number(&block[148..156]), number(&block[124..136])) else {
            return Self::Malformed;
        };
        // The field itself counts as eight spaces. Some old writers summed signed bytes.
        let counted = || block[..148].iter().chain(&block[156..]).copied();
        let unsigned = counted().map(u64::from).sum::<u64>() + 8 * 32;
        let signed = counted().map(|byte| i64::from(byte.cast_signed())).sum::<i64>() + 8 * 32;
        if sum != unsigned && i64::try_from(sum) != Ok(signed) {
            return Self::Malformed;
        }
        match block[156] {
            b'1'..=b'6' => Self::Header(Kind::Nothing, 0),
            b'x' | b'X' => Self::Header(Kind::Pax, size),
            b'g' | b'L' | b'K' => Self::Header(Kind::About, size),
            b'S' => Self::Header(Kind::Sparse(block[482] != 0), size),
            _ => Self::Header(Kind::Contents, size),
        }
    }
}

/// Whether another block of a sparse file's map follows this one.
pub(crate) fn sparse_map_goes_on(block: &[u8; BLOCK_BYTES as usize]) -> bool {
    block[504] != 0
}

/// The next block boundary from `at` on; `None` past what 64 bits count.
pub(crate) fn padded(at: u64) -> Option<u64> {
    at.checked_next_multiple_of(BLOCK_BYTES)
}

/// A numeric field: octal digits, or base-256 where the first bit is set. `None` for anything else, negative numbers and
/// what is beyond 63 bits among them.
fn number(field: &[u8]) -> Option<u64> {
    match field {
        [first, rest @ ..] if first & 0x80 != 0 => {
            let digits = std::iter::once(first & 0x7f).chain(rest.iter().copied());
            digits.into_iter().try_fold(0u64, |sum, digit| {
                let shifted = sum.checked_mul(256)?;
                shifted.checked_add(digit.into()).filter(|&sum| sum <= i64::MAX as u64)
            })
        }
        _ => {
            let text = field.trim_ascii_start();
            let end = text.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(text.len());
            text[..end].iter().try_fold(0u64, |sum, byte| match byte {
                b'0'..=b'7' => Some(sum * 8 + u64::from(byte - b'0')),
                _ => None,
            })
        }
    }
}

/// The size that pax records give the next entry, if they do. Records that are malformed end the search.
pub(crate) fn pax_size(mut records: &[u8]) -> Option<u64> {
    let mut size = None;
    loop {
        // LENGTH ' ' KEY '=' VALUE '\n', the length in decimal and of all of it.
        let Some(space) = records.iter().take(20).position(|&byte| byte == b' ') else { return size };
        let Some(length) = decimal(&records[..space]).and_then(|length| usize::try_from(length).ok()) else {
            return size;
        };
        let Some(record) = records.get(space + 1..length) else { return size };
        if let Some(value) = record.strip_prefix(b"size=").and_then(|value| value.strip_suffix(b"\n")) {
            size = decimal(value).filter(|&size| size <= i64::MAX as u64);
        }
        records = &records[length..];
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let value = |sum: u64, byte: &u8| match byte {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    };
    if digits.is_empty() { None } else { digits.iter().try_fold(0, value) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(kind: u8, size: &[u8]) -> [u8; 512] {
        let mut block = [0; 512];
        block[..4].copy_from_slice(b"name");
        block[124..124 + size.len()].copy_from_slice(size);
        block[156] = kind;
        block[257..263].copy_from_slice(b"ustar\0");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }

    #[test]
    fn sizes_in_octal_and_in_base_256() {
        let size = |field: &[u8]| Block::decode(&header(b'0', field));
        assert_eq!(size(b"00000001750\0"), Block::Header(Kind::Contents, 1000));
        assert_eq!(size(b"       1750 "), Block::Header(Kind::Contents, 1000));
        assert_eq!(size(b"777777777777"), Block::Header(Kind::Contents, 0o777_777_777_777));
        assert_eq!(size(b""), Block::Header(Kind::Contents, 0));
        assert_eq!(size(b"\x80\0\0\0\0\0\0\x02\0\0\0\0"), Block::Header(Kind::Contents, 2 << 32));
        assert_eq!(size(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"), Block::Header(Kind::Contents, i64::MAX as u64));
        for impossible in [
            &b"0000000175x\0"[..],
            b"-1",
            b"\x80\0\0\0\x80\0\0\0\0\0\0\0",
            b"\x81\0\0\0\0\0\0\0\0\0\0\0",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert_eq!(size(impossible), Block::Malformed, "{impossible:?}");
        }
    }

    #[test]
    fn a_header_has_its_magic_and_its_sum() {
        assert_eq!(Block::decode(&[0; 512]), Block::Zeros);
        let good = header(b'5', b"00000001750\0");
        assert_eq!(Block::decode(&good), Block::Header(Kind::Nothing, 0), "a directory has no data");
        for at in [0, 130, 148, 257, 300, 511] {
            let mut bad = good;
            bad[at] ^= 1;
            assert_eq!(Block::decode(&bad), Block::Malformed, "byte {at}");
        }
        let mut high = header(b'0', b"");
        high[3] = 0xe9;
        let signed: i64 = high[..148].iter().chain(&high[156..]).map(|&byte| i64::from(byte as i8)).sum::<i64>() + 256;
        high[148..155].copy_from_slice(format!("{signed:06o}\0").as_bytes());
        assert_eq!(Block::decode(&high), Block::Header(Kind::Contents, 0), "a sum of signed bytes");
    }

    #[test]
    fn pax_records_give_the_size() {
        assert_eq!(pax_size(b"20 atime=1234567890\n20 size=12345678901\n9 path=a\n"), Some(12_345_678_901));
        assert_eq!(pax_size(b"20 atime=1234567890\n"), None);
        assert_eq!(pax_size(b"10 size=7\n10 size=8\n"), Some(8), "the last one counts");
        for malformed in
            [&b"99 size=7\n"[..], b"0 size=7\n", b"2 size=7\n", b" size=7\n", b"18446744073709551616 size=7\n"]
        {
            assert_eq!(pax_size(malformed), None, "{malformed:?}");
        }
        assert_eq!(pax_size(b"28 size=9223372036854775808\n"), None, "beyond 63 bits");
    }

    proptest! {
        #[test]
        fn any_records_end_the_search(records in prop::collection::vec(prop_oneof![Just(b' '), Just(b'='), b'0'..=b'9', any::<u8>()], 0..200)) {
            pax_size(&records);
        }
    }
}
