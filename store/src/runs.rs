//! Reading many blocks: those that lie one behind the other in one file come with one read. Each is hashed like any other.

use bytes::Bytes;
use shoal_content::Cid;

use crate::{ReadError, inner::Inner, value::Loc};

/// Longest run, in bytes: beyond it a read costs nothing against what it brings.
const MAX_RUN_BYTES: u32 = 1 << 20;

/// Blocks that were asked for one after another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// How many.
    pub blocks: usize,
    /// Their bytes, one behind the other; `None` for one block that is missing or damaged.
    pub bytes: Option<Bytes>,
}

impl Inner {
    /// See [`crate::Store::read_runs`].
    pub(crate) fn read_runs(&self, cids: &[Cid]) -> Result<Vec<Run>, ReadError> {
        let mut runs = Vec::new();
        let mut rest = cids;
        // Where the first of the rest is, if that was looked up already.
        let mut known = None;
        while let Some(first) = rest.first() {
            let head = match known.take() {
                Some(loc) => Some(loc),
                None => self.locate(first)?.first().copied(),
            };
            let mut run = head;
            let mut lens: Vec<u32> = head.iter().map(|loc| loc.len).collect();
            while let (Some(loc), Some(cid)) = (&mut run, rest.get(lens.len())) {
                let locs = self.locate(cid)?;
                let Some(next) = locs.iter().find(|next| follows(loc, next)) else {
                    known = locs.first().copied();
                    break;
                };
                loc.len += next.len;
                lens.push(next.len);
            }
            let blocks = lens.len().max(1);
            match run.and_then(|run| self.read_run(&rest[..blocks], &lens, &run)) {
                Some(bytes) => runs.push(Run { blocks, bytes: Some(bytes) }),
                // One of them is not what it was, or not there: one by one, so that it is found out which.
                None => {
                    for cid in &rest[..blocks] {
                        let bytes = match self.read(cid) {
                            Ok(bytes) => Some(bytes),
                            Err(ReadError::Missing(_) | ReadError::Damaged { .. }) => None,
                            Err(error) => return Err(error),
                        };
                        runs.push(Run { blocks: 1, bytes });
                    }
                }
            }
            rest = &rest[blocks..];
        }
        Ok(runs)
    }

    fn read_run(&self, cids: &[Cid], lens: &[u32], run: &Loc) -> Option<Bytes> {
        let mut buffer = self.pool.take(run.len as usize);
        let good = |mut bytes: &[u8]| {
            cids.iter().zip(lens).all(|(cid, len)| {
                let (block, rest) = bytes.split_at(*len as usize);
                bytes = rest;
                cid.verify(block)
            })
        };
        self.fill(cids.first()?, run, buffer.as_mut(), good).ok()?;
        Some(Bytes::from_owner(buffer))
    }
}

fn follows(run: &Loc, next: &Loc) -> bool {
    next.place == run.place && next.offset == run.offset + u64::from(run.len) && run.len + next.len <= MAX_RUN_BYTES
}
