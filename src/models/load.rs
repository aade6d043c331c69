//! From names in a checkpoint to places in the weights region.

use std::borrow::Cow;

use anyhow::Result;
use bytemuck::Pod;

use crate::mem::{Act, Buf, DType, Element, Layout, Region, Source, Span};
use crate::ops::RandomFill;
use crate::plan::{Fill, Plan};
use crate::weights::{Wants, Weights};

/// Where the tensors of a model come from.
#[derive(Clone, Copy)]
pub enum Tensors<'a> {
    /// The files of a checkpoint.
    Stored(&'a Weights),
    /// Nowhere: every tensor that the model asks for is filled with random numbers, the same in every run.
    Random,
}

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
    Random(RandomFill),
}

impl Placement {
    /// What is copied there; `None` for [`Placement::random`].
    pub fn source(&self) -> Option<Source> {
        match &self.content {
            Content::Tensor(source) => Some(source.clone()),
            Content::Table(compute) => Some(compute()),
            Content::Random(_) => None,
        }
    }

    /// The op that fills it, for a tensor of [`Tensors::Random`].
    pub fn random(&self) -> Option<RandomFill> {
        match self.content {
            Content::Random(fill) => Some(fill),
            _ => None,
        }
    }

    /// The placement as a backend takes it; `None` for [`Placement::random`].
    pub fn fill(&self) -> Option<Fill> {
        Some(Fill { dst: self.dst, src: self.source()?, in_place: self.in_place })
    }

    /// Whether a host backend that computes in the type of `dst` reads it from the mapped file, without a copy.
    pub fn is_mapped(&self) -> bool {
        matches!(&self.content, Content::Tensor(source) if self.in_place && source.dtype() == self.dst.dtype)
    }
}

/// The plan that fills every tensor of [`Tensors::Random`]; `None` where there is none.
pub fn random_fills(placements: &[Placement]) -> Option<Plan> {
    let mut fills = placements.iter().filter_map(Placement::random).peekable();
    let mut plan = Plan::new(fills.peek()?.y.dtype());
    plan.scope("weights", |p| fills.for_each(|fill| p.push(fill)));
    Some(plan)
}

/// Asks for tensors by name and shape, and gives each a place.
///
/// A tensor that is missing or has another shape is noted, and its place handed out all the same, so that one error
/// names them all.
pub struct Loader<'a> {
    tensors: Asked<'a>,
    layout: Layout,
    placements: Vec<Placement>,
}

/// [`Tensors`] while a model asks for them.
enum Asked<'a> {
    Stored(Wants<'a>),
    Random,
}

impl<'a> Loader<'a> {
    /// `canonical` turns a stored name into the one that is asked for.
    ///
    /// # Errors
    /// When two stored names mean the same tensor.
    pub fn new(tensors: Tensors<'a>, dtype: DType, canonical: fn(&'a str) -> Cow<'a, str>) -> Result<Loader<'a>> {
        let tensors = match tensors {
            Tensors::Stored(weights) => Asked::Stored(Wants::new(weights, canonical)?),
            Tensors::Random => Asked::Random,
        };
        Ok(Loader { tensors, layout: Layout::new(Region::Weights, dtype), placements: Vec::new() })
    }

    /// Type that tensors have once they are loaded.
    pub fn dtype(&self) -> DType {
        self.layout.dtype()
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

    /// The one of two names under which a tensor that goes by both is stored; `None` if neither or both are. Random
    /// tensors go by the first, as transformers writes them.
    pub fn only_one_of<'n>(&self, first: &'n str, second: &'n str) -> Option<&'n str> {
        match &self.tensors {
            Asked::Stored(wants) => match (wants.has(first), wants.has(second)) {
                (true, false) => Some(first),
                (false, true) => Some(second),
                _ => None,
            },
            Asked::Random => Some(first),
        }
    }

    /// Tensors whose canonical name `unused` accepts are known and not needed.
    pub fn ignore(&mut self, unused: impl Fn(&str) -> bool) {
        if let Asked::Stored(wants) = &mut self.tensors {
            wants.ignore(unused);
        }
    }

    fn place(&mut self, buf: Buf<Act>, name: &str, shape: &[usize], in_place: bool) {
        let content = match &mut self.tensors {
            Asked::Stored(wants) => wants.want(name, shape).map(Content::Tensor),
            Asked::Random => Some(Content::Random(random(buf, name, shape))),
        };
        if let Some(content) = content {
            self.placements.push(Placement { dst: buf.span(), in_place, content });
        }
    }

    /// Everything that was placed, the layout, and warnings; or one error about all that is missing or mismatched.
    pub(super) fn finish(self) -> Result<(Vec<Placement>, Layout, Vec<String>)> {
        let warnings = match self.tensors {
            Asked::Stored(wants) => wants.finish(false)?,
            Asked::Random => Vec::new(),
        };
        Ok((self.placements, self.layout, warnings))
    }
}

/// Random numbers that keep activations in the range of a trained model's, so that nothing overflows in f16: a norm's
/// weights, which are the only vectors that are called so, near 1; all else with the standard deviation of 0.02 that
/// transformers initialises with. The name alone decides the seed, so a tensor has the same elements wherever it lies.
fn random(y: Buf<Act>, name: &str, shape: &[usize]) -> RandomFill {
    let norm = shape.len() == 1 && name.ends_with(".weight");
    let (mean, deviation) = if norm { (1.0, 0.05) } else { (0.0, 0.02) };
    RandomFill { y, seed: fnv1a(name), mean, spread: deviation * 3f32.sqrt() }
}

/// FNV-1a, 64 bits, over the bytes of `name`.
fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fills(ask: impl FnOnce(&mut Loader<'_>)) -> Vec<RandomFill> {
        let mut loader = Loader::new(Tensors::Random, DType::F16, Cow::Borrowed).unwrap();
        ask(&mut loader);
        let (placements, ..) = loader.finish().unwrap();
        placements.iter().filter_map(Placement::random).collect()
    }

    #[test]
    fn a_random_tensor_depends_on_its_name_and_not_on_its_place() {
        let alone = fills(|l| _ = l.tensor("b.weight", &[4, 8]));
        let behind = fills(|l| _ = l.stacked(&[("a.weight".into(), 2), ("b.weight".into(), 4)], 8));
        assert_eq!(alone[0].seed, behind[1].seed);
        assert_ne!(behind[0].seed, behind[1].seed);
        assert_eq!(behind[1].y.span().byte, 2 * 8 * 2);
    }

    #[test]
    fn norms_are_near_one_and_all_else_near_zero() {
        let of = |name: &str, shape: &[usize]| fills(|l| _ = l.tensor(name, shape))[0];
        let norm = of("norm.weight", &[8]);
        assert!(norm.mean == 1.0 && norm.spread < 0.1);
        for (name, shape) in [("fc.weight", &[8, 8][..]), ("norm.bias", &[8]), ("class_embedding", &[8])] {
            let fill = of(name, shape);
            assert_eq!((fill.mean, fill.spread), (0.0, 0.02 * 3f32.sqrt()), "{name}");
        }
    }

    #[test]
    fn without_random_tensors_there_is_no_plan_for_them() {
        let mut loader = Loader::new(Tensors::Random, DType::F16, Cow::Borrowed).unwrap();
        loader.table(3, || vec![1i32, 2, 3]);
        let (tables, ..) = loader.finish().unwrap();
        assert!(random_fills(&tables).is_none() && tables[0].source().is_some());
    }
}
