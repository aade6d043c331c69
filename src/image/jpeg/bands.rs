//! A picture that one scan codes, band by band: while the codes of one are read, the samples of the one before are computed.
//! So the picture takes little longer than its codes, which nothing but one thread can read, and few coefficients are kept.

use std::ops::Range;

use super::frame::Frame;
use super::huffman::Block;
use super::planes::Plane;
use super::scan::{Break, Scan};

/// Blocks of a band, to the next row of MCUs: some tenths of a millisecond.
const BAND: usize = 2048;

/// Coefficients of some rows of MCUs, for each component of the scan.
struct Band {
    rows: Range<u32>,
    blocks: Vec<Vec<Block>>,
}

/// Reads all of `scan`, whose components are those of `order`, into `planes`.
pub(super) fn decode(scan: &mut Scan, frame: &Frame, order: &[usize], planes: &mut [Plane]) -> Result<(), Break> {
    let shapes = scan.shapes();
    let of_row: usize = shapes.iter().map(|(down, across)| down * across).sum();
    let each = BAND.div_ceil(of_row.max(1)) as u32;
    let empty = || {
        let blocks = shapes.iter().map(|(down, across)| vec![[0; 64]; each as usize * down * across]).collect();
        Band { rows: 0..0, blocks }
    };
    // In the pool from here on, where a pair of jobs costs next to nothing.
    rayon::scope(|_| {
        let (mut next, mut ready) = (empty(), empty());
        for first in (0..scan.rows()).step_by(each as usize) {
            next.rows = first..scan.rows().min(first + each);
            let (read, ()) = rayon::join(|| next.read(scan), || ready.transform(frame, order, &shapes, planes));
            read?;
            std::mem::swap(&mut next, &mut ready);
        }
        ready.transform(frame, order, &shapes, planes);
        Ok(())
    })
}

impl Band {
    fn read(&mut self, scan: &mut Scan) -> Result<(), Break> {
        let mut blocks: Vec<&mut [Block]> = self.blocks.iter_mut().map(|blocks| &mut blocks[..]).collect();
        scan.read(self.rows.clone(), &mut blocks)
    }

    fn transform(&self, frame: &Frame, order: &[usize], shapes: &[(usize, usize)], planes: &mut [Plane]) {
        for ((blocks, &component), (down, across)) in self.blocks.iter().zip(order).zip(shapes) {
            let rows = self.rows.len() * down;
            if let Some(quant) = &frame.components[component].quant {
                planes[component].fill(self.rows.start as usize * down, &blocks[..rows * across], quant);
            }
        }
    }
}
