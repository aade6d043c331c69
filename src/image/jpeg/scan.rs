//! The codes of a scan, turned into coefficients (ITU-T T.81, F.2 and G.1.2).
//!
//! A code that is missing or wrong is an error, never a block of grey: a size patched into the header, a file cut in the
//! middle (end marker appended or not) and lost bytes all leave blocks without codes.

use super::huffman::{Bits, Block, Huffman, Stop};

/// A component in a scan, with its tables. Blocks of one MCU across and down; blocks from one row to the next.
#[derive(Clone)]
pub(super) struct Part<'t> {
    /// Index into the frame's components.
    pub(super) component: usize,
    pub(super) dc: Option<&'t Huffman>,
    pub(super) ac: Option<&'t Huffman>,
    pub(super) h: usize,
    pub(super) v: usize,
    pub(super) stride: usize,
}

/// What a scan codes; progressively, all bits but the last `low`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// Whole blocks.
    Baseline,
    /// The first bits of the DC coefficients.
    DcFirst { low: u32 },
    /// One more bit of each.
    DcRefine { low: u32 },
    /// The first bits of the AC coefficients from `start` to `end`.
    AcFirst { start: usize, end: usize, low: u32 },
    /// One more bit of each.
    AcRefine { start: usize, end: usize, low: u32 },
}

impl Coding {
    /// Whether DC and AC tables are used.
    pub(super) fn needs(self) -> (bool, bool) {
        match self {
            Coding::Baseline => (true, true),
            Coding::DcFirst { .. } => (true, false),
            Coding::DcRefine { .. } => (false, false),
            Coding::AcFirst { .. } | Coding::AcRefine { .. } => (false, true),
        }
    }

    /// Bits of a block at least. A code has one, and where there are runs of blocks, a block may have none.
    fn least_bits(self) -> usize {
        match self {
            Coding::Baseline => 2,
            Coding::DcFirst { .. } | Coding::DcRefine { .. } => 1,
            Coding::AcFirst { .. } | Coding::AcRefine { .. } => 0,
        }
    }
}

/// Where a scan is broken: at which of how many MCUs.
pub(super) struct Break {
    pub(super) stop: Stop,
    pub(super) mcu: usize,
    pub(super) mcus: usize,
}

/// Where the k-th coefficient in the order of codes stands in a block.
#[rustfmt::skip]
const NATURAL: [u8; 64] = [
     0,  1,  8, 16,  9,  2,  3, 10, 17, 24, 32, 25, 18, 11,  4,  5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,  6,  7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// The same for tables, which are written in that order.
pub(super) fn natural(k: usize) -> usize {
    usize::from(NATURAL[k])
}

/// A scan that is being read.
#[derive(Clone)]
pub(super) struct Scan<'a> {
    bits: Bits<'a>,
    coding: Coding,
    parts: Vec<Part<'a>>,
    /// MCUs across and down.
    mcus: (u32, u32),
    /// MCUs between restarts, or 0; how many are left before the next, and its number.
    restart: u32,
    until_restart: u32,
    next_restart: u8,
    /// Of each part, the DC coefficient before.
    predictions: [i32; 4],
    /// Blocks still covered by an end-of-band run.
    end_of_band: u32,
}

