//! Philox 4x32-10: random bits as a pure function of a key and a counter.
//!
//! Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). Counter-based, so the noise
//! of token `i` at step `t` needs no state and no order: the device computes it where it needs it, and the same seed
//! gives the same text whatever else runs.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Four random words.
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let (low0, high0) = MULTIPLIERS[0].widening(counter[0]);
        let (low1, high1) = MULTIPLIERS[1].widening(counter[2]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

trait Widening {
    fn widening(self, other: u32) -> (u32, u32);
}

impl Widening for u32 {
    fn widening(self, other: u32) -> (u32, u32) {
        let product = u64::from(self) * u64::from(other);
        (product as u32, (product >> 32) as u32)
    }
}

/// A number in the open interval (0, 1), so that its logarithm is finite and below zero: 23 bits
/// and a half fill the significand of an f32 exactly.
pub fn uniform(word: u32) -> f32 {
    ((word >> 9) as f32 + 0.5) * 2f32.powi(-23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_the_published_generator() {
        // From the Random123 distribution's known-answer file.
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox4x32_10([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
    }

    #[test]
    fn uniform_never_reaches_its_ends() {
        assert!(uniform(0) > 0.0 && uniform(u32::MAX) < 1.0);
    }
}
