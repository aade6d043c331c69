//! RandomFill on a GPU: the same bits as the reference.

use std::path::Path;

use ocelli::backend::{Cpu, cuda::Cuda};
use ocelli::engine::{Checkpoint, LoadFormat, Options, Runner};
use ocelli::mem::{DType, Region};
use ocelli::models::{Limits, Placement};
use ocelli::ops::RandomFill;
use ocelli::plan::Backend;

use crate::parity::Stage;
use crate::{gpu, parity, timing};

fn check(dtype: DType, len: usize, shift: usize, seed: u64, mean: f32, spread: f32) {
    let mut stage = Stage::new(dtype);
    let whole = stage.take(Region::Weights, len + shift + 3);
    let pair = stage.open();
    pair.floats(whole, &vec![9.0; whole.len()]);
    let y = whole.slice(shift..shift + len);
    let written = pair.run(RandomFill { y, seed, mean, spread }).remove(0);
    assert_eq!(written.found, written.expected, "{dtype} {len} elements, shift {shift}");
    // Neither in front of it nor behind.
    for around in [whole.slice(0..shift), whole.slice(shift + len..whole.len())] {
        let found = parity::decode(dtype, &pair.cuda.snapshot(around.span()).unwrap());
        assert!(found.iter().all(|v| *v == 9.0), "{dtype} {len} elements, shift {shift}");
    }
}

#[test]
fn the_kernel_has_the_references_bits() {
    let Some(_device) = gpu::device() else { return };
    for dtype in [DType::F16, DType::Bf16] {
        for len in [1, 7, 8, 9, 2047, 2048, 2049, 100_003, 4096 * 1024] {
            for shift in [0, 3, 8] {
                check(dtype, len, shift, 0xfeed_0123_4567_89ab ^ len as u64, 0.0, 0.02 * 3f32.sqrt());
            }
        }
        // Subnormal in f16, and a sum that rounds every time.
        check(dtype, 4096, 0, 5, 0.0, 1e-6);
        check(dtype, 4096, 0, 6, 1.0, 0.0866);
        check(dtype, 4096, 0, u64::MAX, -100.0, 0.3);
    }
}

/// Every tensor of a model, in one plan.
#[test]
fn a_model_of_random_weights_is_the_same_on_both() {
    let Some(_device) = gpu::device() else { return };
    let limits = Limits {
        max_model_len: 64,
        max_num_seqs: 1,
        max_num_batched_tokens: 64,
        max_logit_rows: 1,
        max_tiles: 1,
        kept_tiles: 0,
        kv_blocks: 4,
    };
    for dtype in [DType::F16, DType::Bf16] {
        let options = Options { load_format: LoadFormat::Dummy, dtype: Some(dtype), ..Options::default() };
        let checkpoint = Checkpoint::open(Path::new("tests/goldens/llava-tiny-mha"), &options).unwrap();
        let [a, b] = [(); 2].map(|()| checkpoint.build(limits).unwrap());
        let (cpu, cuda) = (Cpu::new(a.regions()).unwrap(), Cuda::new(0, b.regions(), 0xff).unwrap());
        let (cpu, cuda) = (Runner::new(cpu, a, |_| ()).unwrap(), Runner::new(cuda, b, |_| ()).unwrap());
        let placed = cpu.model().placements().iter().map(|p: &Placement| p.dst);
        for span in placed.clone() {
            assert!(cpu.backend().snapshot(span).unwrap() == cuda.backend().snapshot(span).unwrap(), "{span:?}");
        }
        println!("{dtype}: {} placements with the same bits", placed.count());
    }
}

#[test]
fn what_it_takes() {
    let Some(_device) = gpu::device() else { return };
    for (rows, cols) in [(1, 4096), (4096, 4096), (32_064, 4096)] {
        let mut stage = Stage::new(DType::Bf16);
        let y = stage.take(Region::Weights, rows * cols);
        let pair = stage.open();
        let op = RandomFill { y, seed: 1, mean: 0.0, spread: 0.02 };
        timing::print(&pair.cuda, DType::Bf16, &format!("{rows}x{cols}"), op);
    }
}
