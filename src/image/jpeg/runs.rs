//! The codes of a scan by several threads, which codes are not made for: where one ends is known when it has been read.
//!
//! But a thread that begins in the middle, and takes what is there for the beginning of an MCU, soon reads what was meant:
//! prefix codes fall into step by themselves (Klein and Wiseman, "Parallel Huffman decoding with applications to JPEG
//! files", 2003), in photographs after 1 to 12 MCUs. From where its MCUs begin at the same bit as those of the thread
//! before, both read the same; what it has read until then is dropped, and the thread before has read on until then. DC
//! coefficients are differences, so that they lack only what came before.

use std::ops::Range;

use super::huffman::{Block, Stop};
use super::scan::Scan;

/// MCUs that follow one another, from a place that was given or guessed.
pub(super) struct Run<'a> {
    /// Behind the last of them.
    scan: Scan<'a>,
    /// Of each component, the DC coefficient before the first: none, where the place was guessed.
    before: [i32; 4],
    /// Where each begins.
    places: Vec<u64>,
    /// Those of an MCU side by side.
    blocks: Vec<Block>,
    /// MCUs at its start that are not what was meant.
    skipped: usize,
    /// Why the next cannot be read.
    stop: Option<Stop>,
}

/// What one thread is to read: from a byte to the first MCU that begins behind another, but not more than `most` MCUs.
#[derive(Clone)]
pub(super) struct Share {
    pub(super) bytes: Range<usize>,
    pub(super) most: usize,
}

/// Reads on from where `scan` stands, with a thread for each share; they follow one another, the first begins there. The
/// runs that come of it do so, too, and the first begins there: they are one MCU at least, unless that one is damaged.
pub(super) fn read<'a>(scan: &Scan<'a>, shares: &[Share]) -> Vec<Run<'a>> {
    chain(scan, shares, true)
}

fn chain<'a>(scan: &Scan<'a>, shares: &[Share], given: bool) -> Vec<Run<'a>> {
    match shares {
        [] => Vec::new(),
        [share] if given => vec![Run::given(scan, share)],
        [share] => Run::guessed(scan, share).into_iter().collect(),
        _ => {
            let (left, right) = shares.split_at(shares.len() / 2);
            let (left, right) = rayon::join(|| chain(scan, left, given), || chain(scan, right, false));
            joined(left, right, shares[0].most, given)
        }
    }
}

/// Reads on from `left` until `right` has the same. What was guessed may turn out wrong instead, and `right` remain.
fn joined<'a>(mut left: Vec<Run<'a>>, mut right: Vec<Run<'a>>, most: usize, given: bool) -> Vec<Run<'a>> {
    let (Some(last), Some(end)) = (left.last_mut(), right.last_mut().map(|run| run.scan.place())) else {
        return if left.is_empty() { right } else { left };
    };
    while last.stop.is_none() && last.places.len() < most {
        let place = last.scan.place();
        if place >= end {
            break;
        }
        if let Some((run, mcu)) = find(&right, place) {
            right.drain(..run);
            right[0].skipped = mcu;
            left.extend(right);
            return left;
        }
        last.read();
    }
    // At the end of the data there is nothing else to be right.
    let wrong = !given && last.stop.is_some_and(|stop| stop != Stop::Ended);
    if wrong { right } else { left }
}

/// The run, and of its MCUs the one, that begins at a place.
fn find(chain: &[Run], place: u64) -> Option<(usize, usize)> {
    let mcu = |(i, run): (usize, &Run)| {
        let found = run.places[run.skipped..].binary_search(&place).ok()?;
        Some((i, run.skipped + found))
    };
    chain.iter().enumerate().find_map(mcu)
}

impl<'a> Run<'a> {
    fn given(scan: &Scan<'a>, share: &Share) -> Run<'a> {
        let mut run = Run::at(scan.clone(), share);
        // Reading may be ahead of the share.
        run.read();
        run.fill(share);
        run
    }

    /// Wherever reading stops, it begins anew behind that place, unless the data ends there.
    fn guessed(scan: &Scan<'a>, share: &Share) -> Option<Run<'a>> {
        let mut run = Run::at(scan.at(share.bytes.start), share);
        loop {
            let begun = run.scan.position();
            run.fill(share);
            if run.stop.is_none_or(|stop| stop == Stop::Ended) || run.scan.position() == begun {
                return (!run.places.is_empty()).then_some(run);
            }
            (run.scan, run.stop) = (scan.at(run.scan.position()), None);
            run.places.clear();
            run.blocks.clear();
        }
    }

    fn at(scan: Scan<'a>, share: &Share) -> Run<'a> {
        let (places, blocks) = (Vec::with_capacity(share.most), Vec::with_capacity(share.most * scan.blocks()));
        Run { before: scan.predictions(), scan, places, blocks, skipped: 0, stop: None }
    }

    fn fill(&mut self, share: &Share) {
        while self.stop.is_none() && self.places.len() < share.most && self.scan.position() < share.bytes.end {
            self.read();
        }
    }

    /// One MCU, or why not.
    fn read(&mut self) {
        let (place, blocks) = (self.scan.place(), self.blocks.len());
        match self.scan.next(&mut self.blocks) {
            Ok(()) => self.places.push(place),
            Err(stop) => {
                self.blocks.truncate(blocks);
                self.stop = Some(stop);
            }
        }
    }

    /// How many MCUs of it are meant.
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.skipped
    }

    /// Some of those, each as its blocks; their DC coefficients are sums from [`Run::before`] on.
    pub(super) fn mcus(&self, mcus: Range<usize>) -> std::slice::ChunksExact<'_, Block> {
        let each = self.scan.blocks();
        self.blocks[(self.skipped + mcus.start) * each..(self.skipped + mcus.end) * each].chunks_exact(each)
    }

    /// Of each component, the DC coefficient before the first MCU that is meant, as this run counts.
    pub(super) fn before(&self) -> [i32; 4] {
        match self.skipped.checked_sub(1) {
            Some(last) => self.scan.last(&self.blocks[last * self.scan.blocks()..]),
            None => self.before,
        }
    }

    /// Why there is no MCU behind it, if that is known, and reading that stands there.
    pub(super) fn end(&self) -> (Option<Stop>, &Scan<'a>) {
        (self.stop, &self.scan)
    }
}
