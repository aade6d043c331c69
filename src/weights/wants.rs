//! What a model asks of a checkpoint, and everything that is wrong with the answer at once.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write};

use anyhow::{Result, bail, ensure};

use super::names::quoted;
use super::{Tensor, Weights};
use crate::mem::Source;

/// Most items of a kind that a message lists before it only counts.
const LISTED: usize = 10;

/// Collects a model's wishes for tensors. A wish that fails is remembered, not returned, so that one error tells every
/// tensor that is missing, has another shape or a type that cannot be used; and what no wish touched is known too.
pub struct Wants<'a> {
    weights: &'a Weights,
    /// Canonical name to stored name.
    names: BTreeMap<Cow<'a, str>, &'a str>,
    /// Canonical names that were wanted or may stay unused.
    settled: BTreeSet<Cow<'a, str>>,
    missing: Vec<String>,
    misshapen: Vec<String>,
    untyped: Vec<String>,
}

impl<'a> Wants<'a> {
    /// Starts on `weights`, whose stored names `canonical` translates into those that [`want`](Self::want) is asked
    /// for; pass `Cow::Borrowed` when they are the same.
    ///
    /// # Errors
    /// When two stored names mean the same tensor.
    pub fn new(weights: &'a Weights, canonical: impl Fn(&'a str) -> Cow<'a, str>) -> Result<Wants<'a>> {
        let mut names = BTreeMap::new();
        for (stored, _) in weights.tensors() {
            let name = canonical(stored);
            if let Some(first) = names.insert(name, stored) {
                bail!(
                    "tensors {} and {} are two spellings of one tensor; the checkpoint mixes two layouts",
                    quoted(first),
                    quoted(stored)
                );
            }
        }
        Ok(Wants {
            weights,
            names,
            settled: BTreeSet::new(),
            missing: Vec::new(),
            misshapen: Vec::new(),
            untyped: Vec::new(),
        })
    }

    /// The elements of the tensor `name`, which must have exactly `shape` and a float type that a model can compute in.
    /// `None` when it has not; [`finish`](Self::finish) then says why. Types may differ from tensor to tensor: whoever
    /// uploads converts to the plan's type.
    pub fn want(&mut self, name: &str, shape: &[usize]) -> Option<Source> {
        let Some((canonical, stored)) = self.names.get_key_value(name) else {
            self.missing.push(name.into());
            return None;
        };
        self.settled.insert(canonical.clone());
        let tensor = self.weights.get(stored)?;
        if tensor.shape != shape {
            self.misshapen.push(format!("{} is {:?}, the model needs {shape:?}", quoted(stored), tensor.shape));
            return None;
        }
        let source = self.float(tensor);
        if source.is_none() {
            self.untyped.push(format!("{} is {}", quoted(stored), tensor.stored));
        }
        source
    }

    /// Whether a tensor of this canonical name is stored.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// Lets every tensor whose canonical name satisfies `unused` stay unused without a word.
    pub fn ignore(&mut self, unused: impl Fn(&str) -> bool) {
        self.settled.extend(self.names.keys().filter(|name| unused(name)).cloned());
    }

    /// Ends the wishes. What is stored but neither wanted nor ignored comes back as a warning.
    ///
    /// # Errors
    /// When a wish failed, naming all that did (the first ten of each kind, then a count); with `strict` also when a
    /// tensor was not asked for.
    pub fn finish(self, strict: bool) -> Result<Vec<String>> {
        let extra: Vec<_> =
            self.names.iter().filter(|(name, _)| !self.settled.contains(*name)).map(|(_, s)| quoted(s)).collect();
        let mut problems = String::new();
        section(&mut problems, &self.missing, "missing from the checkpoint");
        section(&mut problems, &self.misshapen, "of another shape than config.json says");
        section(&mut problems, &self.untyped, "of a type that cannot be used (F32, F16 and BF16 can)");
        let failed = !problems.is_empty();
        if failed || strict {
            section(&mut problems, &extra, "in the checkpoint that the model does not know");
        }
        ensure!(problems.is_empty(), "the checkpoint does not fit its config.json:{problems}");
        let mut warning = String::new();
        section(&mut warning, &extra, "in the checkpoint that the model does not know");
        Ok(if warning.is_empty() { Vec::new() } else { vec![warning.trim_start().into()] })
    }

    fn float(&self, tensor: &Tensor) -> Option<Source> {
        self.weights.source(tensor).filter(|source| source.dtype().is_float())
    }
}

/// One kind of problem as a line of its own.
fn section(text: &mut String, items: &[impl Display], kind: &str) {
    if items.is_empty() {
        return;
    }
    let plural = if items.len() == 1 { "tensor" } else { "tensors" };
    // Writing to a string cannot fail.
    let _ = write!(text, "\n  {} {plural} {kind}: ", items.len());
    for (i, item) in items.iter().take(LISTED).enumerate() {
        let _ = write!(text, "{}{item}", if i == 0 { "" } else { "; " });
    }
    if items.len() > LISTED {
        let _ = write!(text, "; and {} more", items.len() - LISTED);
    }
}
