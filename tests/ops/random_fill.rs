//! RandomFill: the published generator's bits, scaled; and numbers that look as they should.

use ocelli::mem::{Act, DType, Region};
use ocelli::ops::RandomFill;

use crate::FLOATS;
use crate::bed::Bed;
use crate::bound::{Account, Exact, SLACK, U};

const FILL: [(u64, f32, f32); 3] = [(0, 0.0, 1.0), (0xfeed_0123_4567_89ab, 1.0, 0.05), (7, -3.0, 0.02)];

/// Random bits of the eight elements from `8 * i`; the known answers are a test of the library.
fn philox(seed: u64, i: u64) -> [u32; 4] {
    let (mut c, mut k) = ([i as u32, (i >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    for _ in 0..10 {
        let (a, b) = (u64::from(c[0]) * 0xD251_1F53, u64::from(c[2]) * 0xCD9E_8D57);
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// The middle of one of 65536 cells of (-1, 1), scaled and moved. f32 rounds the product and the sum.
fn element(seed: u64, mean: f32, spread: f32, i: usize) -> Exact {
    let word = philox(seed, i as u64 / 8)[i % 8 / 2];
    let cell = f64::from(if i.is_multiple_of(2) { word & 0xffff } else { word >> 16 });
    let scaled = f64::from(spread) * ((2.0 * cell + 1.0) / 65536.0 - 1.0);
    let value = f64::from(mean) + scaled;
    Exact { value, error: (scaled.abs() + value.abs()) * U * SLACK }
}

#[test]
fn elements_are_the_generators_bits_scaled() {
    for dtype in FLOATS {
        let mut account = Account::new("random_fill", dtype);
        for (seed, mean, spread) in FILL {
            for len in [1, 7, 8, 9, 1000] {
                let mut bed = Bed::new(dtype, 3);
                let whole = bed.random::<Act>(Region::Weights, len + 5, 1.0);
                let y = whole.slice(3..len + 3);
                let ran = bed.run(RandomFill { y, seed, mean, spread });
                let exact: Vec<Exact> = (0..len).map(|i| element(seed, mean, spread, i)).collect();
                account.check(format!("{len} from {seed}"), &ran.output(y), &exact);
                assert!(ran.untouched(whole, 0..3) && ran.untouched(whole, len + 3..len + 5));
            }
        }
    }
}

/// Of n numbers with standard deviation s, the mean is off by s / sqrt(n) and the variance by about s^2 / sqrt(n); five
/// times as much is one case in a million, and the numbers are the same in every run.
#[test]
fn mean_deviation_and_neighbours_are_those_of_independent_uniform_numbers() {
    let n = 1 << 16;
    let (mean, spread) = (0.5f32, 0.02 * 3f32.sqrt());
    let mut bed = Bed::new(DType::F32, 4);
    let (a, b) = (bed.random::<Act>(Region::Weights, n, 1.0), bed.random::<Act>(Region::Weights, n, 1.0));
    let fill = |y, seed| RandomFill { y, seed, mean, spread }.into();
    let ran = bed.run_all(&[fill(a, 1), fill(b, 2)]);
    let centred = |y| -> Vec<f64> { ran.output(y).iter().map(|v| (v - 0.5) / 0.02).collect() };
    let (a, b) = (centred(a), centred(b));
    let average = |products: Vec<f64>| products.iter().sum::<f64>() / products.len() as f64;
    let five = 5.0 / (n as f64).sqrt();
    assert!(average(a.clone()).abs() < five);
    assert!((average(a.iter().map(|v| v * v).collect()) - 1.0).abs() < five);
    assert!(average(a.iter().zip(&a[1..]).map(|(v, w)| v * w).collect()).abs() < five, "neighbours");
    assert!(average(a.iter().zip(&b).map(|(v, w)| v * w).collect()).abs() < five, "seeds");
    assert!(a.iter().all(|v| v.abs() <= 3f64.sqrt()));
}
