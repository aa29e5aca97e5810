//! Rounding to bf16 by draws, for weights that are kept in it alone.
//!
//! bf16 has eight bits of a number: a step of the optimizer that is shorter than half of the last one is lost if the
//! result is rounded to the nearest, and fine-tuning consists of such steps (a weight of 0.05 does not move by less than
//! 0.0001). Rounded up or down with the probabilities that make the mean right, weights go in the mean as far as they
//! would in f32 (Gupta et al. 2015, arXiv 1502.02551; for bf16 and language models Zamirai et al. 2020, arXiv 2010.06192).
//! Of the 32 bits of a number the lower 16 are cut off, after 16 random ones were added to them: it is the carry that
//! rounds up, away from zero.
//!
//! Every draw has a name, so that it needs no state and is the same on every backend and every rank, whatever a kernel's
//! grid is, and after a run was stopped: the run's seed, the step, the tensor and the element. From names to bits leads
//! Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). `cuda/rounding.cuh` does the same.

use half::bf16;
use rayon::prelude::*;

/// The draws of a tensor in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draws {
    pub seed: u64,
    /// Line of the tensor in the table.
    pub tensor: u32,
    /// Steps of the optimizer that were done, this one included; skipped ones do not count.
    pub step: u32,
}

impl Draws {
    /// The draws of elements `4 four` to `4 four + 3`: the lower half of a word each, of 128 random bits.
    fn of_four(self, four: u64) -> [u16; 4] {
        let counter = [four as u32, (four >> 32) as u32, self.tensor, self.step];
        philox(counter, [self.seed as u32, (self.seed >> 32) as u32]).map(|word| word as u16)
    }
}

/// Rounds all numbers of a tensor, which then are numbers of bf16.
pub fn round(values: &mut [f32], draws: Draws) {
    const BLOCK: usize = 1 << 14;
    values.par_chunks_mut(BLOCK).enumerate().for_each(|(block, values)| {
        for (four, values) in values.chunks_mut(4).enumerate() {
            let random = draws.of_four((block * (BLOCK / 4) + four) as u64);
            values.iter_mut().zip(random).for_each(|(value, random)| *value = rounded(*value, random));
        }
    });
}

/// One of the two neighbours in bf16. What is such a number stays as it is, and so does what is infinite or NaN. Above the
/// largest number is infinity.
fn rounded(value: f32, random: u16) -> f32 {
    if !value.is_finite() {
        return bf16::from_f32(value).to_f32(); // a carry would make something else of it
    }
    f32::from_bits((value.to_bits() + u32::from(random)) & 0xFFFF_0000)
}

fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut a, mut b, mut c, mut d], [mut k, mut l]) = (counter, key);
    for _ in 0..10 {
        let (first, second) = (0xD251_1F53 * u64::from(a), 0xCD9E_8D57 * u64::from(c));
        (a, b, c, d) = ((second >> 32) as u32 ^ b ^ k, second as u32, (first >> 32) as u32 ^ d ^ l, first as u32);
        (k, l) = (k.wrapping_add(0x9E37_79B9), l.wrapping_add(0xBB67_AE85));
    }
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: Draws = Draws { seed: 17, tensor: 3, step: 5 };

    /// The vectors of Random123 for philox4x32-10 (`tests/kat_vectors`).
    #[test]
    fn known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD]);
        let (counter, key) = ([0x243F_6A88, 0x85A3_08D3, 0x1319_8A2E, 0x0370_7344], [0xA409_3822, 0x299F_31D0]);
        assert_eq!(philox(counter, key), [0xD16C_FE09, 0x94FD_CCEB, 0x5001_E420, 0x2412_6EA1]);
    }

    /// Numbers at each sixteenth between 1 and the next one, and their negatives: nothing but the neighbours comes out,
    /// and the mean is the number.
    #[test]
    fn the_mean_is_the_number() {
        const DRAWN: usize = 40_000;
        for sixteenths in 0..16u32 {
            for sign in [0, 1 << 31] {
                let value = f32::from_bits(sign | 0x3F80_0000 | sixteenths << 12);
                let (low, high) = (1f32.copysign(value), (1.0 + 1.0 / 128.0f32).copysign(value));
                let mut values = vec![value; DRAWN];
                round(&mut values, DRAWS);
                assert!(values.iter().all(|&v| v == low || v == high));
                let (share, chance) =
                    (values.iter().filter(|&&v| v == high).count() as f64 / DRAWN as f64, f64::from(sixteenths) / 16.0);
                // Four standard deviations.
                let allowed = 4.0 * (chance * (1.0 - chance) / DRAWN as f64).sqrt();
                assert!((share - chance).abs() <= allowed, "{value}: {share} went up");
            }
        }
    }

    #[test]
    fn what_bf16_holds_stays() {
        let mut values: Vec<f32> = (0..=u16::MAX).map(|bits| bf16::from_bits(bits).to_f32()).collect();
        let before = values.clone();
        round(&mut values, DRAWS);
        for (after, before) in values.iter().zip(&before) {
            assert!(
                after.to_bits() == before.to_bits() || after.is_nan() && before.is_nan(),
                "{before} became {after}"
            );
        }
        // NaN whose bits lie in what is cut off, or that a carry would turn over.
        for bits in [0x7F80_0001, 0x7FFF_FFFF, 0xFFFF_FFFF] {
            assert!(rounded(f32::from_bits(bits), u16::MAX).is_nan());
        }
        assert_eq!(rounded(f32::MAX, 0), bf16::MAX.to_f32());
        assert_eq!(rounded(f32::MAX, u16::MAX), f32::INFINITY);
        assert_eq!(rounded(-1e-40, 0).to_bits() & 0xFFFF, 0);
    }

    /// Each element of each tensor in each step of each run draws for itself, wherever blocks of work begin.
    #[test]
    fn draws_have_names() {
        let bits = |draws: Draws| {
            let mut values = vec![f32::from_bits(0x3F80_8000); 40_000];
            round(&mut values, draws);
            values.iter().map(|&v| v > 1.0).collect::<Vec<bool>>()
        };
        let first = bits(DRAWS);
        let others = [
            Draws { seed: 18, ..DRAWS },
            Draws { seed: 17 | 1 << 32, ..DRAWS },
            Draws { tensor: 4, ..DRAWS },
            Draws { step: 6, ..DRAWS },
        ];
        for other in others.map(bits) {
            let same = first.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!(same.abs_diff(20_000) < 400, "{same} of 40000 are drawn alike");
        }
        for apart in [1, 2, 4, 1 << 14] {
            let same = first.iter().zip(&first[apart..]).filter(|(a, b)| a == b).count();
            assert!((same as f64 / (40_000 - apart) as f64 - 0.5).abs() < 0.015, "{same} are as those {apart} before");
        }
    }
}
