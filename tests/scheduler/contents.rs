//! What a device would find in the caches: every slot and every page is known by what was computed for it, and a row may
//! read nothing else.

use std::collections::HashMap;

use ocelli::engine::{PictureKey, Place, Row, Scheduler, SchedulerLimits, Sequence, SequenceId, Step};
use ocelli::models::ImageRow;

/// Image rows of a page.
pub(super) const PAGE_ROWS: usize = 16;
/// Image row of the first page.
pub(super) const FIRST_ROW: usize = 64;

/// Every token of a sequence's answer.
pub(super) fn token(id: SequenceId) -> i32 {
    (id % 7) as i32
}

/// The paged cache and the kept image rows.
pub(super) struct Contents {
    /// A key and value depend on the token, on all tokens before it, and on the rotary angles: a hash of those. 0 is
    /// nothing.
    slots: Vec<u64>,
    /// The picture, and which of its pages.
    pages: Vec<Option<(PictureKey, usize)>>,
    constant_row: usize,
    /// The pictures of all that ever arrived.
    places: HashMap<SequenceId, Place>,
}

impl Contents {
    pub fn new(limits: &SchedulerLimits) -> Contents {
        Contents {
            slots: vec![0; limits.kv_blocks * 16],
            pages: vec![None; limits.pages],
            constant_row: limits.constant_row,
            places: HashMap::new(),
        }
    }

    pub fn arrive(&mut self, id: SequenceId, place: Option<Place>) {
        self.places.extend(place.map(|place| (id, place)));
    }

    /// The pictures of a step come to their pages. Returns how many tiles they have.
    pub fn encode(&mut self, step: &Step) -> usize {
        for encode in &step.encode {
            let place = &self.places[&encode.id];
            assert_eq!((encode.place, encode.key), (0, place.key));
            assert_eq!(encode.pages.len(), place.rows.encoded().div_ceil(PAGE_ROWS));
            for (i, &page) in encode.pages.iter().enumerate() {
                self.pages[page] = Some((encode.key, i));
            }
        }
        step.encode.iter().map(|encode| self.places[&encode.id].tiles).sum()
    }

    /// The rows of a step read what was computed for them, and write theirs.
    pub fn compute(&mut self, scheduler: &Scheduler, step: &Step) {
        let mut written = Vec::new();
        for row in &step.rows {
            let sequence = scheduler.sequence(row.id).unwrap();
            self.hold_pictures(row);
            let hashes = self.hashes(sequence, row);
            for (position, &hash) in hashes.iter().enumerate() {
                let slot = slot(sequence, position);
                if position < row.start {
                    assert_eq!(self.slots[slot], hash, "{} reads what is not its own at {position}", row.id);
                } else {
                    written.push((slot, hash));
                }
            }
        }
        written.into_iter().for_each(|(slot, hash)| self.slots[slot] = hash);
    }

    /// Nobody knows what the rows and the pictures of a step have left.
    pub fn lose(&mut self, scheduler: &Scheduler, step: &Step) {
        for row in &step.rows {
            let Some(sequence) = scheduler.sequence(row.id) else { continue };
            (row.start..row.start + row.ids.len()).for_each(|position| self.slots[slot(sequence, position)] = 0);
        }
        step.encode.iter().flat_map(|encode| &encode.pages).for_each(|&page| self.pages[page] = None);
    }

    /// Where its picture is, a row has what the picture shows there.
    fn hold_pictures(&self, row: &Row) {
        let Some(place) = self.places.get(&row.id) else { return };
        for position in place.range().filter(|p| (row.start..row.start + row.ids.len()).contains(p)) {
            let shown = usize::try_from(-1 - row.ids[position - row.start]).expect("a place of a picture");
            match place.rows.at(position - place.start) {
                ImageRow::Constant(n) => assert_eq!(shown, self.constant_row + n),
                ImageRow::Encoded(n) => {
                    let (page, at) = ((shown - FIRST_ROW) / PAGE_ROWS, (shown - FIRST_ROW) % PAGE_ROWS);
                    assert_eq!((self.pages[page], at), (Some((place.key, n / PAGE_ROWS)), n % PAGE_ROWS));
                }
            }
        }
    }

    /// What belongs into the slots of a sequence up to the end of a row of it.
    fn hashes(&self, sequence: &Sequence, row: &Row) -> Vec<u64> {
        let place = self.places.get(&row.id);
        let mut hash = 1 + u64::from(row.long);
        let hashes = (0..row.start + row.ids.len()).map(|position| {
            let word = match place.filter(|place| place.range().contains(&position)) {
                Some(place) => 1 << 40 | (u64::from(place.key.0[0]) << 20) | (position - place.start) as u64,
                None => sequence.ids().get(position).copied().unwrap_or(token(row.id)) as u64,
            };
            hash = (hash ^ word).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
            hash
        });
        hashes.collect()
    }
}

fn slot(sequence: &Sequence, position: usize) -> usize {
    sequence.blocks()[position / 16] as usize * 16 + position % 16
}
