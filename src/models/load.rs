//! From names in a checkpoint to places in the weights region.

use std::borrow::Cow;

use anyhow::Result;
use bytemuck::Pod;

use crate::mem::{Act, Buf, DType, Element, Layout, Region, Source, Span};
use crate::plan::Fill;
use crate::weights::{Wants, Weights};

/// A tensor of a checkpoint, or a table, and where it goes.
pub struct Placement {
    /// Where it goes.
    pub dst: Span,
    /// Whether it is a whole buffer, which a host backend may read where it lies in the file.
    pub in_place: bool,
    content: Content,
}

enum Content {
    Tensor(Source),
    /// Computed when it is asked for: a long context makes a long table, and first the memory is planned.
    Table(Box<dyn Fn() -> Source + Send + Sync>),
}

impl Placement {
    /// What goes there.
    pub fn source(&self) -> Source {
        match &self.content {
            Content::Tensor(source) => source.clone(),
            Content::Table(compute) => compute(),
        }
    }

    /// The placement as a backend takes it.
    pub fn fill(&self) -> Fill {
        Fill { dst: self.dst, src: self.source(), in_place: self.in_place }
    }

    /// Whether a host backend that computes in the type of `dst` reads it from the mapped file, without a copy.
    pub fn is_mapped(&self) -> bool {
        matches!(&self.content, Content::Tensor(source) if self.in_place && source.dtype() == self.dst.dtype)
    }
}

/// Asks for tensors by name and shape, and gives each a place.
///
/// A tensor that is missing or has another shape is noted, and its place handed out all the same, so that one error
/// names them all.
pub(super) struct Loader<'a> {
    wants: Wants<'a>,
    layout: Layout,
    placements: Vec<Placement>,
}

impl<'a> Loader<'a> {
    /// `canonical` turns a stored name into the one that is asked for.
    pub fn new(weights: &'a Weights, dtype: DType, canonical: fn(&'a str) -> Cow<'a, str>) -> Result<Loader<'a>> {
        let wants = Wants::new(weights, canonical)?;
        Ok(Loader { wants, layout: Layout::new(Region::Weights, dtype), placements: Vec::new() })
    }

    /// One tensor in a buffer of its own.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Buf<Act> {
        let buf = self.layout.take(shape.iter().product());
        self.place(buf, name, shape, true);
        buf
    }

    /// Tensors of `[rows, cols]` each, one after another in one buffer, so that one GEMM reads them all.
    pub fn stacked(&mut self, parts: &[(String, usize)], cols: usize) -> Buf<Act> {
        let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        let buf = self.layout.take(rows * cols);
        let mut first = 0;
        for (name, rows) in parts {
            let part = buf.slice(first * cols..(first + rows) * cols);
            self.place(part, name, &[*rows, cols], false);
            first += rows;
        }
        buf
    }

    /// Vectors of the given lengths, one after another in one buffer: the biases of a fused linear layer.
    pub fn joined(&mut self, parts: &[(String, usize)]) -> Buf<Act> {
        let buf = self.layout.take(parts.iter().map(|(_, len)| len).sum());
        let mut first = 0;
        for (name, len) in parts {
            self.place(buf.slice(first..first + len), name, &[*len], false);
            first += len;
        }
        buf
    }

    /// A table of `len` values, computed when it is uploaded.
    pub fn table<T: Pod + Element + Send + Sync>(
        &mut self,
        len: usize,
        compute: impl Fn() -> Vec<T> + Send + Sync + 'static,
    ) -> Buf<T> {
        let buf: Buf<T> = self.layout.take(len);
        let content = Content::Table(Box::new(move || Source::from_vec(compute())));
        self.placements.push(Placement { dst: buf.span(), in_place: true, content });
        buf
    }

    /// Whether the checkpoint has this tensor.
    pub fn has(&self, name: &str) -> bool {
        self.wants.has(name)
    }

    /// Tensors whose canonical name `unused` accepts are known and not needed.
    pub fn ignore(&mut self, unused: impl Fn(&str) -> bool) {
        self.wants.ignore(unused);
    }

    fn place(&mut self, buf: Buf<Act>, name: &str, shape: &[usize], in_place: bool) {
        if let Some(source) = self.wants.want(name, shape) {
            self.placements.push(Placement { dst: buf.span(), in_place, content: Content::Tensor(source) });
        }
    }

    /// Everything that was placed, the layout, and warnings; or one error about all that is missing or mismatched.
    pub fn finish(self) -> Result<(Vec<Placement>, Layout, Vec<String>)> {
        let warnings = self.wants.finish(false)?;
        Ok((self.placements, self.layout, warnings))
    }
}
