//! Rotary positions (RoPE): how far a head's pairs turn from one position to the next, and what stretches a context.
//!
//! Pair i of a head turns by `theta^(-2i / D)` radians a position (Su et al. 2021, arXiv 2104.09864). A model that is made
//! for longer contexts than it was first trained on turns some of its pairs more slowly ([`Scaling`]). All of it is
//! computed in f32 as transformers does, where a last bit more or less becomes visible at high positions.

use std::f32::consts::TAU;

/// How far rotations are slowed down for longer contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    None,
    /// Every frequency divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, those between interpolated.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
    Yarn(Yarn),
}

impl Scaling {
    /// Positions of the longest segment that a model is made for whose `max_position_embeddings` is `stated`. With YaRN
    /// that often goes on naming the original context, as Qwen documents it.
    pub fn positions(&self, stated: usize) -> usize {
        match self {
            Scaling::Yarn(yarn) => stated.max((yarn.original * yarn.factor) as usize),
            _ => stated,
        }
    }
}

/// YaRN (Peng et al. 2023, arXiv 2309.00071): pairs that turn often within the original context are kept, those that
/// hardly turn are divided by `factor`, and a ramp lies between, over the pairs' numbers (the paper's text has it over
/// their turns; its code has it so). Queries and keys become longer, so that attention stays as sharp over more tokens.
///
/// As in transformers 5 (`_compute_yarn_parameters` of `modeling_rope_utils.py`) and vLLM. Older versions of transformers
/// differ where `original` is not `max_position_embeddings`: 4.44 takes the latter for it, some after it take the ratio of
/// the two for `factor`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    pub factor: f64,
    /// Positions of the context before it was stretched.
    pub original: f64,
    /// Turns within the original context from which on a pair is kept.
    pub fast: f64,
    /// Turns up to which it is divided by `factor`.
    pub slow: f64,
    /// The ramp begins and ends at whole pairs.
    pub truncate: bool,
    /// Length of a rotated query or key, against what it was.
    pub amplitude: f64,
}

impl Yarn {
    /// The paper's choice is `0.1 ln factor + 1`; DeepSeek's models take the quotient of two such with other weights.
    pub fn amplitude(factor: f64, weight: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
    }

    /// The pairs between which the ramp lies; not whole numbers unless truncated.
    fn ramp(&self, theta: f64, head_dim: usize) -> (f32, f32) {
        // The pair, fractions included, that turns so often within the original context.
        let d = head_dim as f64;
        let pair_of = |turns: f64| d * (self.original / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
        let (mut begins, mut ends) = (pair_of(self.fast), pair_of(self.slow));
        if self.truncate {
            (begins, ends) = (begins.floor(), ends.ceil());
        }
        (begins, ends) = (begins.max(0.0), ends.min(d - 1.0));
        if begins == ends {
            ends += 0.001; // as transformers: a step, without a division by 0
        }
        (begins as f32, ends as f32)
    }

    fn slowed(&self, frequency: f32, pair: usize, (begins, ends): (f32, f32)) -> f32 {
        let kept = 1.0 - ((pair as f32 - begins) / (ends - begins)).clamp(0.0, 1.0);
        frequency / self.factor as f32 * (1.0 - kept) + frequency * kept
    }
}

/// A model's rotations.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians that each pair of a head's numbers turns from one position to the next (D / 2).
    pub frequencies: Vec<f32>,
    /// What sines and cosines are multiplied by: 1, but for [`Yarn`].
    pub amplitude: f32,
}

