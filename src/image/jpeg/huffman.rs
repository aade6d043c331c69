//! Entropy-coded bits and Huffman codes (ITU-T T.81, annexes C and F).

/// Coefficients of a block, in natural order: row after row, the lowest frequency first.
pub(super) type Block = [i16; 64];

/// Why a scan cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The data ends here.
    Ended,
    /// No code of the table begins with these bits.
    BadCode,
    /// More than 64 coefficients in a block.
    Overrun,
    /// A restart marker is missing or out of turn.
    Restart,
}

/// The bits of one restart interval, most significant first, without byte stuffing. Stops at any marker.
#[derive(Clone, Copy)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next bits, from bit 63 downwards; below `left` of them all zero.
    buffer: u64,
    left: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Bits { bytes, at, buffer: 0, left: 0 }
    }

    /// Of the same data, from a byte on; from the one behind it, where it belongs to an 0xFF before it.
    pub(super) fn at(&self, byte: usize) -> Self {
        let within = byte > 0 && self.bytes.get(byte - 1) == Some(&0xff);
        Bits::new(self.bytes, byte + usize::from(within))
    }

    /// Where reading stands, to the bit: who has come there by any way has the same number, who is further on a larger one.
    pub(super) fn place(&mut self) -> u64 {
        // As many bytes as the buffer takes, so that the same ones are in it.
        self.refill();
        (self.at as u64) << 7 | u64::from(64 - self.left)
    }

    /// Tops the buffer up to at least 57 bits, unless the data ends.
    fn refill(&mut self) {
        if let Some(chunk) = self.bytes.get(self.at..).and_then(|b| b.first_chunk::<8>()) {
            let word = u64::from_be_bytes(*chunk);
            if !has_ff(word) {
                let take = (64 - self.left) / 8;
                self.buffer |= word.checked_shr(self.left).unwrap_or(0);
                self.at += take as usize;
                self.left += take * 8;
                // Bits of the first byte that no longer fits.
                self.buffer &= !u64::MAX.checked_shr(self.left).unwrap_or(0);
                return;
            }
        }
        while self.left <= 56 {
            let Some(byte) = self.bytes.get(self.at) else { return };
            if *byte == 0xff {
                if self.bytes.get(self.at + 1) != Some(&0) {
                    return;
                }
                self.at += 1;
            }
            self.at += 1;
            self.buffer |= u64::from(*byte) << (56 - self.left);
            self.left += 8;
        }
    }

    /// Passes over `n` bits of those that a refill has promised or found missing.
    fn consume(&mut self, n: u32) -> Result<(), Stop> {
        self.left = self.left.checked_sub(n).ok_or(Stop::Ended)?;
        self.buffer <<= n;
        Ok(())
    }

    /// Reads `n` bits, at most 16.
    pub(super) fn read(&mut self, n: u32) -> Result<u32, Stop> {
        if self.left < n {
            self.refill();
        }
        let value = (self.buffer >> 48) as u32 >> (16 - n);
        self.consume(n)?;
        Ok(value)
    }

    /// If the next symbol and the number after it are short: how many zeros the symbol says stand before the number, and the
    /// number. Most are.
    pub(super) fn short(&mut self, table: &Huffman) -> Result<Option<(usize, i16)>, Stop> {
        if self.left < 32 {
            self.refill();
        }
        let Short { len, zeros, number } = table.short[(self.buffer >> (64 - FAST)) as usize];
        if len == 0 {
            return Ok(None);
        }
        self.consume(u32::from(len))?;
        Ok(Some((usize::from(zeros), number)))
    }

    /// Decodes one symbol. The 16 bits that may belong to it are there then, too, unless the data ends.
    pub(super) fn symbol(&mut self, table: &Huffman) -> Result<u8, Stop> {
        if self.left < 32 {
            self.refill();
        }
        let entry = table.fast[(self.buffer >> (64 - FAST)) as usize];
        let (len, symbol) = if entry != 0 { (u32::from(entry >> 8), entry as u8) } else { table.slow(self.buffer)? };
        self.consume(len)?;
        Ok(symbol)
    }

    /// Right after its symbol, a number of `size` bits, 1 to 16: half of them are below zero (F.2.2.1, EXTEND).
    pub(super) fn number(&mut self, size: u32) -> Result<i32, Stop> {
        let bits = (self.buffer >> 48) as u32 >> (16 - size);
        self.consume(size)?;
        Ok(extended(bits, size))
    }

    /// Drops what is left of this interval and steps over the restart marker `RSTn`.
    pub(super) fn restart(&mut self, n: u8) -> Result<(), Stop> {
        let marker = next_marker(self.bytes, self.at).ok_or(Stop::Ended)?;
        if self.bytes.get(marker) != Some(&(0xd0 + n)) {
            return Err(Stop::Restart);
        }
        *self = Bits::new(self.bytes, marker + 1);
        Ok(())
    }

    /// Where reading stands: at or before the marker that ends the scan.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Bytes from there to the end of the file.
    pub(super) fn rest(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }
}

