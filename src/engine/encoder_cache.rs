//! Which pictures' rows lie where: the book-keeping of the encoder cache.
//!
//! The kept image rows are divided into pages of equal length, and a picture takes as many as its rows need, wherever
//! they are. A picture that a sequence is about to read is referred to and stays. The others stay as long as nobody
//! needs their pages, and go the longest unused first. Whoever asks for a picture that is there, or that another
//! sequence of the same step has asked for, causes no encoding.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Result, ensure};

use crate::image::Rgb;
use crate::mem::Source;
use crate::models::{Content, Processor};

/// Bytes from which several threads read a part side by side.
const SHARED: usize = 128 << 10;

/// What a picture is to the model: a hash of its pixels, their dimensions, and all that is done to them; or of the type,
/// the dimensions and the numbers of the rows in their place, and of what those are.
///
/// 256 bits, so that two pictures never meet in one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PictureKey(pub [u8; 32]);

impl PictureKey {
    /// What is done to pixels before the model sees them.
    pub(super) fn of_processing(how: &dyn Processor) -> PictureKey {
        PictureKey(*blake3::hash(how.describe().as_bytes()).as_bytes())
    }

    /// Pixels, and what is done to them.
    pub(super) fn of_pixels(rgb: &Rgb, processing: PictureKey) -> PictureKey {
        let size = [rgb.width(), rgb.height()].map(u32::to_le_bytes);
        PictureKey::of(b"pixels", &[&processing.0, size.as_flattened(), rgb.data()])
    }

    /// Rows that a caller brings as `content`, of `shape`, with the numbers as they came.
    pub(super) fn of_rows(content: &Content, shape: [usize; 2], rows: &Source) -> PictureKey {
        let kind: &[u8] = match content {
            Content::Pixels(_) | Content::Views { .. } | Content::Picture(_) => b"pixels",
            Content::Features(_) => b"features",
            Content::Embeddings(_) => b"embeddings",
        };
        let shape = shape.map(|dim| (dim as u64).to_le_bytes());
        PictureKey::of(kind, &[rows.dtype().name().as_bytes(), shape.as_flattened(), rows.bytes()])
    }

    /// The same for requests of a salt alone.
    pub(super) fn salted(self, salt: &str) -> PictureKey {
        PictureKey::of(b"salted", &[&self.0, salt.as_bytes()])
    }

    /// The length of every part stands before it, so that no two lists of parts look alike.
    fn of(kind: &[u8], parts: &[&[u8]]) -> PictureKey {
        let mut hash = blake3::Hasher::new();
        for part in [&[kind], parts].concat() {
            hash.update(&(part.len() as u64).to_le_bytes());
            if part.len() < SHARED {
                hash.update(part);
            } else {
                hash.update_rayon(part);
            }
        }
        PictureKey(*hash.finalize().as_bytes())
    }
}

#[derive(Debug)]
struct Entry {
    pages: Vec<usize>,
    /// Sequences that are about to read its rows.
    readers: usize,
    /// Whether its rows were never computed. It goes with its last reader, who reads nothing any more.
    void: bool,
    /// Its place in [`EncoderCache::idle`], while it is there.
    age: u64,
}

/// Whether rows have to be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// They are there, or are being computed for somebody else.
    Hit,
    /// They are not, and there is room for them now.
    Miss,
}

/// What happened to requests for pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Were there.
    pub hits: u64,
    /// Had to be computed.
    pub misses: u64,
}

/// The pages of the kept image rows.
#[derive(Debug)]
pub struct EncoderCache {
    total: usize,
    free: Vec<usize>,
    entries: HashMap<PictureKey, Entry>,
    /// Pictures without a reader, the longest unused first.
    idle: BTreeMap<u64, PictureKey>,
    clock: u64,
    /// Whether pictures stay when their last reader has gone.
    keep: bool,
    counts: CacheCounts,
}

