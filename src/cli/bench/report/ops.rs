//! Sums over launches: what each op took, moved and computed, and the least that it could have taken.

use super::svg::Shape;
use super::trace::{Launch, Roof};

/// The launches of an op, summed up.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Total {
    pub op: String,
    pub launches: usize,
    pub us: f64,
    pub bytes: f64,
    pub flops: f64,
    /// Sum of the floors of the launches, each of which is bound by its own ceiling.
    pub floor_us: Option<f64>,
}

impl Total {
    /// 10^9 bytes a second.
    pub fn gb_s(&self) -> f64 {
        self.bytes / self.us / 1e3
    }

    /// 10^12 operations a second.
    pub fn tflop_s(&self) -> f64 {
        self.flops / self.us / 1e6
    }

    /// Operations a byte.
    pub fn intensity(&self) -> f64 {
        self.flops / self.bytes
    }

    /// Share of the nearer ceiling.
    pub fn percent(&self) -> Option<f64> {
        self.floor_us.map(|floor| 100.0 * floor / self.us)
    }
}

/// One sum an op, the longest first.
pub(super) fn totals<'a>(launches: impl Iterator<Item = &'a Launch>, roof: Option<Roof>) -> Vec<Total> {
    let mut totals: Vec<Total> = Vec::new();
    for Launch { op, bytes, flops, us } in launches {
        let floor = roof.map(|roof| roof.floor_us(*bytes, *flops));
        let at = totals.iter().position(|total| total.op == *op).unwrap_or_else(|| {
            let none = roof.map(|_| 0.0);
            totals.push(Total { op: op.clone(), launches: 0, us: 0.0, bytes: 0.0, flops: 0.0, floor_us: none });
            totals.len() - 1
        });
        let total = &mut totals[at];
        total.launches += 1;
        total.us += us;
        total.bytes += bytes;
        total.flops += flops;
        total.floor_us = total.floor_us.zip(floor).map(|(sum, floor)| sum + floor);
    }
    totals.sort_by(|a, b| b.us.total_cmp(&a.us));
    totals
}

/// The colour of an op, the same in every chart. Ops that stand side by side in a plan have colours of their own.
pub(super) fn colour(op: &str) -> &'static str {
    match op {
        "gemm" => "c-gemm",
        "gemv" => "c-gemv",
        "paged_decode" | "paged_prefill" => "c-paged",
        "dense_attention" => "c-dense",
        "rmsnorm" | "layer_norm" => "c-norm",
        "rope_kv" => "c-rope",
        "patch_embed" | "resize" => "c-pixels",
        _ => "c-rest",
    }
}

/// The shape of a kind of plan.
pub(super) fn shape(kind: &str) -> Shape {
    match kind {
        "decode" => Shape::Circle,
        "prefill" => Shape::Square,
        "encode" => Shape::Diamond,
        _ => Shape::Triangle,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Op;

    fn launch(op: &str, bytes: f64, flops: f64, us: f64) -> Launch {
        Launch { op: op.into(), bytes, flops, us }
    }

    #[test]
    fn an_op_is_summed_and_held_to_the_ceilings_of_its_launches() {
        let roof = Roof { read: 4e12, matrix: 8e14 };
        // Two products, one of which is bound by bytes (1 us) and the other by operations (10 us).
        let launches = [launch("sample", 4e6, 0.0, 2.0), launch("gemm", 4e6, 8e6, 2.0), launch("gemm", 4e6, 8e9, 20.0)];
        let totals = totals(launches.iter(), Some(roof));
        assert_eq!(totals.iter().map(|t| t.op.as_str()).collect::<Vec<_>>(), ["gemm", "sample"]);
        let gemm = &totals[0];
        assert_eq!((gemm.launches, gemm.us, gemm.floor_us, gemm.percent()), (2, 22.0, Some(11.0), Some(50.0)));
        assert!(
            (gemm.gb_s() - 8e6 / 22e-6 / 1e9).abs() < 1e-9 && (gemm.tflop_s() - 8.008e9 / 22e-6 / 1e12).abs() < 1e-9
        );
        assert_eq!(gemm.intensity(), 1001.0);
        assert_eq!(super::totals(launches.iter(), None)[0].percent(), None);
    }

    #[test]
    fn ops_that_take_time_in_one_plan_have_colours_of_their_own() {
        for plan in [
            &["gemm", "gemv", "paged_decode", "rmsnorm", "rope_kv", "sample"][..],
            &["gemm", "gemv", "paged_prefill", "rmsnorm", "rope_kv", "sample"],
            &["gemm", "dense_attention", "layer_norm", "patch_embed", "gather"],
        ] {
            assert!(plan.iter().all(|op| Op::NAMES.contains(op)), "{plan:?}");
            let mut colours: Vec<_> = plan.iter().map(|op| colour(op)).collect();
            colours.sort_unstable();
            colours.dedup();
            assert_eq!(colours.len(), plan.len());
        }
    }
}
