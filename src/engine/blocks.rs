//! The pool of cache blocks.

use anyhow::{Result, bail};

use crate::ops::KV_BLOCK;

/// Blocks of the paged cache that no sequence owns.
#[derive(Debug)]
pub struct BlockPool {
    free: Vec<i32>,
    total: usize,
}

impl BlockPool {
    /// A pool of `total` free blocks.
    pub fn new(total: usize) -> BlockPool {
        BlockPool { free: (0..total as i32).rev().collect(), total }
    }

    /// Blocks for a sequence of `tokens` tokens.
    ///
    /// # Errors
    /// If fewer are free.
    pub fn take(&mut self, tokens: usize) -> Result<Vec<i32>> {
        let needed = tokens.div_ceil(KV_BLOCK);
        if needed > self.free.len() {
            bail!(
                "{tokens} tokens need {needed} cache blocks of {KV_BLOCK} tokens; {} of {} are free",
                self.free.len(),
                self.total
            );
        }
        Ok(self.free.split_off(self.free.len() - needed))
    }

    /// Give blocks back.
    pub fn give(&mut self, blocks: Vec<i32>) {
        self.free.extend(blocks);
        debug_assert!(self.free.len() <= self.total, "more blocks were given back than taken");
    }

    /// Blocks that no sequence owns.
    pub fn free(&self) -> usize {
        self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_owned_once_and_comes_back() {
        let mut pool = BlockPool::new(4);
        let a = pool.take(17).unwrap();
        let b = pool.take(32).unwrap();
        let mut all = [a.clone(), b.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3]);
        let error = pool.take(1).unwrap_err().to_string();
        assert_eq!(error, "1 tokens need 1 cache blocks of 16 tokens; 0 of 4 are free");
        pool.give(a);
        pool.give(b);
        assert_eq!(pool.free(), 4);
    }
}
