//! A model's forward pass as a flat list of ops, and what runs it.
//!
//! Models *build* plans; a backend *links* a plan to its memory and runs it. Nothing is allocated, inferred or rewritten
//! in between, so the list that is printed, costed and traced is the list that runs.

mod bisect;

pub use bisect::{Difference, bisect};

use std::fmt::{self, Display, Write};
use std::time::Duration;

use anyhow::Result;
use bytemuck::Pod;

use crate::kernel::Cost;
use crate::mem::{Buf, DType, Source, Span};
use crate::ops::Op;

/// Where a step stands in the model, for example `llm/17/attn/rope_kv`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label(String);

impl Label {
    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One launch.
#[derive(Clone, Debug)]
pub struct Step {
    /// What to compute and where.
    pub op: Op,
    /// Where it stands in the model.
    pub label: Label,
}

/// A flat list of launches over byte offsets into the four regions.
#[derive(Clone, Debug)]
pub struct Plan {
    dtype: DType,
    /// The open scopes, each with a slash behind it.
    scopes: String,
    steps: Vec<Step>,
}

impl Plan {
    /// An empty plan whose activations are stored as `dtype`.
    pub fn new(dtype: DType) -> Plan {
        Plan { dtype, scopes: String::new(), steps: Vec::new() }
    }

    /// Append a launch, labelled by the open scopes and the name of the op.
    pub fn push(&mut self, op: impl Into<Op>) {
        let op = op.into();
        let label = [&self.scopes, op.name()].concat();
        self.steps.push(Step { op, label: Label(label) });
    }

    /// Label everything that `f` pushes with `name` as well.
    pub fn scope(&mut self, name: impl Display, f: impl FnOnce(&mut Plan)) {
        let outside = self.scopes.len();
        let _ = write!(self.scopes, "{name}/");
        f(self);
        self.scopes.truncate(outside);
    }

    /// The launches, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Stored type of the activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes and operations of the whole plan.
    pub fn cost(&self) -> Cost {
        self.steps.iter().map(|s| s.op.cost()).sum()
    }

    /// A plan of step `i` alone.
    fn only(&self, i: usize) -> Plan {
        Plan { dtype: self.dtype, scopes: String::new(), steps: vec![self.steps[i].clone()] }
    }

    /// The list in Graphviz' language: a chain of launches, clustered by their first scope.
    pub fn to_dot(&self) -> String {
        let mut dot = String::from("digraph plan {\n  rankdir=TB;\n  node [shape=box, fontname=\"monospace\"];\n");
        for (i, step) in self.steps.iter().enumerate() {
            let cost = step.op.cost();
            let _ = writeln!(dot, "  s{i} [label=\"{}\\n{} B, {} flop\"];", step.label, cost.bytes, cost.flops);
        }
        for i in 1..self.steps.len() {
            let _ = writeln!(dot, "  s{} -> s{i};", i - 1);
        }
        dot.push_str("}\n");
        dot
    }
}

/// A tensor of a checkpoint and where it goes. Float types that differ are converted.
#[derive(Clone, Debug)]
pub struct Fill {
    /// Where it goes.
    pub dst: Span,
    /// What goes there.
    pub src: Source,
    /// `dst` is a whole buffer that is only ever read, so a host backend may read `src` where it lies.
    pub in_place: bool,
}

/// What runs plans: the CPU with the references, a GPU with the kernels.
pub trait Backend {
    /// A linked plan: it can be run any number of times and reads what changes between runs from memory.
    type Exec;

    /// Bytes on their way to the host.
    type Pending;

    /// A point in the work of this backend.
    type Mark;

    /// Bind a plan to this backend's memory.
    fn link(&self, plan: &Plan) -> Result<Self::Exec>;

    /// Prepare a linked plan for many runs: where launches cost time, they are recorded and enqueued as one. Does not
    /// change what a run computes.
    fn capture(&self, exec: &mut Self::Exec) -> Result<()>;

    /// Run a linked plan. Work may still be in flight when this returns; [`Backend::read`] and [`Backend::wait`] wait for it.
    ///
    /// With `marks` the launches run one by one, also those of a recorded plan, and a mark is left before the first of them
    /// and behind each. No launch begins before the one before it has ended.
    fn run(&self, exec: &mut Self::Exec, marks: Option<&mut Vec<Self::Mark>>) -> Result<()>;

    /// A point behind everything that was enqueued, and before everything that will be.
    fn mark(&self) -> Result<Self::Mark>;

    /// Time between two points, the earlier first; `None` while the later one has not been reached.
    fn elapsed(&self, from: &Self::Mark, to: &Self::Mark) -> Result<Option<Duration>>;

    /// Tell a profiler that is attached to this process where what it should look at begins, and where it ends.
    fn profile(&self, on: bool) -> Result<()>;

    /// Copy `src` to the first `src.len()` elements of `dst`, after everything that was enqueued before. `src` may be reused
    /// at once.
    fn write<T: Pod>(&self, dst: Buf<T>, src: &[T]) -> Result<()>;

    /// Copy the first `dst.len()` elements of `src` to the host, and wait for everything that was enqueued before.
    fn read<T: Pod>(&self, src: Buf<T>, dst: &mut [T]) -> Result<()>;

    /// Copy `src` to the host after everything that was enqueued before, and do not wait for it.
    fn enqueue_read(&self, src: Buf<u8>) -> Result<Self::Pending>;

    /// The bytes of a [`Backend::enqueue_read`]. Waits for what was enqueued before it, and for nothing after it.
    fn wait(&self, pending: Self::Pending) -> Result<Vec<u8>>;

    /// The bytes at `span`.
    fn snapshot(&self, span: Span) -> Result<Vec<u8>>;

    /// Overwrite the bytes at `span` with those of a [`Backend::snapshot`].
    fn restore(&self, span: Span, bytes: &[u8]) -> Result<()>;

    /// Put tensors of a checkpoint in their places. `progress` is called with the bytes of what is in its place.
    fn upload(&self, fills: &[Fill], progress: &mut dyn FnMut(u64)) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Layout, Region};
    use crate::ops::RmsNorm;

    #[test]
    fn labels_are_the_open_scopes_and_the_op() {
        let mut l = Layout::new(Region::Scratch, DType::F32);
        let norm = RmsNorm { y: l.take(8), x: l.take(8), weight: l.take(4), rows: 2, cols: 4, eps: 1e-5 };
        let mut plan = Plan::new(DType::F32);
        plan.scope("llm", |p| p.scope(17, |p| p.push(norm)));
        plan.push(norm);
        let labels: Vec<_> = plan.steps().iter().map(|s| s.label.as_str()).collect();
        assert_eq!(labels, ["llm/17/rmsnorm", "rmsnorm"]);
        assert_eq!(plan.cost().bytes, 2 * (8 + 8 + 4) * 4);
        assert!(plan.to_dot().contains("s0 -> s1"));
    }
}