impl EncoderCache {
    /// `total` free pages; with `keep`, pictures stay when nobody reads them, as long as there is room.
    pub fn new(total: usize, keep: bool) -> EncoderCache {
        EncoderCache {
            total,
            free: (0..total).rev().collect(),
            entries: HashMap::new(),
            idle: BTreeMap::new(),
            clock: 0,
            keep,
            counts: CacheCounts::default(),
        }
    }

    /// Become a reader of a picture whose rows take `pages` pages. `None`, and nothing changes, if other readers leave no
    /// room for it, or its own have to go first.
    pub fn acquire(&mut self, key: PictureKey, pages: usize) -> Option<Acquired> {
        if let Some(entry) = self.entries.get_mut(&key) {
            if entry.void {
                return None;
            }
            if entry.readers == 0 {
                self.idle.remove(&entry.age);
            }
            entry.readers += 1;
            self.counts.hits += 1;
            return Some(Acquired::Hit);
        }
        let idle: usize = self.idle.values().map(|key| self.entries[key].pages.len()).sum();
        if pages > self.free.len() + idle {
            return None;
        }
        while self.free.len() < pages {
            let (_, oldest) = self.idle.pop_first()?;
            self.free.extend(self.entries.remove(&oldest)?.pages);
        }
        let pages = self.free.split_off(self.free.len() - pages);
        self.entries.insert(key, Entry { pages, readers: 1, void: false, age: 0 });
        self.counts.misses += 1;
        Some(Acquired::Miss)
    }

