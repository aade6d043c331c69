//! Blocks of the paged cache, and what is found in them again: the prefix cache.
//!
//! A block is in one of three states. *Used*: sequences refer to it, several where they begin alike. *Cached*: nobody
//! does, and a sequence that begins with the same tokens may take it as it is. *Free*: it holds nothing. A new block
//! comes from the free ones and then from the cached ones, the longest unused first.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Result, ensure};

use crate::ops::KV_BLOCK;

/// What a full block holds: a hash of the key of the block before it, its tokens, and the parts of pictures in it.
///
/// 256 bits, so that two contents never meet in one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockKey(pub [u8; 32]);

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    /// Sequences that refer to it.
    owners: u32,
    key: Option<BlockKey>,
    /// Its place in [`BlockPool::cached`], while it is there.
    age: u64,
}

/// How many blocks are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Hold nothing.
    pub free: usize,
    /// Sequences refer to them.
    pub used: usize,
    /// Hold what a sequence left behind.
    pub cached: usize,
    /// All of them.
    pub total: usize,
}

/// The blocks of the paged cache.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    free: Vec<i32>,
    /// By the time at which the last sequence let go, the oldest first.
    cached: BTreeMap<u64, i32>,
    index: HashMap<BlockKey, i32>,
    clock: u64,
}

impl BlockPool {
    /// A pool of `total` free blocks.
    pub fn new(total: usize) -> BlockPool {
        BlockPool {
            blocks: vec![Block::default(); total],
            free: (0..total as i32).rev().collect(),
            cached: BTreeMap::new(),
            index: HashMap::new(),
            clock: 0,
        }
    }

    /// Blocks for the first `keys.len()` blocks of a sequence, as far as they are there in one piece from the start. They
    /// are not taken: see [`BlockPool::share`].
    pub fn find(&self, keys: &[BlockKey]) -> Vec<i32> {
        keys.iter().map_while(|key| self.index.get(key).copied()).collect()
    }

    /// Of `found`, those that nobody refers to. Taking them leaves so many fewer to be had.
    pub fn cached_among(&self, found: &[i32]) -> usize {
        found.iter().filter(|&&b| self.blocks[b as usize].owners == 0).count()
    }

    /// Refer to `found` blocks.
    pub fn share(&mut self, found: &[i32]) {
        for &b in found {
            let block = &mut self.blocks[b as usize];
            if block.owners == 0 {
                self.cached.remove(&block.age);
            }
            block.owners += 1;
        }
    }

    /// `n` blocks of one's own; `None`, and nothing is taken, if fewer are to be had.
    pub fn take(&mut self, n: usize) -> Option<Vec<i32>> {
        if n > self.available() {
            return None;
        }
        Some((0..n).map_while(|_| self.take_one()).collect())
    }

    fn take_one(&mut self) -> Option<i32> {
        let b = self.free.pop().or_else(|| {
            let (_, b) = self.cached.pop_first()?;
            self.forget(b);
            Some(b)
        })?;
        self.blocks[b as usize].owners = 1;
        Some(b)
    }

    /// A used block is full and may be found by `key` from now on. Where another block has that key already, it stays the
    /// one that is found.
    pub fn register(&mut self, b: i32, key: BlockKey) {
        let block = &mut self.blocks[b as usize];
        if block.key.is_none() && !self.index.contains_key(&key) {
            block.key = Some(key);
            self.index.insert(key, b);
        }
    }

    /// A block is not to be found any more; whoever refers to it keeps it.
    pub fn forget(&mut self, b: i32) {
        if let Some(key) = self.blocks[b as usize].key.take() {
            self.index.remove(&key);
        }
    }

    /// Refer to the blocks of a sequence no more. The later ones grow old first: without what comes before it, a block is
    /// of no use.
    pub fn give(&mut self, blocks: &[i32]) {
        for &b in blocks.iter().rev() {
            self.clock += 1;
            let block = &mut self.blocks[b as usize];
            block.owners -= 1;
            if block.owners > 0 {
                continue;
            }
            if block.key.is_some() {
                block.age = self.clock;
                self.cached.insert(self.clock, b);
            } else {
                self.free.push(b);
            }
        }
    }

    /// Blocks that can be taken.
    pub fn available(&self) -> usize {
        self.free.len() + self.cached.len()
    }

    /// How many are in which state.
    pub fn counts(&self) -> BlockCounts {
        let (free, cached, total) = (self.free.len(), self.cached.len(), self.blocks.len());
        BlockCounts { free, used: total - free - cached, cached, total }
    }

    /// Tokens that all blocks hold together.
    pub fn tokens(&self) -> usize {
        self.blocks.len() * KV_BLOCK
    }

    /// Hold the pool against what its sequences say they refer to: every block is free, cached or used, and used by
    /// exactly the sequences that list it.
    ///
    /// # Errors
    /// Names the first block that is not.
    pub fn check<'a>(&self, sequences: impl Iterator<Item = &'a [i32]>) -> Result<()> {
        let mut owners = vec![0; self.blocks.len()];
        sequences.flatten().for_each(|&b| owners[b as usize] += 1);
        let mut idle = vec![0; self.blocks.len()];
        self.free.iter().chain(self.cached.values()).for_each(|&b| idle[b as usize] += 1);
        for (i, block) in self.blocks.iter().enumerate() {
            let (listed, times) = (owners[i], idle[i]);
            ensure!(block.owners == listed, "block {i} counts {} owners; {listed} list it", block.owners);
            ensure!(times == usize::from(listed == 0), "block {i} has {listed} owners and stands {times} times idle");
            let found = block.key.and_then(|key| self.index.get(&key));
            ensure!(block.key.is_none() || found == Some(&(i as i32)), "block {i} is not found by its key");
        }
        let keyed = self.blocks.iter().filter(|b| b.key.is_some()).count();
        ensure!(keyed == self.index.len(), "{} keys lead to {keyed} blocks", self.index.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_owned_once_and_comes_back() {
        let mut pool = BlockPool::new(4);
        let (a, b) = (pool.take(2).unwrap(), pool.take(2).unwrap());
        let mut all = [a.clone(), b.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3]);
        assert_eq!(pool.take(1), None);
        pool.give(&a);
        pool.give(&b);
        assert_eq!(pool.counts(), BlockCounts { free: 4, used: 0, cached: 0, total: 4 });
    }

    #[test]
    fn what_was_left_behind_is_found_until_its_block_is_needed() {
        let mut pool = BlockPool::new(3);
        let keys = [BlockKey([1; 32]), BlockKey([2; 32])];
        let first = pool.take(2).unwrap();
        first.iter().zip(keys).for_each(|(&b, key)| pool.register(b, key));
        pool.give(&first);
        assert_eq!(pool.counts(), BlockCounts { free: 1, used: 0, cached: 2, total: 3 });

        // Two sequences share what they find.
        let found = pool.find(&keys);
        assert_eq!((&found, pool.cached_among(&found)), (&first, 2));
        pool.share(&found);
        pool.share(&found);
        pool.check([&found[..], &found[..]].into_iter()).unwrap();
        pool.give(&found);
        assert_eq!(pool.counts().used, 2);
        pool.give(&found);

        // The free one goes first, then the end of the chain, which is no loss to its beginning.
        let two = pool.take(2).unwrap();
        assert_eq!(pool.find(&keys), first[..1]);
        pool.check([&two[..]].into_iter()).unwrap();
    }
}