/// Whether any byte of `word` is 0xFF: the classic test for a zero byte, on the complement.
fn has_ff(word: u64) -> bool {
    const LOW: u64 = 0x0101_0101_0101_0101;
    (!word).wrapping_sub(LOW) & word & (LOW << 7) != 0
}

/// Where the code of the next marker stands (one past its last 0xFF), from `at` on. Stuffed zeros are no markers.
pub(super) fn next_marker(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += bytes.get(at..)?.iter().position(|b| *b == 0xff)? + 1;
        while bytes.get(at) == Some(&0xff) {
            at += 1;
        }
        if *bytes.get(at)? != 0 {
            return Some(at);
        }
    }
}

/// The number that `size` bits stand for.
fn extended(bits: u32, size: u32) -> i32 {
    let is_below = bits >> (size - 1) == 0;
    bits.cast_signed() + if is_below { 1 - (1 << size) } else { 0 }
}

/// Bits that the first look-up resolves.
const FAST: u32 = 9;

/// A symbol of AC coefficients and the number after it, `len` bits together.
#[derive(Clone, Copy, Default)]
struct Short {
    len: u8,
    zeros: u8,
    number: i16,
}

/// A canonical Huffman table.
pub(super) struct Huffman {
    /// By the next 9 bits: `length << 8 | symbol`, or 0 for longer codes.
    fast: Box<[u16; 1 << FAST]>,
    /// By the next 9 bits, a symbol with all of its number; `len` 0 where they are longer or there is no number.
    short: Box<[Short; 1 << FAST]>,
    /// By code length: one past the largest code, left-aligned to 16 bits; 0 if there is none.
    limit: [u32; 17],
    /// By code length: what to add to a code for the index of its symbol.
    offset: [i32; 17],
    symbols: Vec<u8>,
}

impl Huffman {
    /// From the body of a DHT segment: 16 counts by length, then the symbols. `None` if the counts are no prefix code
    /// or ask for more symbols than there are.
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8]) -> Option<Huffman> {
        let mut table = Huffman {
            fast: Box::new([0; 1 << FAST]),
            short: Box::new([Short::default(); 1 << FAST]),
            limit: [0; 17],
            offset: [0; 17],
            symbols: symbols.to_vec(),
        };
        let (mut code, mut index) = (0u32, 0usize);
        for (len, count) in (1u32..).zip(counts) {
            let count = usize::from(*count);
            table.offset[len as usize] = index as i32 - code.cast_signed();
            for symbol in symbols.get(index..index + count)? {
                if code >= 1 << len {
                    return None;
                }
                if len <= FAST {
                    let first = (code << (FAST - len)) as usize;
                    table.fast[first..first + (1 << (FAST - len))].fill((len << 8) as u16 | u16::from(*symbol));
                }
                code += 1;
            }
            index += count;
            table.limit[len as usize] = if count == 0 { 0 } else { code << (16 - len) };
            code <<= 1;
        }
        for (bits, (short, &entry)) in (0u32..).zip(table.short.iter_mut().zip(table.fast.iter())) {
            let (len, size) = (u32::from(entry >> 8), u32::from(entry & 15));
            if size > 0 && len + size <= FAST {
                let number = (bits >> (FAST - len - size)) & ((1 << size) - 1);
                let zeros = (entry >> 4 & 15) as u8;
                *short = Short { len: (len + size) as u8, zeros, number: extended(number, size) as i16 };
            }
        }
        (index == symbols.len()).then_some(table)
    }

    /// Codes longer than 9 bits: the first length at which the bits lie below the limit.
    #[cold]
    fn slow(&self, buffer: u64) -> Result<(u32, u8), Stop> {
        let bits = (buffer >> 48) as u32;
        for len in FAST + 1..=16 {
            if bits < self.limit[len as usize] {
                let index = (bits >> (16 - len)).cast_signed() + self.offset[len as usize];
                let symbol = usize::try_from(index).ok().and_then(|i| self.symbols.get(i)).ok_or(Stop::BadCode)?;
                return Ok((len, *symbol));
            }
        }
        Err(Stop::BadCode)
    }
}
