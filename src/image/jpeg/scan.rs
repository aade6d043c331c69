//! Whether a scan holds all that its frame promises: every code of every block is read, no coefficient is computed.
//!
//! A decoder that meets the end of the data too early fills the rest with grey and reports success. Counting is the only
//! sound test: a size patched into the header, a file cut in the middle (end marker appended or not) and lost bytes all
//! leave blocks without codes.

use super::huffman::{Bits, Huffman, Stop};

/// One component of the frame.
#[derive(Clone, Debug)]
pub(super) struct Component {
    pub(super) id: u8,
    /// Blocks of one MCU across and down.
    pub(super) h: u32,
    pub(super) v: u32,
    /// Blocks of the whole component, as scans of it alone hold them.
    pub(super) across: u32,
    pub(super) down: u32,
    /// Progressive only: which coefficients of each block are non-zero so far, as refinements must know.
    pub(super) history: Vec<u64>,
}

/// A component in a scan, with its tables.
pub(super) struct Part<'t> {
    /// Index into the frame's components.
    pub(super) component: usize,
    pub(super) dc: Option<&'t Huffman>,
    pub(super) ac: Option<&'t Huffman>,
}

/// What a scan codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// Whole blocks.
    Baseline,
    /// The first bits of the DC coefficients.
    DcFirst,
    /// One more bit of each.
    DcRefine,
    /// The first bits of the AC coefficients from `start` to `end`.
    AcFirst { start: u32, end: u32 },
    /// One more bit of each.
    AcRefine { start: u32, end: u32 },
}

impl Coding {
    /// Whether DC and AC tables are used.
    pub(super) fn needs(self) -> (bool, bool) {
        match self {
            Coding::Baseline => (true, true),
            Coding::DcFirst => (true, false),
            Coding::DcRefine => (false, false),
            Coding::AcFirst { .. } | Coding::AcRefine { .. } => (false, true),
        }
    }
}

/// Where a scan is broken: at which of how many MCUs.
pub(super) struct Break {
    pub(super) stop: Stop,
    pub(super) mcu: u64,
    pub(super) mcus: u64,
}

/// Reads the scan whose entropy-coded data begins at `at`, and returns where it ends.
///
/// `mcus` are those of an interleaved scan; a scan of one component has one block an MCU.
pub(super) fn read(
    bytes: &[u8],
    at: usize,
    coding: Coding,
    parts: &[Part],
    components: &mut [Component],
    mcus: u64,
    restart_interval: u64,
) -> Result<usize, Break> {
    let alone = parts.len() == 1;
    let blocks_each: Vec<u32> =
        parts.iter().map(|p| if alone { 1 } else { components[p.component].h * components[p.component].v }).collect();
    let mcus = match parts {
        [only] => u64::from(components[only.component].across) * u64::from(components[only.component].down),
        _ => mcus,
    };
    // Only scans of one component code AC bits progressively, so one history is all that is needed.
    let history = match parts {
        [only] => std::mem::take(&mut components[only.component].history),
        _ => Vec::new(),
    };
    let mut scan = Scan { bits: Bits::new(bytes, at), history, block: 0, end_of_band: 0 };
    let done = scan.run(coding, parts, &blocks_each, mcus, restart_interval);
    if let [only] = parts {
        components[only.component].history = scan.history;
    }
    done.map(|()| scan.bits.position())
}

struct Scan<'a> {
    bits: Bits<'a>,
    history: Vec<u64>,
    /// The block that comes next, in scans of one component.
    block: usize,
    /// Blocks still covered by an end-of-band run.
    end_of_band: u32,
}

