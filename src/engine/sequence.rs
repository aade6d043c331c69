//! One sequence as the scheduler sees it: its tokens, its blocks, and how much of it the cache holds.

use std::ops::Range;

use super::blocks::BlockKey;
use super::encoder_cache::PictureKey;
use crate::models::RowMap;
use crate::ops::KV_BLOCK;

/// A sequence's number. Later requests have larger ones.
pub type SequenceId = u64;

/// A picture in a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Position of its first token.
    pub start: usize,
    /// Which image row stands at each of its tokens.
    pub rows: RowMap,
    /// Tiles that are encoded for it.
    pub tiles: usize,
    /// What it is.
    pub key: PictureKey,
}

impl Place {
    /// The positions.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.rows.len()
    }

    /// Pages of `page_rows` rows that its encoded rows take.
    pub(super) fn pages(&self, page_rows: usize) -> usize {
        self.rows.encoded().div_ceil(page_rows.max(1))
    }
}

/// What a request is to the scheduler.
#[derive(Clone, Debug)]
pub struct Sequence {
    pub(super) id: SequenceId,
    /// Prompt and answer; at the places of pictures, -1.
    pub(super) ids: Vec<i32>,
    /// Tokens of the prompt.
    pub(super) prompt: usize,
    /// In the order of their positions.
    pub(super) places: Vec<Place>,
    /// Tokens that it may come to hold, prompt and answer together.
    pub(super) limit: usize,
    /// What comes before the first block.
    root: BlockKey,
    /// Of the full blocks.
    pub(super) keys: Vec<BlockKey>,
    pub(super) blocks: Vec<i32>,
    /// Tokens whose keys and values are in the blocks.
    pub(super) cached: usize,
    /// Tokens whose keys and values will be there when every step that was planned has run.
    pub(super) planned: usize,
    /// Tokens that such steps sample and nobody knows yet.
    pub(super) unknown: usize,
    /// Row of logits from which the last step that has a row of it samples its token.
    pub(super) sampled_at: usize,
    /// Its rows in steps that have not run.
    pub(super) in_flight: usize,
    /// Blocks that are registered, or were found.
    pub(super) registered: usize,
    /// `places[passed .. reading]` are the pictures that it reads now.
    pub(super) passed: usize,
    pub(super) reading: usize,
    /// Row of the sampler's counts.
    pub(super) state: usize,
    pub(super) preemptions: u32,
    /// Whether something is reported of every token of the prompt, which is computed for that wherever it may be cached.
    pub(super) reports: bool,
    /// Whether a token of it can only be sampled once the one before it is known.
    pub(super) looks_back: bool,
    /// Tokens up to which its positions have the short rotary angles.
    pub(super) switch: usize,
    /// Whether its positions have the long ones.
    pub(super) long: bool,
}

impl Sequence {
    /// A sequence that begins with the tokens of `prompt` and ends at `limit` tokens at the latest. `salt` keeps it apart
    /// from sequences with another one: they share no blocks.
    pub fn new(id: SequenceId, prompt: Vec<i32>, mut places: Vec<Place>, limit: usize, salt: &str) -> Sequence {
        places.sort_by_key(|p| p.start);
        let root = BlockKey(*blake3::hash(salt.as_bytes()).as_bytes());
        let mut sequence = Sequence {
            id,
            prompt: prompt.len(),
            ids: prompt,
            places,
            limit,
            root,
            keys: Vec::new(),
            blocks: Vec::new(),
            cached: 0,
            planned: 0,
            unknown: 0,
            sampled_at: 0,
            in_flight: 0,
            registered: 0,
            passed: 0,
            reading: 0,
            state: 0,
            preemptions: 0,
            reports: false,
            looks_back: false,
            switch: usize::MAX,
            long: false,
        };
        sequence.extend_keys();
        sequence
    }

    /// Its number.
    pub fn id(&self) -> SequenceId {
        self.id
    }

    /// Prompt and answer.
    pub fn ids(&self) -> &[i32] {
        &self.ids
    }

    /// Blocks that it refers to.
    pub fn blocks(&self) -> &[i32] {
        &self.blocks
    }

    /// Tokens whose keys and values are in the cache.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Pictures whose rows it is about to read.
    pub fn reading(&self) -> &[Place] {
        &self.places[self.passed..self.reading]
    }

    /// Let no step sample a token of it before the one before that is known.
    pub fn look_back(&mut self) {
        self.looks_back = true;
    }

    /// Tokens with those that nobody knows yet.
    pub(super) fn len(&self) -> usize {
        self.ids.len() + self.unknown
    }

    /// Tokens that the model has yet to see before there is a next one; none as long as the next step has nothing to do
    /// for it: the token that is not known yet is its last, or must be known first.
    pub(super) fn left(&self) -> usize {
        let waits = self.unknown > 0 && (self.looks_back || self.outgrows() || self.len() >= self.limit);
        if waits { 0 } else { self.len() - self.planned }
    }

