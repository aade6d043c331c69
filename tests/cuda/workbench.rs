//! The table of `ocelli kernels` on a GPU: every kernel against its reference, whatever its memory held before.

use ocelli::mem::DType;
use ocelli::workbench::check::Checker;
use ocelli::workbench::{Case, Size, cases};

use crate::gpu;

fn check(wanted: impl Fn(Size) -> bool) {
    if gpu::device().is_none() {
        return;
    }
    let mut cases: Vec<Case> = cases::all();
    cases.retain(|case| wanted(case.size));
    let checker = Checker::new(0, &cases).expect("memory for the cases");
    for case in &cases {
        for dtype in [DType::F16, DType::Bf16] {
            let what = format!("{} {} {dtype}", case.op, case.name);
            // NaN and zeros.
            let verdicts = checker.check(case, dtype, &[0xff, 0]).expect(&what);
            let [nan, zeros] = &verdicts[..] else { panic!("{what}: {} verdicts", verdicts.len()) };
            assert_eq!((&nan.fault, &zeros.fault), (&None, &None), "{what}");
            assert_eq!(nan.hash, zeros.hash, "{what}: the bits depend on what unwritten memory held");
            println!("{what}: {:.1} % of the tolerance used", 100.0 * nan.used);
        }
    }
}

#[test]
fn edges_are_right_whatever_memory_held_before() {
    check(|size| size == Size::Edge);
}

#[test]
fn the_sizes_of_a_real_model_are_right_whatever_memory_held_before() {
    check(|size| size == Size::Real);
}
