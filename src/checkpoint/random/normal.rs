//! Normal values in bf16 from a counter: value i of a stream depends on (key, i) only, so any thread can make any part of it.
//! The same method as the engine's own random weights (`cpp/engine/weights/random_weights.h`): about a nanosecond for four values.

use half::bf16;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The distribution in so many steps of equal probability (up to 3.7 deviations): finer than bf16 can tell.
const STEPS: usize = 4096;
const MASK: u64 = STEPS as u64 - 1;
/// Values that one random word gives.
const PER_WORD: usize = 4;

/// Values of one deviation.
pub(super) struct NormalTable(Box<[u16; STEPS]>);

/// Random bytes `first` and up of a stream; `first` is a multiple of 8.
pub(super) fn fill_bytes(key: u64, first: u64, out: &mut [u8]) {
    for (counter, word) in (first / 8..).zip(out.chunks_mut(8)) {
        let random = mix(key.wrapping_add(counter.wrapping_mul(GAMMA))).to_le_bytes();
        word.copy_from_slice(&random[..word.len()]);
    }
}

impl NormalTable {
    pub(super) fn new(deviation: f32) -> Self {
        let mut bits = Box::new([0; STEPS]);
        for step in 0..STEPS / 2 {
            let p = (step as f64 + 0.5) / STEPS as f64;
            let value = bf16::from_f32((quantile(p) * f64::from(deviation)) as f32);
            bits[step] = value.to_bits();
            bits[STEPS - 1 - step] = (-value).to_bits();
        }
        Self(bits)
    }

    /// Writes values `first`, `first + 1`, … of the stream; `first` is a multiple of 4.
    pub(super) fn fill(&self, key: u64, first: u64, out: &mut [u8]) {
        debug_assert!(first.is_multiple_of(PER_WORD as u64));
        let mut counter = first / PER_WORD as u64;
        let mut words = out.chunks_exact_mut(2 * PER_WORD);
        for word in &mut words {
            word.copy_from_slice(&self.word(key, counter));
            counter += 1;
        }
        let rest = words.into_remainder();
        let last = self.word(key, counter);
        rest.copy_from_slice(&last[..rest.len()]);
    }

    /// Four values, little-endian.
    fn word(&self, key: u64, counter: u64) -> [u8; 2 * PER_WORD] {
        let random = mix(key.wrapping_add(counter.wrapping_mul(GAMMA)));
        let mut four = 0;
        for shift in [48, 32, 16, 0] {
            four = four << 16 | u64::from(self.0[(random >> shift & MASK) as usize]);
        }
        four.to_le_bytes()
    }
}

/// The stream of one tensor.
pub(super) fn tensor_key(seed: u64, name: &str) -> u64 {
    mix(xxh3_64_with_seed(name.as_bytes(), seed))
}

const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finaliser of splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
fn mix(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

/// x with P(normal < x) = p, by bisection: it runs 2,048 times and needs no constants.
fn quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-6.0, 6.0);
    for _ in 0..40 {
        let middle = f64::midpoint(low, high);
        if probability_below(middle) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    f64::midpoint(low, high)
}

/// P(normal < x) for |x| ≤ 6, by the series of G. Marsaglia, "Evaluating the normal distribution" (2004).
fn probability_below(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    let mut divisor = 3.0;
    while f64::abs(term) > 1e-17 * f64::abs(sum) {
        term *= x * x / divisor;
        sum += term;
        divisor += 2.0;
    }
    let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    0.5 + density * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(bytes: &[u8]) -> Vec<f64> {
        bytes.chunks_exact(2).map(|two| bf16::from_le_bytes([two[0], two[1]]).to_f64()).collect()
    }

    #[test]
    fn values_have_the_normal_distribution() {
        let mut bytes = vec![0; 400_000];
        NormalTable::new(0.02).fill(tensor_key(1, "a"), 0, &mut bytes);
        let values = values(&bytes);
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count).sqrt();
        let share_within_one = values.iter().filter(|v| v.abs() < 0.02).count() as f64 / count;
        assert!(mean.abs() < 3e-4, "{mean}");
        assert!((deviation - 0.02).abs() < 2e-4, "{deviation}");
        assert!((share_within_one - 0.6827).abs() < 0.01, "{share_within_one}");
    }

    #[test]
    fn any_part_of_a_stream_can_be_made_alone() {
        let table = NormalTable::new(0.02);
        let mut whole = [0; 2 * 103];
        table.fill(7, 0, &mut whole);
        let mut part = [0; 2 * 47];
        table.fill(7, 56, &mut part);
        assert_eq!(part, whole[2 * 56..]);
        let mut other = [0; 2 * 103];
        table.fill(8, 0, &mut other);
        assert_ne!(other, whole);
    }

    #[test]
    fn the_distribution_is_the_normal_one() {
        for (p, x) in [(0.5, 0.0), (0.158_655_254, -1.0), (0.001_349_898, -3.0), (0.975, 1.959_964)]
        {
            assert!((quantile(p) - x).abs() < 1e-6, "{p}: {}", quantile(p));
        }
    }
}