    /// Whether its next rows report the prompt: as long as there is no answer.
    pub(super) fn reporting(&self) -> bool {
        self.reports && self.len() == self.prompt
    }

    /// Whether the next step needs other rotary angles at all its positions than those in the cache have.
    pub(super) fn outgrows(&self) -> bool {
        !self.long && self.len() > self.switch
    }

    /// Have the long rotary angles from now on. Keys and values depend on them, so no block is known by the same key.
    pub(super) fn lengthen(&mut self) {
        self.long = true;
        self.root = BlockKey(blake3::derive_key("ocelli: a sequence with long rotary angles", &self.root.0));
        self.keys.clear();
        self.extend_keys();
    }

    /// Blocks that its tokens take, as far as the model is to see them.
    pub(super) fn needed_blocks(&self) -> usize {
        (self.planned + self.left()).div_ceil(KV_BLOCK)
    }

    /// Keys of the blocks that have become full.
    pub(super) fn extend_keys(&mut self) {
        while (self.keys.len() + 1) * KV_BLOCK <= self.ids.len() {
            let parent = self.keys.last().unwrap_or(&self.root);
            let span = self.keys.len() * KV_BLOCK..(self.keys.len() + 1) * KV_BLOCK;
            let mut hash = blake3::Hasher::new();
            hash.update(&parent.0);
            hash.update(bytemuck::cast_slice(&self.ids[span.clone()]));
            let first = self.places.partition_point(|p| p.range().end <= span.start);
            for place in self.places[first..].iter().take_while(|p| p.start < span.end) {
                hash.update(&place.key.0);
                // How far into the block, or how long before it, the picture begins.
                hash.update(&(place.start as i64 - span.start as i64).to_le_bytes());
            }
            self.keys.push(BlockKey(*hash.finalize().as_bytes()));
        }
    }

    /// It begins with what `found` blocks hold, and with no others yet.
    pub(super) fn begin(&mut self, found: Vec<i32>) {
        self.cached = found.len() * KV_BLOCK;
        self.planned = self.cached;
        self.registered = found.len();
        self.passed = self.places.partition_point(|p| p.range().end <= self.cached);
        self.reading = self.passed;
        self.blocks = found;
    }

    /// It has no place in the cache any more; what it said so far becomes its prompt.
    pub(super) fn forget_cache(&mut self) -> Vec<i32> {
        (self.cached, self.planned, self.registered, self.passed, self.reading) = (0, 0, 0, 0, 0);
        std::mem::take(&mut self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(ids: &[i32], places: Vec<Place>, salt: &str) -> Vec<BlockKey> {
        Sequence::new(0, ids.to_vec(), places, 100, salt).keys
    }

    fn place(start: usize, len: usize, key: u8) -> Place {
        Place { start, rows: RowMap::straight(len), tiles: 1, key: PictureKey([key; 32]) }
    }

    #[test]
    fn only_full_blocks_have_keys_and_each_depends_on_all_before_it() {
        let ids: Vec<i32> = (0..40).collect();
        let plain = keys(&ids, vec![], "");
        assert_eq!(plain.len(), 2);
        assert_eq!(plain, keys(&ids[..33], vec![], ""));
        let mut other = ids.clone();
        other[3] = 99;
        let other = keys(&other, vec![], "");
        assert!(plain[0] != other[0] && plain[1] != other[1]);
        assert!(keys(&ids, vec![], "salt").iter().zip(&plain).all(|(a, b)| a != b));
    }

    #[test]
    fn blocks_that_hold_parts_of_pictures_depend_on_which_and_where() {
        let ids = vec![7; 64];
        let base = keys(&ids, vec![place(20, 20, 1)], "");
        let plain = keys(&ids, vec![], "");
        assert_eq!(base[0], plain[0], "before the picture");
        assert!(base[1..].iter().zip(&plain[1..]).all(|(a, b)| a != b));
        assert_ne!(base[1], keys(&ids, vec![place(20, 20, 2)], "")[1], "another picture");
        assert_ne!(base[1], keys(&ids, vec![place(21, 20, 1)], "")[1], "another part of it");
    }

    #[test]
    fn blocks_of_long_sequences_are_others_all_along() {
        let ids: Vec<i32> = (0..40).collect();
        let long = |salt| {
            let mut sequence = Sequence::new(0, ids.clone(), vec![], 100, salt);
            sequence.lengthen();
            sequence.keys
        };
        assert!(long("").iter().zip(keys(&ids, vec![], "")).all(|(a, b)| *a != b));
        assert!(long("").iter().zip(long("salt")).all(|(a, b)| *a != b));
        assert_eq!((long("").len(), long("")), (2, long("")));
    }

    #[test]
    fn keys_grow_with_the_answer() {
        let mut grown = Sequence::new(0, (0..15).collect(), vec![], 100, "");
        assert!(grown.keys.is_empty());
        grown.ids.extend(15..32);
        grown.extend_keys();
        assert_eq!(grown.keys, keys(&(0..32).collect::<Vec<_>>(), vec![], ""));
    }
}