impl<'a> Scan<'a> {
    /// The scan whose data begins at `at`. In a scan of one component an MCU is a block.
    pub(super) fn new(
        bytes: &'a [u8],
        at: usize,
        coding: Coding,
        parts: Vec<Part<'a>>,
        mcus: (u32, u32),
        restart: u32,
    ) -> Scan<'a> {
        let bits = Bits::new(bytes, at);
        Scan {
            bits,
            coding,
            parts,
            mcus,
            restart,
            until_restart: restart,
            next_restart: 0,
            predictions: [0; 4],
            end_of_band: 0,
        }
    }

    /// MCUs across and down.
    pub(super) fn mcus(&self) -> (u32, u32) {
        self.mcus
    }

    /// Blocks of an MCU.
    pub(super) fn blocks(&self) -> usize {
        self.parts.iter().map(|part| part.h * part.v).sum()
    }

    /// Whether there are restart markers: numbered, so that only who has counted them reads on.
    pub(super) fn restarts(&self) -> bool {
        self.restart > 0
    }

    /// The components, each with its tables.
    pub(super) fn parts(&self) -> &[Part<'a>] {
        &self.parts
    }

    /// Where reading stands: at or before the marker that ends the scan.
    pub(super) fn position(&self) -> usize {
        self.bits.position()
    }

    /// How many MCUs there should be, if the rest of the file cannot hold as many.
    pub(super) fn claims(&self) -> Option<usize> {
        let mcus = self.mcus.0 as usize * self.mcus.1 as usize;
        (mcus * self.blocks() * self.coding.least_bits() > 8 * self.rest()).then_some(mcus)
    }

    /// Bytes from there to the end of the file.
    pub(super) fn rest(&self) -> usize {
        self.bits.rest()
    }

    /// Where reading stands to the bit: a number that grows from one to the next, and is the same whoever reads.
    pub(super) fn place(&mut self) -> u64 {
        self.bits.place()
    }

    /// As if an MCU began at a byte, or behind it, where it belongs to the one before.
    pub(super) fn at(&self, byte: usize) -> Scan<'a> {
        Scan { bits: self.bits.at(byte), predictions: [0; 4], ..self.clone() }
    }

    /// Of each part, the DC coefficient before.
    pub(super) fn predictions(&self) -> [i32; 4] {
        self.predictions
    }

    /// Where this one stands, once it is known what its DC coefficients lack.
    pub(super) fn lacking(&self, lacking: [i32; 4]) -> Scan<'a> {
        let predictions = std::array::from_fn(|i| self.predictions[i].wrapping_add(lacking[i]));
        Scan { predictions, ..self.clone() }
    }

    /// Those, from the blocks of the MCU before.
    pub(super) fn last(&self, mcu: &[Block]) -> [i32; 4] {
        let mut last = [0; 4];
        let mut blocks = 0;
        for (last, Part { h, v, .. }) in last.iter_mut().zip(&self.parts) {
            blocks += h * v;
            *last = i32::from(mcu[blocks - 1][0]);
        }
        last
    }

    /// Read the next MCU: its blocks are added to `blocks`.
    pub(super) fn next(&mut self, blocks: &mut Vec<Block>) -> Result<(), Stop> {
        self.begin_mcu()?;
        for i in 0..self.parts.len() {
            let Part { h, v, .. } = self.parts[i];
            for _ in 0..h * v {
                let mut block = [0; 64];
                self.block(i, &mut block)?;
                blocks.push(block);
            }
        }
        Ok(())
    }

    /// Read all MCUs; `blocks` are those of each part.
    pub(super) fn read(&mut self, blocks: &mut [&mut [Block]]) -> Result<(), Break> {
        let (across, down) = (self.mcus.0 as usize, self.mcus.1 as usize);
        for y in 0..down {
            for x in 0..across {
                let broken = |stop| Break { stop, mcu: y * across + x, mcus: across * down };
                self.mcu(y, x, blocks).map_err(broken)?;
            }
        }
        Ok(())
    }

    fn mcu(&mut self, row: usize, x: usize, blocks: &mut [&mut [Block]]) -> Result<(), Stop> {
        self.begin_mcu()?;
        for (i, blocks) in blocks.iter_mut().enumerate() {
            let Part { h, v, stride, .. } = self.parts[i];
            for y in row * v..(row + 1) * v {
                for block in &mut blocks[y * stride + x * h..][..h] {
                    self.block(i, block)?;
                }
            }
        }
        Ok(())
    }

    fn begin_mcu(&mut self) -> Result<(), Stop> {
        if self.restart == 0 {
            return Ok(());
        }
        if self.until_restart == 0 {
            self.bits.restart(self.next_restart)?;
            self.end_of_band = 0;
            self.predictions = [0; 4];
            self.next_restart = (self.next_restart + 1) % 8;
            self.until_restart = self.restart;
        }
        self.until_restart -= 1;
        Ok(())
    }

    fn block(&mut self, part: usize, block: &mut Block) -> Result<(), Stop> {
        match self.coding {
            Coding::Baseline => {
                block[0] = self.dc(part)? as i16;
                self.ac(part, block)
            }
            Coding::DcFirst { low } => {
                block[0] = (self.dc(part)? << low) as i16;
                Ok(())
            }
            Coding::DcRefine { low } => {
                block[0] |= (self.bits.read(1)? << low) as i16;
                Ok(())
            }
            Coding::AcFirst { start, end, low } => self.ac_first(part, block, start, end, low),
            Coding::AcRefine { start, end, low } => self.ac_refine(part, block, start, end, low),
        }
    }

    /// F.2.2.1: the size of the difference, then as many bits.
    #[inline]
    fn dc(&mut self, part: usize) -> Result<i32, Stop> {
        let size = u32::from(self.bits.symbol(self.parts[part].dc.ok_or(Stop::BadCode)?)?);
        if size > 16 {
            return Err(Stop::BadCode);
        }
        let difference = if size > 0 { self.bits.number(size)? } else { 0 };
        self.predictions[part] = self.predictions[part].wrapping_add(difference);
        Ok(self.predictions[part])
    }

    /// F.2.2.2: run of zeros and size of the value, until the end of the block.
    fn ac(&mut self, part: usize, block: &mut Block) -> Result<(), Stop> {
        let table = self.parts[part].ac.ok_or(Stop::BadCode)?;
        // A copy that is nobody else's stays in registers.
        let mut bits = self.bits;
        let mut k = 1;
        while k < 64 {
            let (zeros, value) = match bits.short(table)? {
                Some(short) => short,
                None => {
                    let symbol = bits.symbol(table)?;
                    match (usize::from(symbol >> 4), u32::from(symbol & 15)) {
                        (15, 0) => {
                            k += 16;
                            continue;
                        }
                        (_, 0) => break,
                        (zeros, size) => (zeros, bits.number(size)? as i16),
                    }
                }
            };
            k += zeros;
            if k > 63 {
                return Err(Stop::Overrun);
            }
            block[natural(k)] = value;
            k += 1;
        }
        self.bits = bits;
        Ok(())
    }

    /// G.1.2.2: as a baseline block, but a run of ends of band may cover many blocks.
    fn ac_first(&mut self, part: usize, block: &mut Block, start: usize, end: usize, low: u32) -> Result<(), Stop> {
        if self.end_of_band > 0 {
            self.end_of_band -= 1;
            return Ok(());
        }
        let table = self.parts[part].ac.ok_or(Stop::BadCode)?;
        let mut k = start;
        while k <= end {
            let symbol = self.bits.symbol(table)?;
            let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
            if size == 0 && run < 15 {
                self.end_of_band = (1 << run) - 1 + self.bits.read(run)?;
                return Ok(());
            }
            k += run as usize;
            if size > 0 {
                if k > end {
                    return Err(Stop::Overrun);
                }
                block[natural(k)] = (self.bits.number(size)? << low) as i16;
            }
            k += 1;
        }
        Ok(())
    }

    /// G.1.2.3: one correction bit for each coefficient that is already non-zero, interleaved with new ones.
    fn ac_refine(&mut self, part: usize, block: &mut Block, start: usize, end: usize, low: u32) -> Result<(), Stop> {
        let table = self.parts[part].ac.ok_or(Stop::BadCode)?;
        let mut k = start;
        while self.end_of_band == 0 && k <= end {
            let symbol = self.bits.symbol(table)?;
            let (mut zeros, size) = (u32::from(symbol >> 4), symbol & 15);
            if size == 0 && zeros < 15 {
                self.end_of_band = (1 << zeros) + self.bits.read(zeros)?;
                break;
            }
            if size > 1 {
                return Err(Stop::BadCode);
            }
            let new = if size == 1 { self.bits.number(1)? << low } else { 0 };
            // Step over `zeros` coefficients that are still zero to the one that the symbol is about.
            while k <= end && (block[natural(k)] != 0 || zeros > 0) {
                if block[natural(k)] == 0 {
                    zeros -= 1;
                } else {
                    self.correct(&mut block[natural(k)], low)?;
                }
                k += 1;
            }
            if size == 1 {
                if k > end {
                    return Err(Stop::Overrun);
                }
                block[natural(k)] = new as i16;
            }
            k += 1;
        }
        if self.end_of_band > 0 {
            self.end_of_band -= 1;
            for k in k..=end {
                if block[natural(k)] != 0 {
                    self.correct(&mut block[natural(k)], low)?;
                }
            }
        }
        Ok(())
    }

    /// One more bit of a coefficient, away from zero.
    fn correct(&mut self, value: &mut i16, low: u32) -> Result<(), Stop> {
        let bit = 1i16.wrapping_shl(low);
        if self.bits.read(1)? == 1 && *value & bit == 0 {
            *value = value.wrapping_add(if *value < 0 { -bit } else { bit });
        }
        Ok(())
    }
}