impl Scan<'_> {
    fn run(&mut self, coding: Coding, parts: &[Part], blocks: &[u32], mcus: u64, restart: u64) -> Result<(), Break> {
        let mut until_restart = restart;
        let mut next = 0u8;
        for mcu in 0..mcus {
            let broken = |stop| Break { stop, mcu, mcus };
            if restart > 0 {
                if until_restart == 0 {
                    self.bits.restart(next).map_err(broken)?;
                    self.end_of_band = 0;
                    next = (next + 1) % 8;
                    until_restart = restart;
                }
                until_restart -= 1;
            }
            for (part, blocks) in parts.iter().zip(blocks) {
                for _ in 0..*blocks {
                    self.block(coding, part).map_err(broken)?;
                }
            }
        }
        Ok(())
    }

    fn block(&mut self, coding: Coding, part: &Part) -> Result<(), Stop> {
        match coding {
            Coding::Baseline => {
                self.dc(part)?;
                self.ac(part)
            }
            Coding::DcFirst => self.dc(part),
            Coding::DcRefine => self.bits.skip(1),
            Coding::AcFirst { start, end } => self.ac_first(part, start, end),
            Coding::AcRefine { start, end } => self.ac_refine(part, start, end),
        }
    }

    /// F.2.2.1: the size of the difference, then as many bits.
    fn dc(&mut self, part: &Part) -> Result<(), Stop> {
        let size = self.bits.symbol(part.dc.ok_or(Stop::BadCode)?)?;
        if size > 16 {
            return Err(Stop::BadCode);
        }
        self.bits.skip(u32::from(size))
    }

    /// F.2.2.2: run of zeros and size of the value, until the end of the block.
    fn ac(&mut self, part: &Part) -> Result<(), Stop> {
        let table = part.ac.ok_or(Stop::BadCode)?;
        let mut k = 1;
        while k < 64 {
            let symbol = u32::from(self.bits.symbol(table)?);
            let (run, size) = (symbol >> 4, symbol & 15);
            if size == 0 && run < 15 {
                return Ok(());
            }
            k += run;
            if size > 0 && k > 63 {
                return Err(Stop::Overrun);
            }
            self.bits.skip(size)?;
            k += 1;
        }
        Ok(())
    }

    /// The history of the block at hand, and a step to the next.
    fn next_block(&mut self) -> Result<usize, Stop> {
        let block = self.block;
        self.block += 1;
        if block < self.history.len() { Ok(block) } else { Err(Stop::Overrun) }
    }

    /// G.1.2.2: as a baseline block, but a run of ends of band may cover many blocks.
    fn ac_first(&mut self, part: &Part, start: u32, end: u32) -> Result<(), Stop> {
        let block = self.next_block()?;
        if self.end_of_band > 0 {
            self.end_of_band -= 1;
            return Ok(());
        }
        let table = part.ac.ok_or(Stop::BadCode)?;
        let mut k = start;
        while k <= end {
            let symbol = u32::from(self.bits.symbol(table)?);
            let (run, size) = (symbol >> 4, symbol & 15);
            if size == 0 && run < 15 {
                self.end_of_band = (1 << run) - 1 + self.bits.read(run)?;
                return Ok(());
            }
            k += run;
            if size > 0 {
                if k > end {
                    return Err(Stop::Overrun);
                }
                self.history[block] |= 1 << k;
                self.bits.skip(size)?;
            }
            k += 1;
        }
        Ok(())
    }

    /// G.1.2.3: one correction bit for each coefficient that is already non-zero, interleaved with new ones.
    fn ac_refine(&mut self, part: &Part, start: u32, end: u32) -> Result<(), Stop> {
        let block = self.next_block()?;
        let table = part.ac.ok_or(Stop::BadCode)?;
        let known = self.history[block];
        let mut k = start;
        while self.end_of_band == 0 && k <= end {
            let symbol = u32::from(self.bits.symbol(table)?);
            let (mut zeros, size) = (symbol >> 4, symbol & 15);
            if size == 0 && zeros < 15 {
                self.end_of_band = (1 << zeros) + self.bits.read(zeros)?;
                break;
            }
            if size > 1 {
                return Err(Stop::BadCode);
            }
            self.bits.skip(size)?;
            // Step over `zeros` coefficients that are still zero to the one that the symbol is about.
            while k <= end && (known >> k & 1 == 1 || zeros > 0) {
                if known >> k & 1 == 1 {
                    self.bits.skip(1)?;
                } else {
                    zeros -= 1;
                }
                k += 1;
            }
            if size == 1 {
                if k > end {
                    return Err(Stop::Overrun);
                }
                self.history[block] |= 1 << k;
            }
            k += 1;
        }
        if self.end_of_band > 0 {
            self.end_of_band -= 1;
            if k <= end {
                let rest = known & (u64::MAX << k) & (u64::MAX >> (63 - end));
                let corrections = rest.count_ones();
                self.bits.skip(corrections / 2)?;
                self.bits.skip(corrections - corrections / 2)?;
            }
        }
        Ok(())
    }
}
