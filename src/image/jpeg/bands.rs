//! A picture that one scan codes, band by band: while the codes of one are read, the samples of the one before are computed.
//! So the picture takes little longer than its codes, which nothing but one thread can read, and few coefficients are kept.

use std::ops::Range;

use super::huffman::Block;
use super::planes::Plane;
use super::scan::{Break, Scan};

/// Blocks of a band, to the next row of MCUs: some tenths of a millisecond.
const BAND: usize = 2048;

/// Coefficients of some rows of MCUs.
struct Band {
    rows: Range<u32>,
    parts: Vec<Part>,
}

/// Those of a component of the scan.
struct Part {
    component: usize,
    /// Rows of blocks in a row of MCUs, and blocks in such a row.
    shape: (usize, usize),
    blocks: Vec<Block>,
}

/// Reads all of `scan` into `planes`, where `quants` are the quantisation tables of the components.
pub(super) fn decode(scan: &mut Scan, quants: &[&[i16; 64]], planes: &mut [Plane]) -> Result<(), Break> {
    let of_row: usize = scan.parts().iter().map(|part| part.v * part.stride).sum();
    let each = BAND.div_ceil(of_row) as u32;
    let (mut next, mut ready) = (Band::new(scan, each), Band::new(scan, each));
    // In the pool from here on, where a pair of jobs costs next to nothing.
    rayon::scope(|_| {
        for first in (0..scan.rows()).step_by(each as usize) {
            next.rows = first..scan.rows().min(first + each);
            let (read, ()) = rayon::join(|| next.read(scan), || ready.transform(quants, planes));
            read?;
            std::mem::swap(&mut next, &mut ready);
        }
        ready.transform(quants, planes);
        Ok(())
    })
}

impl Band {
    /// Room for `rows` rows of MCUs, and none of them yet.
    fn new(scan: &Scan, rows: u32) -> Band {
        let part = |part: &super::scan::Part| {
            let shape = (part.v, part.stride);
            Part { component: part.component, shape, blocks: vec![[0; 64]; rows as usize * shape.0 * shape.1] }
        };
        Band { rows: 0..0, parts: scan.parts().iter().map(part).collect() }
    }

    fn read(&mut self, scan: &mut Scan) -> Result<(), Break> {
        let mut blocks: Vec<&mut [Block]> = self.parts.iter_mut().map(|part| &mut part.blocks[..]).collect();
        scan.read(self.rows.clone(), &mut blocks)
    }

    fn transform(&self, quants: &[&[i16; 64]], planes: &mut [Plane]) {
        for Part { component, shape: (down, across), blocks } in &self.parts {
            let (first, rows) = (self.rows.start as usize * down, self.rows.len() * down);
            planes[*component].fill(first, &blocks[..rows * across], quants[*component]);
        }
    }
}
