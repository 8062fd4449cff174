//! Reading many blocks: those that lie one behind the other in one file come with one read. Each is hashed like any other.

use bytes::Bytes;
use shoal_content::Leaf;

use crate::{ReadError, inner::Inner, value::Loc};

/// Longest run, in bytes: beyond it a read costs nothing against what it brings.
const MAX_RUN_BYTES: u64 = 1 << 20;

/// Blocks that were asked for one after another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// How many.
    pub blocks: usize,
    /// Their bytes, one behind the other; `None` for one block that is missing or damaged, or cannot be read now.
    pub bytes: Option<Bytes>,
    /// There are no bytes since the disk or the index refused to be read: another time they may be there.
    pub refused: bool,
}

impl Inner {
    /// See [`crate::Store::read_runs`].
    pub(crate) fn read_runs(&self, leaves: &[Leaf]) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut rest = leaves;
        // Where the first of the rest is, if that was looked up already.
        let mut known = None;
        while let Some(first) = rest.first() {
            let head = match known.take() {
                Some(loc) => Some(loc),
                None => self.first_place(first),
            };
            let head = head.filter(|head| head.len == first.len);
            let mut blocks = 1;
            if let Some(head) = &head {
                // Where the index cannot be read, the blocks are looked up one by one.
                (blocks, known) = self.side_by_side(rest, head).unwrap_or((1, None));
            }
            let (run, later) = rest.split_at(blocks);
            match head.and_then(|head| self.read_run(run, &head)) {
                Some(bytes) => runs.push(Run { blocks, bytes: Some(bytes), refused: false }),
                // One of them is not what it was, or not there: one by one, so that it is found out which.
                None => {
                    for leaf in run {
                        let (bytes, refused) = match self.read(&leaf.cid) {
                            Ok(bytes) => (Some(bytes).filter(|bytes| bytes.len() == leaf.len as usize), false),
                            Err(ReadError::Missing(_) | ReadError::Damaged { .. }) => (None, false),
                            Err(error) => {
                                tracing::debug!(%error, "cannot read a block");
                                (None, true)
                            }
                        };
                        runs.push(Run { blocks: 1, bytes, refused });
                    }
                }
            }
            rest = later;
        }
        runs
    }

    fn first_place(&self, leaf: &Leaf) -> Option<Loc> {
        self.locate(&leaf.cid).ok()?.first().copied()
    }

    /// How many of the leaves lie one behind the other, the first of them at `head`; and where the second one is, if that is
    /// elsewhere. Few are looked up: where the last of many is in its place, those between are taken to be in theirs.
    fn side_by_side(&self, leaves: &[Leaf], head: &Loc) -> Result<(usize, Option<Loc>), ReadError> {
        let mut end = head.offset;
        let mut starts = Vec::new();
        for leaf in leaves {
            if end - head.offset + u64::from(leaf.len) > MAX_RUN_BYTES {
                break;
            }
            starts.push(end);
            end += u64::from(leaf.len);
        }
        let lies = |at: usize, locs: &[Loc]| {
            locs.contains(&Loc { place: head.place, offset: starts[at], len: leaves[at].len })
        };
        if starts.len() < 2 {
            return Ok((1, None));
        }
        let second = self.locate(&leaves[1].cid)?;
        if !lies(1, &second) {
            return Ok((1, second.first().copied()));
        }
        // The last one that is in its place is between these two.
        let (mut sure, mut most) = (1, starts.len() - 1);
        let mut at = most;
        while sure < most {
            if lies(at, &self.locate(&leaves[at].cid)?) {
                sure = at
            } else {
                most = at - 1
            }
            at = sure + (most - sure).div_ceil(2);
        }
        Ok((sure + 1, None))
    }

    fn read_run(&self, leaves: &[Leaf], head: &Loc) -> Option<Bytes> {
        let len = leaves.iter().map(|leaf| leaf.len).sum();
        let run = Loc { len, ..*head };
        let mut buffer = self.pool.take(len as usize);
        let good = |mut bytes: &[u8]| {
            leaves.iter().all(|leaf| {
                let (block, rest) = bytes.split_at(leaf.len as usize);
                bytes = rest;
                leaf.cid.verify(block)
            })
        };
        self.fill(&leaves.first()?.cid, &run, buffer.as_mut(), good).ok()?;
        Some(Bytes::from_owner(buffer))
    }
}
