//! What reads found bad, kept until someone asks: for people, one entry per file, of which the oldest is forgotten first;
//! and for those who serve, the blocks that lost a place. Both are bounded.

use std::collections::VecDeque;

use shoal_content::Cid;

use crate::Damage;

/// Most files remembered. More than a person reads; a fetch of the same blocks tells the rest again.
pub(crate) const MAX_DAMAGED_FILES: usize = 1024;

/// Most blocks remembered one by one; 40 bytes each. Beyond, whoever asks has to look at all that it cares for.
pub(crate) const MAX_LOST_BLOCKS: usize = 16_384;

/// Blocks that lost a place since the last [`take_lost`](crate::Store::take_lost). They may have another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Which; and whether the whole file that held the block is gone or cut, so that others in it may be gone as well.
    pub blocks: Vec<(Cid, bool)>,
    /// There were more than are told: any block may be gone.
    pub more: bool,
}

impl Lost {
    pub(crate) fn note(&mut self, cid: Cid, whole_file: bool) {
        if self.blocks.len() < MAX_LOST_BLOCKS {
            self.blocks.push((cid, whole_file));
        } else {
            self.more = true;
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }
}

#[derive(Debug, Default)]
pub(crate) struct DamageLog {
    files: VecDeque<Damage>,
    pub(crate) lost: Lost,
}

impl DamageLog {
    /// Notes one bad block; true if it is the first in its file.
    pub(crate) fn note(&mut self, damage: &Damage) -> bool {
        // From the back: bad blocks come in runs.
        if let Some(seen) = self.files.iter_mut().rev().find(|d| d.path == damage.path) {
            seen.blocks += 1;
            return false;
        }
        if self.files.len() == MAX_DAMAGED_FILES {
            self.files.pop_front();
        }
        self.files.push_back(damage.clone());
        true
    }

    pub(crate) fn take(&mut self) -> Vec<Damage> {
        std::mem::take(&mut self.files).into()
    }
}

#[cfg(test)]
mod tests {
    use shoal_content::{Cid, Codec, HashKind};

    use super::*;
    use crate::DamageKind;

    #[test]
    fn one_entry_per_file_and_no_more_than_the_limit() {
        let mut log = DamageLog::default();
        let damage = |i: usize| Damage {
            path: format!("/{i}").into(),
            in_pack: false,
            kind: DamageKind::Short,
            cid: Cid::of(Codec::Raw, HashKind::Blake3, b""),
            offset: 0,
            blocks: 1,
        };
        assert!(log.note(&damage(0)));
        assert!(!log.note(&damage(0)));
        (1..=MAX_DAMAGED_FILES).for_each(|i| assert!(log.note(&damage(i))));
        let taken = log.take();
        assert_eq!(taken.len(), MAX_DAMAGED_FILES);
        assert_eq!(taken[0].path, std::path::Path::new("/1"));
        assert!(log.take().is_empty());
    }
}