impl Rope {
    /// The rotations of heads of `head_dim` numbers (D).
    pub fn new(theta: f64, head_dim: usize, scaling: Scaling) -> Rope {
        let plain = (0..head_dim / 2).map(|pair| {
            let exponent = (2 * pair) as f32 / head_dim as f32;
            1.0 / (theta as f32).powf(exponent)
        });
        let frequencies = match scaling {
            Scaling::None => plain.collect(),
            Scaling::Linear { factor } => plain.map(|f| f / factor as f32).collect(),
            Scaling::Llama3 { factor, low, high, original } => plain
                .map(|frequency| {
                    let wavelength = TAU / frequency;
                    if wavelength < (original / high) as f32 {
                        return frequency;
                    }
                    if wavelength > (original / low) as f32 {
                        return frequency / factor as f32;
                    }
                    let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
                    (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
                })
                .collect(),
            Scaling::Yarn(yarn) => {
                let ramp = yarn.ramp(theta, head_dim);
                plain.enumerate().map(|(pair, frequency)| yarn.slowed(frequency, pair, ramp)).collect()
            }
        };
        let amplitude = if let Scaling::Yarn(yarn) = scaling { yarn.amplitude as f32 } else { 1.0 };
        Rope { frequencies, amplitude }
    }

    /// Cosines and sines of what each pair has turned by at each position (positions, D / 2), with the amplitude.
    pub fn table(&self, positions: usize) -> impl Iterator<Item = (f32, f32)> + '_ {
        let angles = (0..positions).flat_map(|p| self.frequencies.iter().map(move |frequency| p as f32 * frequency));
        angles.map(|angle| (angle.cos() * self.amplitude, angle.sin() * self.amplitude))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rope: &Rope, expected: &[(usize, f32)]) {
        for &(pair, expected) in expected {
            let found = rope.frequencies[pair];
            assert!((found / expected - 1.0).abs() < 1e-5, "pair {pair}: {found:e}, not {expected:e}");
        }
    }

    /// Llama 3.1's, as transformers 4.44.2 computes them: those up to pair 28 are kept, those from 35 on divided.
    #[test]
    fn frequencies_of_llama_3_are_kept_interpolated_or_divided() {
        let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
        let expected = [
            (0, 1.0),
            (28, 3.211_446e-3),
            (29, 2.166_570_6e-3),
            (31, 8.567_514_6e-4),
            (34, 1.785_077_9e-4),
            (35, 9.556_212e-5),
            (63, 3.068_926e-7),
        ];
        let rope = Rope::new(500_000.0, 128, scaling);
        check(&rope, &expected);
        assert_eq!(rope.amplitude, 1.0);
    }

    /// What Qwen2.5 and Qwen3 document, as transformers 5.23.0 computes it (and 4.44.2, without `truncate`): a ramp from
    /// pair 23 to 40; its ends not rounded; and one between other numbers of turns.
    #[test]
    fn frequencies_of_yarn_are_those_of_transformers() {
        let documented = Yarn {
            factor: 4.0,
            original: 32_768.0,
            fast: 32.0,
            slow: 1.0,
            truncate: true,
            amplitude: Yarn::amplitude(4.0, 1.0),
        };
        let same = [(0, 1.0), (20, 1.333_521_5e-2), (22, 8.659_643e-3), (40, 4.445_698_5e-5), (63, 3.102_344_4e-7)];
        for (yarn, ramp) in [
            (documented, [(25, 4.131_738e-3), (28, 1.848_276_6e-3), (33, 4.503_235_7e-4), (36, 1.798_411_5e-4)]),
            (
                Yarn { truncate: false, ..documented },
                [(25, 4.234_358e-3), (28, 1.883_502_6e-3), (33, 4.518_303_6e-4), (36, 1.773_442_3e-4)],
            ),
            (
                Yarn { fast: 8.0, slow: 2.0, ..documented },
                [(25, 4.531_583_7e-3), (28, 2.371_373_8e-3), (33, 5.468_215e-4), (36, 1.506_058_9e-4)],
            ),
        ] {
            let rope = Rope::new(1e6, 128, Scaling::Yarn(yarn));
            check(&rope, &same);
            check(&rope, &ramp);
            assert!((rope.amplitude - 1.138_629_4).abs() < 1e-6, "{}", rope.amplitude);
        }
    }

    #[test]
    fn a_ramp_without_length_is_a_step() {
        let yarn = Yarn { factor: 2.0, original: 64.0, fast: 1.0, slow: 1.0, truncate: false, amplitude: 1.0 };
        let (rope, plain) = (Rope::new(100.0, 16, Scaling::Yarn(yarn)), Rope::new(100.0, 16, Scaling::None));
        let ratios: Vec<f32> = rope.frequencies.iter().zip(&plain.frequencies).map(|(a, b)| a / b).collect();
        assert_eq!(ratios, [1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5]);
    }
}
