//! What reads found bad, kept until someone asks, one entry per file. Bounded: the oldest file is forgotten first.

use std::collections::VecDeque;

use crate::Damage;

/// Most files remembered. More than a person reads; a fetch of the same blocks tells the rest again.
pub(crate) const MAX_DAMAGED_FILES: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct DamageLog {
    files: VecDeque<Damage>,
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
