//! The segments of a JPEG file (ITU-T T.81, annex B): what they say, whether it is all there, and a canonical rewriting.

use image::metadata::Orientation;

use super::huffman::{Huffman, Stop, next_marker};
use super::scan::{self, Break, Coding, Component, Part};
use crate::image::bytes::{array, be16, slice};
use crate::image::error::{DecodeError, Result, invalid, unsupported};
use crate::image::limits::{Limits, plane};
use crate::image::orient;

/// A file that holds every block it promises, once [`Jpeg::count`] has said so.
pub(super) struct Jpeg<'a> {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) grey: bool,
    pub(super) orientation: Orientation,
    /// SOI, APP14 where the colours need it, SOF, then for each scan its tables and data, EOI.
    pub(super) stream: Vec<u8>,
    /// The only scan of a baseline file, whose codes nobody has read yet.
    uncounted: Option<Uncounted<'a>>,
}

/// A scan whose end is known by the marker behind it, and what is needed to read its codes.
struct Uncounted<'a> {
    bytes: &'a [u8],
    data: usize,
    selected: Vec<Selected>,
    tables: Vec<[Option<Huffman>; 2]>,
    frame: Frame,
    restart_interval: u16,
}

impl Jpeg<'_> {
    /// Whether every block is there. A decoder may be at work on [`Jpeg::stream`] meanwhile: for a baseline file, as most
    /// are, the two together take as long as the decoder alone.
    pub(super) fn count(&self) -> Result<()> {
        let Some(scan) = &self.uncounted else { return Ok(()) };
        let parts = parts(&scan.selected, &scan.tables);
        let restart = u64::from(scan.restart_interval);
        let mut components = scan.frame.components.clone();
        scan::read(scan.bytes, scan.data, Coding::Baseline, &parts, &mut components, scan.frame.mcus, restart)
            .map_or_else(|b| broken(1, &b), |_| Ok(()))
    }
}

/// What SOFn says.
struct Frame {
    width: u32,
    height: u32,
    progressive: bool,
    components: Vec<Component>,
    /// The component's sampling and table bytes as they stand in the file.
    spec: Vec<[u8; 2]>,
    /// MCUs of an interleaved scan.
    mcus: u64,
    /// Whether a component has been coded: wholly, or its DC coefficients for a progressive frame.
    coded: Vec<bool>,
}

