//! The table of `ocelli kernels` on the CPU: every edge can be laid out and computed.

use ocelli::backend::Cpu;
use ocelli::mem::{DType, Region, Span};
use ocelli::plan::{Backend, Plan};
use ocelli::workbench::{Bed, Case, Numbers, Size, cases};

/// What the reference writes, as bytes, in memory whose other bytes are `fill`.
fn written(case: &Case, dtype: DType, fill: u8) -> Vec<(Span, Vec<u8>)> {
    let mut bed = Bed::new(dtype, Numbers::Exact);
    let op = case.build(&mut bed);
    let cpu = Cpu::new(bed.bytes()).expect("host memory");
    for region in Region::ALL {
        let image = bed.image(region, fill);
        cpu.restore(Span { region, dtype: DType::U8, byte: 0, len: image.len() as u64 }, &image).expect("an image");
    }
    let mut plan = Plan::new(dtype);
    plan.push(op);
    let mut exec = cpu.link(&plan).expect("a linked plan");
    cpu.run(&mut exec, None).expect("a run");
    op.writes().into_iter().map(|span| (span, cpu.snapshot(span).expect("a snapshot"))).collect()
}

#[test]
fn a_reference_reads_and_writes_nothing_but_what_a_case_holds() {
    for case in cases::all().iter().filter(|case| case.size == Size::Edge) {
        for dtype in [DType::F16, DType::Bf16] {
            let what = format!("{} {} {dtype}", case.op, case.name);
            let found = written(case, dtype, 0xff);
            assert!(found.iter().any(|(span, _)| span.len > 0), "{what} writes nothing");
            // A NaN that was read, or a place that was not written, would differ.
            assert_eq!(found, written(case, dtype, 0), "{what}");
            for (span, bytes) in found.iter().filter(|(span, _)| span.dtype.is_float()) {
                assert!(finite(span.dtype, bytes), "{what}: {span:?} holds something that is not finite");
            }
        }
    }
}

fn finite(dtype: DType, bytes: &[u8]) -> bool {
    // All ones in the exponent is infinite or not a number.
    let exponent: u16 = match dtype {
        DType::F16 => 0x7c00,
        // The upper half of an f32.
        _ => 0x7f80,
    };
    let upper = bytes.chunks_exact(dtype.size()).map(|b| u16::from_le_bytes([b[b.len() - 2], b[b.len() - 1]]));
    upper.into_iter().all(|bits| bits & exponent != exponent)
}
