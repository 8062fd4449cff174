//! Writes tar archives, good and bad ones, without touching a disk.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part of this")]

/// An archive that grows.
#[derive(Clone, Default)]
pub struct Tar(pub Vec<u8>);

/// A header block. `size` is the field as it is to be.
pub fn header(name: &str, kind: u8, size: &[u8], mtime: u32) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len().min(100)].copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
    block[100..108].copy_from_slice(b"0000644\0");
    block[124..124 + size.len()].copy_from_slice(size);
    block[136..148].copy_from_slice(format!("{mtime:011o}\0").as_bytes());
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

/// Puts the checksum of a header that was changed.
pub fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

pub fn octal(size: usize) -> Vec<u8> {
    format!("{size:011o}\0").into_bytes()
}

impl Tar {
    pub fn block(&mut self, block: &[u8]) -> &mut Self {
        self.0.extend(block);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// A file; gives where its contents begin.
    pub fn file(&mut self, name: &str, mtime: u32, contents: &[u8]) -> usize {
        self.block(&header(name, b'0', &octal(contents.len()), mtime));
        let at = self.0.len();
        self.block(contents);
        at
    }

    pub fn dir(&mut self, name: &str, mtime: u32) -> &mut Self {
        self.block(&header(name, b'5', &octal(0), mtime))
    }

    /// pax records about the next entry.
    pub fn pax(&mut self, records: &[(&str, &str)]) -> &mut Self {
        let mut text = String::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            let mut len = rest.len();
            while format!("{len}{rest}").len() != len {
                len = format!("{len}{rest}").len();
            }
            text += &format!("{len}{rest}");
        }
        self.block(&header("pax", b'x', &octal(text.len()), 0)).block(text.as_bytes())
    }

    /// A name longer than a header holds, as GNU tar writes it.
    pub fn long_name(&mut self, name: &str) -> &mut Self {
        self.block(&header("././@LongLink", b'L', &octal(name.len() + 1), 0)).block(&[name.as_bytes(), &[0]].concat())
    }

    /// Two blocks of zeros, and more up to a record of 10 KiB.
    pub fn end(&mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0.resize(self.0.len().next_multiple_of(10240), 0);
        std::mem::take(&mut self.0)
    }
}
