//! Rounding, and the account of how much of a bound was used.

use std::fmt::Display;

use ocelli::mem::DType;

/// Unit roundoff of f32.
pub const U: f64 = 1.0 / (1 << 24) as f64;

/// Factor of every bound for the terms of second order, which are below a hundredth of the first wherever the bound
/// is below a hundredth of the value.
pub const SLACK: f64 = 1.01;

/// Spacing of the numbers of `dtype` around `x`.
pub fn ulp(dtype: DType, x: f64) -> f64 {
    let (digits, smallest) = match dtype {
        DType::F32 => (24, -126),
        DType::F16 => (11, -14),
        DType::Bf16 => (8, -126),
        DType::I32 | DType::U8 => panic!("{dtype} is not a float type"),
    };
    let exponent = ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    2f64.powi(exponent.max(smallest) + 1 - digits)
}

/// `x` rounded to `dtype`, to nearest with ties to even. Values here never overflow.
pub fn round(dtype: DType, x: f64) -> f64 {
    let spacing = ulp(dtype, x);
    (x / spacing).round_ties_even() * spacing
}

/// An element of an oracle: its exact value, and how far f32 arithmetic may go from it before the result is stored.
#[derive(Clone, Copy, Debug)]
pub struct Exact {
    pub value: f64,
    pub error: f64,
}

/// The worst use of the bound by one op: an element may be off by `error` and half an ulp of the stored type.
pub struct Account {
    name: String,
    dtype: DType,
    checked: usize,
    of_bound: f64,
    of_error: f64,
}

impl Account {
    /// For results of `name` that are stored as `dtype`.
    pub fn new(name: impl Display, dtype: DType) -> Account {
        Account { name: name.to_string(), dtype, checked: 0, of_bound: 0.0, of_error: 0.0 }
    }

    /// Hold `found` to `exact`, element by element.
    pub fn check(&mut self, case: impl Display, found: &[f64], exact: &[Exact]) {
        assert_eq!(found.len(), exact.len(), "{} {} {case}: wrong length", self.name, self.dtype);
        for (i, (&found, &Exact { value, error })) in found.iter().zip(exact).enumerate() {
            let off = (found - value).abs();
            let half_ulp = ulp(self.dtype, value.abs() + error) / 2.0;
            let bound = error + half_ulp;
            assert!(
                off <= bound,
                "{} {} {case}: element {i} is {found}, exactly {value}, off by {off:e} with {bound:e} allowed",
                self.name,
                self.dtype
            );
            self.checked += 1;
            self.of_bound = self.of_bound.max(off / bound);
            if error > 0.0 {
                self.of_error = self.of_error.max((off - half_ulp) / error);
            }
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        println!(
            "{:<28} {:<4}  {:>7} elements, worst {:.3} of the bound; beyond half an ulp {:.3} of the arithmetic's",
            self.name, self.dtype, self.checked, self.of_bound, self.of_error
        );
    }
}

#[test]
fn rounding_is_to_nearest_even() {
    let one = 1.0 + 2f64.powi(-11);
    assert_eq!(round(DType::F16, one), 1.0);
    assert_eq!(round(DType::F16, one + 1e-12), 1.0 + 2f64.powi(-10));
    assert_eq!(round(DType::F16, 1.0 + 3.0 * 2f64.powi(-11)), 1.0 + 2f64.powi(-9));
    assert_eq!(round(DType::F16, 2f64.powi(-25)), 0.0);
    assert_eq!(round(DType::F16, 1.1 * 2f64.powi(-25)), 2f64.powi(-24));
    assert_eq!(round(DType::Bf16, -1.0 - 2f64.powi(-8)), -1.0);
    for x in [0.1, -3.7, 1e-20, 12345.678] {
        assert_eq!(round(DType::F32, x), f64::from(x as f32));
    }
}

#[test]
#[should_panic(expected = "element 1 is 2.01, exactly 2")]
fn a_wrong_element_is_named() {
    let exact = |value| Exact { value, error: 1e-3 };
    Account::new("planted", DType::F32).check("case", &[1.0005, 2.01], &[exact(1.0), exact(2.0)]);
}
