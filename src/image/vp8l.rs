//! How much memory the prefix codes of a lossless WebP will take.
//!
//! A VP8L stream may define 65536 groups of five codes, whatever its size in pixels, and `image-webp` builds a table of up
//! to 4 KiB for each at once: a 1x1 picture of 3.8 MB costs 1.3 GiB. No field of the header says how many there are, so
//! the stream is read up to its last code (WebP Lossless Bitstream Specification, sections 4 and 6); pixels are only
//! passed over.

/// Bytes that a group takes beside its tables.
const GROUP: u64 = 512;
/// Bits that a decoding table resolves at once; longer codes go on in a tree.
const TABLE_BITS: u32 = 10;
/// Bytes of an entry of the table, and of the two tree nodes that a longer code needs.
const ENTRY: u64 = 4;
const NODES: u64 = 32;

/// Symbols of the five codes of a group: green (or length, or cache index), red, blue, alpha, distance.
const ALPHABETS: [usize; 5] = [256 + 24, 256, 256, 256, 40];
/// The order in which the lengths of the code length code stand.
const CODE_LENGTH_ORDER: [usize; 19] = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Bytes of all tables of a picture of `width` x `height`; at the latest when they exceed `budget`, what they are so far.
/// `None` if the stream is damaged. `data` begins behind the header, with the transforms.
pub(super) fn table_bytes(data: &[u8], width: u32, height: u32, budget: u64) -> Option<u64> {
    let mut bits = Bits { data, at: 0 };
    let mut width = width;
    while bits.read(1)? == 1 {
        match bits.read(2)? {
            // Predictor and colour transform: a picture of one pixel a block.
            0 | 1 => {
                let size = bits.read(3)? + 2;
                sub_picture(&mut bits, width.div_ceil(1 << size), height.div_ceil(1 << size))?;
            }
            // Subtract green has no data.
            2 => {}
            // Colour indexing: a palette, and several pixels in one if it is small.
            _ => {
                let colours = bits.read(8)? + 1;
                sub_picture(&mut bits, colours, 1)?;
                let packed = match colours {
                    ..=2 => 8,
                    3..=4 => 4,
                    5..=16 => 2,
                    _ => 1,
                };
                width = width.div_ceil(packed);
            }
        }
    }
    let cache = colour_cache(&mut bits)?;
    let mut groups = 1;
    if bits.read(1)? == 1 {
        let size = bits.read(3)? + 2;
        groups = sub_picture(&mut bits, width.div_ceil(1 << size), height.div_ceil(1 << size))? + 1;
    }
    let mut total = 0;
    for _ in 0..groups {
        total += GROUP + Group::read(&mut bits, cache)?.bytes();
        if total > budget {
            break;
        }
    }
    Some(total)
}

/// Colours that the cache adds to the green alphabet.
fn colour_cache(bits: &mut Bits) -> Option<usize> {
    if bits.read(1)? == 0 {
        return Some(0);
    }
    let size = bits.read(4)?;
    (1..=11).contains(&size).then_some(1 << size)
}

/// Passes over a picture with one group of codes; returns its largest red and green, as one number. (In the picture that
/// picks the group of each block this is the last group: copies and the cache only repeat pixels.)
fn sub_picture(bits: &mut Bits, width: u32, height: u32) -> Option<u32> {
    let cache = colour_cache(bits)?;
    let group = Group::read(bits, cache)?;
    let [green, red, blue, alpha, distance] = &group.codes;
    let (mut left, mut largest) = (u64::from(width) * u64::from(height), 0);
    while left > 0 {
        let symbol = u32::from(green.symbol(bits)?);
        match symbol {
            0..256 => {
                largest = largest.max(u32::from(red.symbol(bits)?) << 8 | symbol);
                blue.symbol(bits)?;
                alpha.symbol(bits)?;
                left -= 1;
            }
            256..280 => {
                let length = prefixed(bits, symbol - 256)?;
                let code = u32::from(distance.symbol(bits)?);
                prefixed(bits, code)?;
                left = left.saturating_sub(u64::from(length));
            }
            _ => left -= 1,
        }
    }
    Some(largest)
}

/// A length or distance: a prefix, then extra bits.
fn prefixed(bits: &mut Bits, prefix: u32) -> Option<u32> {
    if prefix < 4 {
        return Some(prefix + 1);
    }
    let extra = (prefix - 2) / 2;
    Some(((2 + prefix % 2) << extra) + bits.read(extra)? + 1)
}

/// Bits of a byte from the lowest up.
struct Bits<'a> {
    data: &'a [u8],
    /// In bits.
    at: usize,
}