/// Everything read so far.
struct Reader<'a> {
    bytes: &'a [u8],
    limits: &'a Limits,
    frame: Option<Frame>,
    /// Bodies of the DHT tables by class (DC, AC) and slot: 16 counts, then symbols.
    huffman: [[Option<&'a [u8]>; 4]; 2],
    /// Bodies of the DQT tables by slot: the byte that states precision and slot, then the values.
    quant: [Option<&'a [u8]>; 4],
    /// The same at the first scan, which is when the decoder fixes them.
    quant_fixed: [Option<&'a [u8]>; 4],
    restart_interval: u16,
    scans: u32,
    jfif: bool,
    adobe: Option<u8>,
    orientation: Option<Orientation>,
    stream: Vec<u8>,
    uncounted: Option<Uncounted<'a>>,
}

/// Reads the file up to its end marker.
pub(super) fn read<'a>(bytes: &'a [u8], limits: &'a Limits) -> Result<Jpeg<'a>> {
    let mut reader = Reader {
        bytes,
        limits,
        frame: None,
        huffman: [[None; 4]; 2],
        quant: [None; 4],
        quant_fixed: [None; 4],
        restart_interval: 0,
        scans: 0,
        jfif: false,
        adobe: None,
        orientation: None,
        stream: Vec::new(),
        uncounted: None,
    };
    let mut at = 2;
    while let Some(marker) = next_marker(bytes, at) {
        at = marker + 1;
        match bytes[marker] {
            0xd9 => return reader.finish(),
            // Markers without a body: TEM, and restarts left over from the scan before.
            0x01 | 0xd0..=0xd7 => continue,
            0xd8 => {
                return invalid(format!("the JPEG is damaged: a second picture begins inside it, at byte {marker}"));
            }
            _ => {}
        }
        let body = be16(bytes, at).and_then(|len| slice(bytes, at + 2, usize::from(len).checked_sub(2)?));
        let Some(body) = body else {
            return invalid(format!(
                "the JPEG is cut off: the segment at byte {marker} does not end within {}",
                bytes.len()
            ));
        };
        at += 2 + body.len();
        match bytes[marker] {
            0xc4 => reader.huffman_tables(body)?,
            0xdb => reader.quantisation_tables(body)?,
            0xdd => {
                reader.restart_interval =
                    be16(body, 0).map_or_else(|| invalid("the JPEG's DRI segment is empty"), Ok)?
            }
            0xc0..=0xc2 => reader.frame(body, bytes[marker] == 0xc2)?,
            0xc3 | 0xcb => {
                return unsupported("the JPEG is a lossless one; save it as baseline or progressive JPEG, or as PNG");
            }
            0xc9 | 0xca => return unsupported("the JPEG is arithmetic-coded; save it as baseline or progressive JPEG"),
            0xc5..=0xc8 | 0xcd..=0xcf | 0xde | 0xdf => {
                return unsupported("the JPEG is a hierarchical one; save it as baseline or progressive JPEG");
            }
            0xdc => return unsupported("the JPEG states its height after its data (DNL); save it again"),
            0xda => at = reader.scan(body, at)?,
            0xe0 => reader.jfif |= body.starts_with(b"JFIF\0"),
            0xe1 if body.starts_with(b"Exif\0\0") => {
                reader.orientation.get_or_insert(orient::from_exif(body));
            }
            0xee if body.starts_with(b"Adobe") => reader.adobe = body.get(11).copied(),
            _ => {}
        }
    }
    invalid(format!("the JPEG is cut off: it ends after {} bytes without an end marker (EOI)", bytes.len()))
}

impl<'a> Reader<'a> {
    fn finish(mut self) -> Result<Jpeg<'a>> {
        let uncounted = self.uncounted.take();
        let frame = uncounted.as_ref().map(|scan| &scan.frame).or(self.frame.as_ref()).filter(|_| self.scans > 0);
        let Some(frame) = frame else {
            return invalid("the JPEG is damaged: it ends before any picture data");
        };
        if let Some(missing) = frame.coded.iter().position(|coded| !coded) {
            return invalid(format!(
                "the JPEG is cut off: no data for colour component {} of {}",
                missing + 1,
                frame.coded.len()
            ));
        }
        self.stream.extend_from_slice(&[0xff, 0xd9]);
        Ok(Jpeg {
            width: frame.width,
            height: frame.height,
            grey: frame.components.len() == 1,
            orientation: self.orientation.unwrap_or(Orientation::NoTransforms),
            stream: self.stream,
            uncounted,
        })
    }

    /// B.2.4.2. Only the place of each table is noted: a file may redefine them a million times.
    fn huffman_tables(&mut self, mut body: &'a [u8]) -> Result<()> {
        while let Some((&selector, rest)) = body.split_first() {
            let symbols: usize = rest.iter().take(16).map(|n| usize::from(*n)).sum();
            let slot =
                self.huffman.get_mut(usize::from(selector >> 4)).and_then(|c| c.get_mut(usize::from(selector & 15)));
            let (Some(slot), Some(table)) = (slot, rest.get(..16 + symbols)) else {
                return invalid(
                    "the JPEG is damaged: a Huffman table that does not fit its segment or has no such slot",
                );
            };
            *slot = Some(table);
            body = &rest[table.len()..];
        }
        Ok(())
    }

    /// B.2.4.1.
    fn quantisation_tables(&mut self, mut body: &'a [u8]) -> Result<()> {
        while let Some(&selector) = body.first() {
            let len = if selector >> 4 == 0 { 65 } else { 129 };
            let (Some(slot), Some(table)) = (self.quant.get_mut(usize::from(selector & 15)), body.get(..len)) else {
                return invalid(
                    "the JPEG is damaged: a quantisation table that does not fit its segment or has no such slot",
                );
            };
            *slot = Some(table);
            body = &body[len..];
        }
        Ok(())
    }

    /// B.2.2: sizes, checked against the limits before anything is allocated by them.
    fn frame(&mut self, body: &[u8], progressive: bool) -> Result<()> {
        if self.frame.is_some() {
            return invalid("the JPEG is damaged: it has two frame headers");
        }
        let (Some([precision]), Some(height), Some(width), Some([count])) =
            (array(body, 0), be16(body, 1), be16(body, 3), array(body, 5))
        else {
            return invalid("the JPEG is damaged: its frame header is too short");
        };
        if precision != 8 {
            return unsupported(format!(
                "the JPEG has {precision} bits a sample; 8 are supported (save it again, or as PNG)"
            ));
        }
        let (width, height) = (u32::from(width), u32::from(height));
        self.limits.check_size(width, height)?;
        let specs = body.get(6..).unwrap_or_default().as_chunks::<3>().0;
        if !matches!(count, 1 | 3 | 4) || specs.len() != usize::from(count) {
            return unsupported(format!("the JPEG has {count} colour components; 1, 3 and 4 are supported"));
        }
        let (h_max, v_max) = sampling(specs)?;
        let component = |[id, sampling, _]: &[u8; 3]| {
            let (h, v) = (u32::from(sampling >> 4), u32::from(sampling & 15));
            let (across, down) = ((width * h).div_ceil(h_max * 8), (height * v).div_ceil(v_max * 8));
            Component { id: *id, h, v, across, down, history: Vec::new() }
        };
        let mut components: Vec<Component> = specs.iter().map(component).collect();
        if progressive {
            self.limits.check_memory(held(width, height, &components))?;
            for c in &mut components {
                c.history = vec![0; c.across as usize * c.down as usize];
            }
        }
        let mcus = u64::from(width.div_ceil(h_max * 8)) * u64::from(height.div_ceil(v_max * 8));
        let spec = specs.iter().map(|[_, sampling, table]| [*sampling, *table]).collect();
        let coded = vec![false; components.len()];
        self.frame = Some(Frame { width, height, progressive, components, spec, mcus, coded });
        Ok(())
    }

    /// B.2.3: a scan header and the data behind it, from `data` on. Returns where the data ends.
    fn scan(&mut self, body: &[u8], data: usize) -> Result<usize> {
        let Some(mut frame) = self.frame.take() else {
            return invalid("the JPEG is damaged: picture data before its frame header");
        };
        self.scans += 1;
        if self.scans > self.limits.max_scans {
            return Err(DecodeError::TooLarge(format!(
                "the JPEG has more than {} scans (save it as baseline JPEG, or raise max_scans)",
                self.limits.max_scans
            )));
        }
        let header = ScanHeader::read(body, &frame)?;
        let coding = header.coding(&frame)?;
        let interleaved = header.selected.len() == frame.components.len();
        if coding == Coding::Baseline && self.scans == 1 && !interleaved {
            self.limits.check_memory(held(frame.width, frame.height, &frame.components))?;
        }
        self.check_order(&mut frame, &header, coding)?;
        self.write_scan(&frame, &header);

        let tables = header.selected.iter().map(|s| self.tables(s, coding)).collect::<Result<Vec<_>>>()?;
        if coding == Coding::Baseline
            && interleaved
            && let Some(end) = self.plausible_end(data, &frame)
        {
            self.stream.extend_from_slice(&self.bytes[data..end]);
            let (bytes, restart_interval) = (self.bytes, self.restart_interval);
            self.uncounted =
                Some(Uncounted { bytes, data, selected: header.selected, tables, frame, restart_interval });
            return Ok(end);
        }
        let parts = parts(&header.selected, &tables);
        let restart = u64::from(self.restart_interval);
        let end = scan::read(self.bytes, data, coding, &parts, &mut frame.components, frame.mcus, restart)
            .or_else(|b| broken(self.scans, &b))?;
        self.stream.extend_from_slice(&self.bytes[data..end]);
        self.frame = Some(frame);
        Ok(end)
    }

    /// Where the data from `data` on ends, if the end marker of the file is what ends it and there is data enough: a
    /// block takes two codes of a bit at least. Less must not set a decoder to work on what the header promises.
    fn plausible_end(&self, data: usize, frame: &Frame) -> Option<usize> {
        let is_restart = |marker: usize| matches!(self.bytes[marker], 0xd0..=0xd7);
        let mut marker = next_marker(self.bytes, data)?;
        while is_restart(marker) {
            marker = next_marker(self.bytes, marker + 1)?;
        }
        let blocks: u64 = frame.components.iter().map(|c| u64::from(c.across) * u64::from(c.down)).sum();
        let end = marker - 1;
        (self.bytes[marker] == 0xd9 && (end - data) as u64 >= blocks / 4).then_some(end)
    }

    /// What a scan may code, given those before it.
    fn check_order(&mut self, frame: &mut Frame, header: &ScanHeader, coding: Coding) -> Result<()> {
        if self.scans == 1 {
            self.quant_fixed = self.quant;
        }
        for s in &header.selected {
            let slot = usize::from(frame.spec[s.component][1]);
            if !frame.coded[s.component] && self.quant.get(slot) != self.quant_fixed.get(slot) {
                return unsupported("the JPEG redefines its quantisation tables between scans; save it again");
            }
            match coding {
                Coding::Baseline if frame.coded[s.component] => {
                    return invalid(format!("the JPEG is damaged: colour component {} comes twice", s.component + 1));
                }
                Coding::Baseline | Coding::DcFirst => frame.coded[s.component] = true,
                _ if !frame.coded[s.component] => {
                    return invalid("the JPEG is damaged: a scan refines what no scan has coded before");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The tables that `coding` needs of a component.
    fn tables(&self, s: &Selected, coding: Coding) -> Result<[Option<Huffman>; 2]> {
        let build = |class: usize, slot: u8, needed: bool| -> Result<Option<Huffman>> {
            if !needed {
                return Ok(None);
            }
            let name = ["DC", "AC"][class];
            let Some(body) = self.huffman[class].get(usize::from(slot)).copied().flatten() else {
                return invalid(format!(
                    "the JPEG is damaged: scan {} needs {name} Huffman table {slot}, which is missing",
                    self.scans
                ));
            };
            let table = body.split_first_chunk::<16>().and_then(|(counts, symbols)| Huffman::new(counts, symbols));
            match table {
                Some(table) => Ok(Some(table)),
                None => invalid(format!(
                    "the JPEG is damaged: {name} Huffman table {slot} of scan {} is no prefix code",
                    self.scans
                )),
            }
        };
        let (dc, ac) = coding.needs();
        Ok([build(0, s.dc, dc)?, build(1, s.ac, ac)?])
    }

    /// A segment of the rewritten file. Bodies are those read before, or shorter: the length fits.
    fn segment(&mut self, marker: u8, parts: &[&[u8]]) {
        let len = 2 + parts.iter().map(|p| p.len()).sum::<usize>();
        self.stream.extend_from_slice(&[0xff, marker]);
        self.stream.extend_from_slice(&(len as u16).to_be_bytes());
        parts.iter().for_each(|p| self.stream.extend_from_slice(p));
    }

    /// Header and tables of a scan; before the first one also those of the file.
    fn write_scan(&mut self, frame: &Frame, header: &ScanHeader) {
        let names = self.component_names(frame);
        if self.scans == 1 {
            self.stream.reserve(self.bytes.len());
            self.stream.extend_from_slice(&[0xff, 0xd8]);
            if frame.components.len() == 4 {
                let transform = if self.adobe.is_some_and(|t| t != 0) { 2 } else { 0 };
                self.segment(0xee, &[b"Adobe\0\x64\0\0\0\0", &[transform]]);
            }
            let mut sof = vec![8];
            sof.extend_from_slice(&(frame.height as u16).to_be_bytes());
            sof.extend_from_slice(&(frame.width as u16).to_be_bytes());
            sof.push(frame.components.len() as u8);
            for (name, [sampling, table]) in names.iter().zip(&frame.spec) {
                // The sampling of an only component means nothing.
                let sampling = if frame.components.len() == 1 { 0x11 } else { *sampling };
                sof.extend_from_slice(&[*name, sampling, *table]);
            }
            self.segment(if frame.progressive { 0xc2 } else { 0xc0 }, &[&sof]);
            for table in self.quant.into_iter().flatten() {
                self.segment(0xdb, &[table]);
            }
        }
        let mut sos = vec![header.selected.len() as u8];
        for s in &header.selected {
            for (class, slot) in [(0u8, s.dc), (1, s.ac)] {
                if let Some(table) = self.huffman[usize::from(class)][usize::from(slot)] {
                    self.segment(0xc4, &[&[class << 4 | slot], table]);
                }
            }
            sos.extend_from_slice(&[names[s.component], s.dc << 4 | s.ac]);
        }
        // Before every scan, because it also resets the decoder's count of MCUs.
        if self.restart_interval > 0 || self.scans > 1 {
            self.segment(0xdd, &[&self.restart_interval.to_be_bytes()]);
        }
        sos.extend_from_slice(&header.progression);
        self.segment(0xda, &[&sos]);
    }

    /// Names that tell the decoder what the components are. The rule is libjpeg's: JFIF means YCbCr, else Adobe's
    /// transform decides, else the names that the file gives them.
    fn component_names(&self, frame: &Frame) -> &'static [u8; 4] {
        let named_rgb = frame.components.iter().map(|c| c.id).eq(*b"RGB");
        let rgb = frame.components.len() == 3 && !self.jfif && self.adobe.map_or(named_rgb, |transform| transform == 0);
        if rgb { b"RGB\0" } else { &[1, 2, 3, 4] }
    }
}

/// The components of a scan with their tables.
fn parts<'t>(selected: &[Selected], tables: &'t [[Option<Huffman>; 2]]) -> Vec<Part<'t>> {
    let part = |(s, [dc, ac]): (&Selected, &'t [Option<Huffman>; 2])| Part {
        component: s.component,
        dc: dc.as_ref(),
        ac: ac.as_ref(),
    };
    selected.iter().zip(tables).map(part).collect()
}

fn broken<T>(scan: u32, b: &Break) -> Result<T> {
    let place = format!("scan {scan}, block group {} of {}", b.mcu + 1, b.mcus);
    invalid(match b.stop {
        Stop::Ended => format!("the JPEG is cut off, or smaller than its header claims: its data ends at {place}"),
        Stop::BadCode => format!("the JPEG is damaged: an invalid Huffman code at {place}"),
        Stop::Overrun => format!("the JPEG is damaged: more than 64 coefficients in a block at {place}"),
        Stop::Restart => format!("the JPEG is damaged: a restart marker is missing or out of turn at {place}"),
    })
}

/// The largest sampling factors. Ratios that are no whole numbers are legal, and no decoder in use reads them.
fn sampling(specs: &[[u8; 3]]) -> Result<(u32, u32)> {
    let factors = || specs.iter().map(|[_, s, _]| (u32::from(s >> 4), u32::from(s & 15)));
    let h_max = factors().map(|f| f.0).max().unwrap_or(0);
    let v_max = factors().map(|f| f.1).max().unwrap_or(0);
    let whole = |(h, v): (u32, u32)| (1..=4).contains(&h) && (1..=4).contains(&v) && h_max % h == 0 && v_max % v == 0;
    if !factors().all(whole) {
        return unsupported(format!(
            "the JPEG's chroma sampling is not supported ({specs:02x?}); save it with 4:4:4, 4:2:2 or 4:2:0"
        ));
    }
    Ok((h_max, v_max))
}

/// Bytes that decoding holds when all coefficients are kept: two a coefficient, an eighth for their history, and RGB.
fn held(width: u32, height: u32, components: &[Component]) -> u64 {
    let blocks: u64 = components.iter().map(|c| u64::from(c.across) * u64::from(c.down)).sum();
    plane(width, height, 3) + blocks * (64 * 2 + 8)
}

/// A component of a scan and its Huffman slots.
struct Selected {
    component: usize,
    dc: u8,
    ac: u8,
}

struct ScanHeader {
    selected: Vec<Selected>,
    /// Ss, Se, and Ah with Al, as they stand in the file.
    progression: [u8; 3],
}

impl ScanHeader {
    fn read(body: &[u8], frame: &Frame) -> Result<ScanHeader> {
        let count = usize::from(body.first().copied().unwrap_or(0));
        let (Some(pairs), Some(progression)) = (body.get(1..1 + 2 * count), array(body, 1 + 2 * count)) else {
            return invalid("the JPEG is damaged: a scan header is too short");
        };
        let mut selected: Vec<Selected> = Vec::new();
        for [id, slots] in pairs.as_chunks::<2>().0 {
            let component = frame.components.iter().position(|c| c.id == *id);
            let (dc, ac) = (slots >> 4, slots & 15);
            match component {
                Some(component) if dc < 4 && ac < 4 && selected.iter().all(|s| s.component != component) => {
                    selected.push(Selected { component, dc, ac });
                }
                _ => {
                    return invalid(format!(
                        "the JPEG is damaged: a scan header names component {id} and tables {slots:#04x}"
                    ));
                }
            }
        }
        if selected.is_empty() {
            return invalid("the JPEG is damaged: a scan without components");
        }
        Ok(ScanHeader { selected, progression })
    }

    /// G.1.1.1: what the scan codes.
    fn coding(&self, frame: &Frame) -> Result<Coding> {
        let count = self.selected.len();
        if !frame.progressive {
            let vertical = frame.components.iter().any(|c| c.v > 1);
            // `zune-jpeg` 0.5.15 mixes up the rows of such a picture without noticing.
            if count != frame.components.len() && (count > 1 || vertical) {
                return unsupported(
                    "the JPEG has a scan of its own for each colour, with vertical chroma sampling; save it as an \
                     interleaved or progressive one",
                );
            }
            return Ok(Coding::Baseline);
        }
        let [start, end, bits] = self.progression;
        let (high, low) = (bits >> 4, bits & 15);
        let (start, end) = (u32::from(start), u32::from(end));
        if low > 13 || (high != 0 && high != low + 1) {
            return invalid(format!("the JPEG is damaged: a scan goes from bit {high} to bit {low}"));
        }
        match (start, end) {
            (0, 0) if high == 0 => Ok(Coding::DcFirst),
            (0, 0) => Ok(Coding::DcRefine),
            (1.., ..=63) if start <= end && count == 1 && high == 0 => Ok(Coding::AcFirst { start, end }),
            (1.., ..=63) if start <= end && count == 1 => Ok(Coding::AcRefine { start, end }),
            _ => invalid(format!(
                "the JPEG is damaged: a scan of {count} components codes coefficients {start} to {end}"
            )),
        }
    }
}
