//! The frame: sizes of the picture, of its components and of their blocks (ITU-T T.81, A.1 and B.2.2).

use super::bands;
use super::huffman::Block;
use super::planes::Plane;
use crate::image::error::{Result, invalid, unsupported};
use crate::image::limits::{Limits, plane};

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
    /// The same, filled up to whole MCUs.
    pub(super) stride: u32,
    pub(super) rows: u32,
    /// Slot of its quantisation table.
    pub(super) table: u8,
    /// The table, in natural order, as it stood at the component's first scan; none before that.
    pub(super) quant: Option<[i16; 64]>,
    /// `[rows, stride]`, where more than one scan codes the picture; else empty.
    pub(super) blocks: Vec<Block>,
}

/// What SOFn says.
pub(super) struct Frame {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) progressive: bool,
    pub(super) components: Vec<Component>,
    /// The largest sampling factors.
    pub(super) h_max: u32,
    pub(super) v_max: u32,
    /// MCUs of an interleaved scan across and down.
    pub(super) mcus: (u32, u32),
}

impl Frame {
    /// From a size that has passed the limits, and for each component its name, its sampling factors, and its table.
    pub(super) fn new(width: u32, height: u32, specs: &[[u8; 3]], progressive: bool) -> Result<Frame> {
        let (h_max, v_max) = sampling(specs)?;
        let mcus = (width.div_ceil(h_max * 8), height.div_ceil(v_max * 8));
        let component = |&[id, sampling, table]: &[u8; 3]| {
            let (h, v) = (u32::from(sampling >> 4), u32::from(sampling & 15));
            let (across, down) = ((width * h).div_ceil(h_max * 8), (height * v).div_ceil(v_max * 8));
            let (stride, rows) = (mcus.0 * h, mcus.1 * v);
            Component { id, h, v, across, down, stride, rows, table, quant: None, blocks: Vec::new() }
        };
        let components = specs.iter().map(component).collect();
        Ok(Frame { width, height, progressive, components, h_max, v_max, mcus })
    }

    /// Blocks of all components.
    fn blocks(&self) -> u64 {
        self.components.iter().map(|c| u64::from(c.stride) * u64::from(c.rows)).sum()
    }

    /// Holds what is kept of a picture to the limits: its samples, and beside them RGB, or before that coefficients, with `all`
    /// every one.
    pub(super) fn check_memory(&self, limits: &Limits, all: bool) -> Result<()> {
        let (blocks, rgb) = (self.blocks(), plane(self.width, self.height, 3));
        let every = blocks * size_of::<Block>() as u64;
        let coefficients = if all { every } else { every.min(bands::HELD) };
        limits.check_memory(blocks * 64 + rgb.max(coefficients))
    }

    /// Room for every coefficient, all zero.
    pub(super) fn keep_blocks(&mut self) {
        for c in &mut self.components {
            c.blocks = vec![[0; 64]; c.stride as usize * c.rows as usize];
        }
    }

    /// The components' samples, still to be computed.
    pub(super) fn planes(&self) -> Vec<Plane> {
        let plane = |c: &Component| {
            let (h, v) = (self.h_max / c.h, self.v_max / c.v);
            let size = (self.width.div_ceil(h) as usize, self.height.div_ceil(v) as usize);
            Plane::new(size, (h as usize, v as usize), (c.stride as usize, c.rows as usize))
        };
        self.components.iter().map(plane).collect()
    }

    /// The components' quantisation tables.
    ///
    /// # Errors
    /// No scan has coded one of them.
    pub(super) fn quants(&self) -> Result<Vec<&[i16; 64]>> {
        let all = self.components.len();
        let missing =
            |i: usize| invalid(format!("the JPEG is cut off: no data for colour component {} of {all}", i + 1));
        let components = self.components.iter().enumerate();
        components.map(|(i, c)| c.quant.as_ref().map_or_else(|| missing(i), Ok)).collect()
    }
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
