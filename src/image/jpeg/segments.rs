//! The segments of a JPEG file (ITU-T T.81, annex B): what they say, and whether it is all there.

use image::metadata::Orientation;
use rayon::prelude::*;

use super::bands;
use super::colour::Colour;
use super::frame::Frame;
use super::huffman::{Huffman, Stop, next_marker};
use super::planes::Plane;
use super::scan::{Break, Coding, Part, Scan, natural};
use crate::image::bytes::{array, be16, slice};
use crate::image::error::{DecodeError, Result, invalid, unsupported};
use crate::image::limits::Limits;
use crate::image::orient;

/// A picture's samples, every one of them coded by the file.
pub(super) struct Jpeg {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) colour: Colour,
    pub(super) orientation: Orientation,
    pub(super) planes: Vec<Plane>,
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
    restart_interval: u16,
    scans: u32,
    jfif: bool,
    adobe: Option<u8>,
    orientation: Option<Orientation>,
    /// Of a picture that one scan has coded.
    planes: Option<Vec<Plane>>,
}

/// Reads the file up to its end marker.
pub(super) fn read(bytes: &[u8], limits: &Limits) -> Result<Jpeg> {
    let mut reader = Reader {
        bytes,
        limits,
        frame: None,
        huffman: [[None; 4]; 2],
        quant: [None; 4],
        restart_interval: 0,
        scans: 0,
        jfif: false,
        adobe: None,
        orientation: None,
        planes: None,
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
    fn finish(mut self) -> Result<Jpeg> {
        let Some(frame) = self.frame.take().filter(|_| self.scans > 0) else {
            return invalid("the JPEG is damaged: it ends before any picture data");
        };
        let quants = frame.quants()?;
        let planes = self.planes.take().unwrap_or_else(|| {
            let mut planes = frame.planes();
            let parts = planes.par_iter_mut().zip(&frame.components).zip(quants);
            parts.for_each(|((plane, c), quant)| plane.fill(0, &c.blocks, quant));
            planes
        });
        Ok(Jpeg {
            width: frame.width,
            height: frame.height,
            colour: self.colour(&frame),
            orientation: self.orientation.unwrap_or(Orientation::NoTransforms),
            planes,
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
        let frame = Frame::new(width, height, specs, progressive)?;
        frame.check_memory(self.limits, progressive)?;
        self.frame = Some(frame);
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
        // One scan codes all there is, so that no coefficient has to be kept.
        let alone = coding == Coding::Baseline && header.selected.len() == frame.components.len();
        self.begin(&mut frame, &header, coding)?;
        let tables = header.selected.iter().map(|s| self.tables(s, coding)).collect::<Result<Vec<_>>>()?;
        let parts: Vec<Part> = parts(&frame, &header.selected, &tables);
        let mcus = match &header.selected[..] {
            [only] => (frame.components[only.component].across, frame.components[only.component].down),
            _ => frame.mcus,
        };
        let mut scan = Scan::new(self.bytes, data, coding, parts, mcus, u32::from(self.restart_interval));
        // Before there is memory for them.
        if let Some(mcus) = scan.claims() {
            return invalid(format!(
                "the JPEG is cut off, or smaller than its header claims: scan {} has {mcus} block groups, and {} bytes are left",
                self.scans,
                scan.rest()
            ));
        }
        let done = if alone {
            let mut planes = frame.planes();
            let done = bands::decode(&mut scan, &frame.quants()?, &mut planes);
            self.planes = Some(planes);
            done
        } else {
            if self.scans == 1 {
                frame.check_memory(self.limits, true)?;
                frame.keep_blocks();
            }
            let mut kept: Vec<_> = frame.components.iter_mut().map(|c| Some(&mut c.blocks[..])).collect();
            let mut blocks: Vec<_> = header.selected.iter().filter_map(|s| kept[s.component].take()).collect();
            scan.read(&mut blocks)
        };
        done.or_else(|b| self.broken(&b))?;
        let end = scan.position();
        self.frame = Some(frame);
        Ok(end)
    }

    /// What a scan may code, given those before it; the first of a component fixes its quantisation.
    fn begin(&self, frame: &mut Frame, header: &ScanHeader, coding: Coding) -> Result<()> {
        for s in &header.selected {
            let c = &mut frame.components[s.component];
            match (coding, c.quant) {
                (Coding::Baseline, Some(_)) => {
                    return invalid(format!("the JPEG is damaged: colour component {} comes twice", s.component + 1));
                }
                (_, Some(_)) => {}
                (Coding::Baseline | Coding::DcFirst { .. }, None) => c.quant = Some(self.quantisation(c.table)?),
                (_, None) => return invalid("the JPEG is damaged: a scan refines what no scan has coded before"),
            }
        }
        Ok(())
    }

    /// A quantisation table, in natural order. Its values have 8 bits or 16.
    fn quantisation(&self, slot: u8) -> Result<[i16; 64]> {
        let Some(body) = self.quant.get(usize::from(slot)).copied().flatten() else {
            return invalid(format!("the JPEG is damaged: quantisation table {slot} is missing"));
        };
        let wide = body[0] >> 4 != 0;
        let mut table = [0; 64];
        for k in 0..64 {
            let value = if wide { u16::from_be_bytes([body[1 + 2 * k], body[2 + 2 * k]]) } else { body[1 + k].into() };
            table[natural(k)] = value.cast_signed();
        }
        Ok(table)
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

    fn broken(&self, b: &Break) -> Result<()> {
        let place = format!("scan {}, block group {} of {}", self.scans, b.mcu + 1, b.mcus);
        invalid(match b.stop {
            Stop::Ended => format!("the JPEG is cut off, or smaller than its header claims: its data ends at {place}"),
            Stop::BadCode => format!("the JPEG is damaged: an invalid Huffman code at {place}"),
            Stop::Overrun => format!("the JPEG is damaged: more than 64 coefficients in a block at {place}"),
            Stop::Restart => format!("the JPEG is damaged: a restart marker is missing or out of turn at {place}"),
        })
    }

    /// The rule is libjpeg's: JFIF means YCbCr, else Adobe's transform decides, else the names that the file gives.
    fn colour(&self, frame: &Frame) -> Colour {
        let named_rgb = frame.components.iter().map(|c| c.id).eq(*b"RGB");
        match (frame.components.len(), self.adobe) {
            (1, _) => Colour::Grey,
            (4, Some(1..)) => Colour::Ycck,
            (4, _) => Colour::Cmyk,
            _ if self.jfif => Colour::YCbCr,
            (_, Some(0)) => Colour::Rgb,
            (_, None) if named_rgb => Colour::Rgb,
            _ => Colour::YCbCr,
        }
    }
}

/// The components of a scan with their tables.
fn parts<'t>(frame: &Frame, selected: &[Selected], tables: &'t [[Option<Huffman>; 2]]) -> Vec<Part<'t>> {
    let alone = selected.len() == 1;
    let part = |(s, [dc, ac]): (&Selected, &'t [Option<Huffman>; 2])| {
        let c = &frame.components[s.component];
        let (h, v) = if alone { (1, 1) } else { (c.h as usize, c.v as usize) };
        Part { component: s.component, dc: dc.as_ref(), ac: ac.as_ref(), h, v, stride: c.stride as usize }
    };
    selected.iter().zip(tables).map(part).collect()
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
        if !frame.progressive {
            return Ok(Coding::Baseline);
        }
        let count = self.selected.len();
        let [start, end, bits] = self.progression;
        let (high, low) = (bits >> 4, bits & 15);
        let (start, end) = (usize::from(start), usize::from(end));
        if low > 13 || (high != 0 && high != low + 1) {
            return invalid(format!("the JPEG is damaged: a scan goes from bit {high} to bit {low}"));
        }
        let (first, low) = (high == 0, u32::from(low));
        match (start, end) {
            (0, 0) if first => Ok(Coding::DcFirst { low }),
            (0, 0) => Ok(Coding::DcRefine { low }),
            (1.., ..=63) if start <= end && count == 1 && first => Ok(Coding::AcFirst { start, end, low }),
            (1.., ..=63) if start <= end && count == 1 => Ok(Coding::AcRefine { start, end, low }),
            _ => invalid(format!(
                "the JPEG is damaged: a scan of {count} components codes coefficients {start} to {end}"
            )),
        }
    }
}