impl Bits<'_> {
    /// Reads up to 24 bits.
    fn read(&mut self, n: u32) -> Option<u32> {
        let n = n as usize;
        if self.at + n > self.data.len() * 8 {
            return None;
        }
        let tail = &self.data[self.at / 8..];
        let word = (0..4).rev().fold(0, |word, i| word << 8 | u32::from(tail.get(i).copied().unwrap_or(0)));
        let value = word >> (self.at % 8) & ((1 << n) - 1);
        self.at += n;
        Some(value)
    }
}

struct Group {
    codes: [Code; 5],
}

impl Group {
    fn read(bits: &mut Bits, cache: usize) -> Option<Group> {
        let [green, red, blue, alpha, distance] = ALPHABETS;
        let mut read = |symbols| Code::read(bits, symbols);
        Some(Group { codes: [read(green + cache)?, read(red)?, read(blue)?, read(alpha)?, read(distance)?] })
    }

    fn bytes(&self) -> u64 {
        self.codes.iter().map(Code::bytes).sum()
    }
}

/// A canonical prefix code.
struct Code {
    /// Codes of each length. All zero: the only symbol takes no bits.
    counts: [u16; 16],
    /// By length, then by value.
    symbols: Vec<u16>,
}

impl Code {
    fn read(bits: &mut Bits, symbols: usize) -> Option<Code> {
        if bits.read(1)? == 1 {
            return Code::read_simple(bits, symbols);
        }
        let mut lengths = [0; 19];
        let given = bits.read(4)? as usize + 4;
        for slot in CODE_LENGTH_ORDER.iter().take(given) {
            lengths[*slot] = bits.read(3)? as u8;
        }
        let lengths = read_lengths(bits, &Code::canonical(&lengths)?, symbols)?;
        Code::canonical(&lengths)
    }

    /// One or two symbols, written out.
    fn read_simple(bits: &mut Bits, symbols: usize) -> Option<Code> {
        let two = bits.read(1)? == 1;
        let wide = bits.read(1)?;
        let mut code = Code { counts: [0; 16], symbols: vec![bits.read(1 + 7 * wide)? as u16] };
        if two {
            code.counts[1] = 2;
            code.symbols.push(bits.read(8)? as u16);
        }
        code.symbols.iter().all(|s| usize::from(*s) < symbols).then_some(code)
    }

    /// From the length of each symbol's code. `None` unless the code is complete.
    fn canonical(lengths: &[u8]) -> Option<Code> {
        let mut counts = [0u16; 16];
        lengths.iter().for_each(|len| counts[usize::from(*len)] += 1);
        counts[0] = 0;
        let by_length = |len: u8| (0u16..).zip(lengths).filter(move |(_, l)| **l == len).map(|(symbol, _)| symbol);
        let symbols: Vec<u16> = (1..16).filter(|len| counts[usize::from(*len)] > 0).flat_map(by_length).collect();
        if symbols.len() == 1 {
            return Some(Code { counts: [0; 16], symbols });
        }
        let filled: u32 = (1..16).map(|len| u32::from(counts[len]) << (15 - len)).sum();
        (filled == 1 << 15).then_some(Code { counts, symbols })
    }

    fn symbol(&self, bits: &mut Bits) -> Option<u16> {
        let (mut code, mut first, mut index) = (0, 0, 0);
        if self.symbols.len() == 1 {
            return self.symbols.first().copied();
        }
        for count in &self.counts[1..] {
            let count = usize::from(*count);
            code = code << 1 | bits.read(1)? as usize;
            first <<= 1;
            if code < first + count {
                return self.symbols.get(index + code - first).copied();
            }
            first += count;
            index += count;
        }
        None
    }

    /// What `image-webp` allocates for it.
    fn bytes(&self) -> u64 {
        let Some(longest) = self.counts.iter().rposition(|n| *n > 0) else { return 0 };
        let beyond: u64 = self.counts[TABLE_BITS as usize + 1..].iter().map(|n| u64::from(*n)).sum();
        (ENTRY << TABLE_BITS.min(longest as u32)) + beyond * NODES
    }
}

/// The code length of each of `symbols` symbols, run-length coded with `code`.
fn read_lengths(bits: &mut Bits, code: &Code, symbols: usize) -> Option<Vec<u8>> {
    let mut turns = symbols;
    if bits.read(1)? == 1 {
        let size = 2 + 2 * bits.read(3)?;
        turns = 2 + bits.read(size)? as usize;
    }
    let mut lengths = Vec::with_capacity(symbols);
    let mut previous = 8;
    while lengths.len() < symbols && turns > 0 {
        turns -= 1;
        let (value, repeat) = match code.symbol(bits)? {
            16 => (previous, 3 + bits.read(2)?),
            17 => (0, 3 + bits.read(3)?),
            18 => (0, 11 + bits.read(7)?),
            length => (length as u8, 1),
        };
        if value != 0 {
            previous = value;
        }
        lengths.extend(std::iter::repeat_n(value, repeat as usize));
    }
    let fits = lengths.len() <= symbols;
    lengths.resize(symbols, 0);
    fits.then_some(lengths)
}