    /// Be a reader no more.
    pub fn release(&mut self, key: PictureKey) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.readers -= 1;
        if entry.readers > 0 {
            return;
        }
        if self.keep && !entry.void {
            self.clock += 1;
            entry.age = self.clock;
            self.idle.insert(self.clock, key);
        } else if let Some(entry) = self.entries.remove(&key) {
            self.free.extend(entry.pages);
        }
    }

    /// Forget a picture: its rows were never computed. If it has readers, they have ended, and it goes with the last.
    pub fn forget(&mut self, key: PictureKey) {
        match self.entries.get_mut(&key) {
            Some(entry) if entry.readers > 0 => entry.void = true,
            Some(entry) => {
                self.idle.remove(&entry.age);
                self.free.append(&mut entry.pages);
                self.entries.remove(&key);
            }
            None => {}
        }
    }

    /// Pages of a picture that has a reader, in the order of its rows.
    pub fn pages(&self, key: PictureKey) -> &[usize] {
        self.entries.get(&key).map_or(&[], |e| &e.pages)
    }

    /// Pages that hold nothing.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// All pages.
    pub fn total(&self) -> usize {
        self.total
    }

    /// What happened so far.
    pub fn counts(&self) -> CacheCounts {
        self.counts
    }

    /// Hold the cache against what its readers say: no page twice, and every picture read by so many.
    ///
    /// # Errors
    /// Names what is wrong.
    pub fn check(&self, readers: &HashMap<PictureKey, usize>) -> Result<()> {
        let mut seen = vec![false; self.total];
        for &page in self.free.iter().chain(self.entries.values().flat_map(|e| &e.pages)) {
            ensure!(!std::mem::replace(&mut seen[page], true), "page {page} stands twice");
        }
        ensure!(seen.iter().all(|s| *s), "a page is lost");
        for (key, entry) in &self.entries {
            let known = readers.get(key).copied().unwrap_or(0);
            ensure!(entry.readers == known, "a picture counts {} readers and has {known}", entry.readers);
            ensure!(entry.readers > 0 || self.idle.get(&entry.age) == Some(key), "a picture without readers is lost");
        }
        ensure!(readers.keys().all(|key| self.entries.contains_key(key)), "a picture is read and not there");
        let idle = self.entries.values().filter(|e| e.readers == 0).count();
        ensure!(idle == self.idle.len(), "{} pictures are listed as idle and {idle} are", self.idle.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use super::*;
    use crate::mem::DType;

    fn key(n: u8) -> PictureKey {
        PictureKey([n; 32])
    }

    #[test]
    fn the_same_bytes_as_something_else_are_another_picture() {
        let bytes = vec![0u8; 24];
        let rgb = |w, h| PictureKey::of_pixels(&Rgb::new(w, h, bytes.clone()).unwrap(), key(1));
        let rows = |content: fn(Source) -> Content, shape, dtype| {
            let rows = Source::new(Arc::new(bytes.clone()), 0..24, dtype).unwrap();
            PictureKey::of_rows(&content(rows.clone()), shape, &rows)
        };
        let keys = [
            rgb(4, 2),
            rgb(2, 4),
            PictureKey::of_pixels(&Rgb::new(4, 2, bytes.clone()).unwrap(), key(2)),
            rows(Content::Features, [3, 2], DType::F32),
            rows(Content::Features, [2, 3], DType::F32),
            rows(Content::Embeddings, [3, 2], DType::F32),
            rows(Content::Features, [3, 2], DType::F16),
            rows(Content::Features, [3, 2], DType::Bf16),
        ];
        let salted = ["", "a", "b"].map(|salt| keys[0].salted(salt));
        assert_eq!(HashSet::from(salted).len(), 3);
        assert!(salted.iter().all(|key| !keys.contains(key)));
        let different: HashSet<_> = keys.into_iter().collect();
        assert_eq!(different.len(), keys.len());
        assert_eq!(rgb(4, 2), keys[0]);
    }

    #[test]
    fn a_picture_is_encoded_once_and_stays_while_it_is_read() {
        let mut cache = EncoderCache::new(3, true);
        assert_eq!(cache.acquire(key(1), 2), Some(Acquired::Miss));
        assert_eq!(cache.acquire(key(1), 2), Some(Acquired::Hit));
        assert_eq!(cache.acquire(key(2), 2), None, "its readers need it");
        cache.release(key(1));
        assert_eq!(cache.acquire(key(2), 2), None, "one reader is left");
        cache.release(key(1));
        assert_eq!(cache.acquire(key(1), 2), Some(Acquired::Hit), "nobody needed its pages");
        cache.release(key(1));
        assert_eq!(cache.acquire(key(2), 2), Some(Acquired::Miss));
        assert_eq!(cache.acquire(key(1), 2), None);
        assert_eq!(cache.counts(), CacheCounts { hits: 2, misses: 2 });
        cache.check(&HashMap::from([(key(2), 1)])).unwrap();
    }

    #[test]
    fn the_longest_unused_goes_first_and_without_keeping_all_go() {
        let mut cache = EncoderCache::new(2, true);
        for n in [1, 2] {
            cache.acquire(key(n), 1);
            cache.release(key(n));
        }
        cache.acquire(key(1), 1);
        cache.release(key(1));
        cache.acquire(key(3), 1);
        assert_eq!(cache.acquire(key(1), 1), Some(Acquired::Hit));
        let mut cache = EncoderCache::new(2, false);
        cache.acquire(key(1), 1);
        cache.release(key(1));
        assert_eq!(cache.free(), 2);
    }

    #[test]
    fn rows_that_were_never_computed_are_not_found() {
        let mut cache = EncoderCache::new(2, true);
        cache.acquire(key(1), 1);
        cache.release(key(1));
        cache.forget(key(1));
        assert_eq!(cache.acquire(key(1), 1), Some(Acquired::Miss));
        cache.forget(key(1));
        assert_eq!(cache.pages(key(1)).len(), 1, "it has a reader");
        assert_eq!(cache.acquire(key(1), 1), None, "nobody else becomes one");
        cache.release(key(1));
        assert_eq!((cache.free(), cache.acquire(key(1), 1)), (2, Some(Acquired::Miss)));
        cache.check(&HashMap::from([(key(1), 1)])).unwrap();
    }
}
