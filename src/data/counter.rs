//! Random numbers for data as functions of what they are for: nothing here has a state that a
//! resumed run would have to restore. (Noise of the diffusion process is Philox and lives with
//! the operations, because a GPU must draw the same; pictures and batches are made on the host.)

/// Mixes 64 bits so that every input bit changes about half of the output bits.
/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast Splittable Pseudorandom Number
/// Generators", with Stafford's variant 13 of the constants). A bijection on `u64`.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Hashes a list of words; the order counts.
pub fn hash(words: &[u64]) -> u64 {
    words.iter().fold(0x6a09_e667_f3bc_c908, |state, &word| {
        mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ mix(word.wrapping_add(0x9e37_79b9)))
    })
}

/// A uniform integer in `0..bound` from 64 random bits, by multiplication (Lemire 2019): the bias
/// is below `bound / 2^64`. Returns 0 for `bound` 0.
pub fn below(bits: u64, bound: u64) -> u64 {
    ((u128::from(bits) * u128::from(bound)) >> 64) as u64
}

/// A stream of numbers that depends only on the words it was made from.
#[derive(Clone, Debug)]
pub struct Stream {
    state: u64,
}

impl Stream {
    pub fn new(words: &[u64]) -> Self {
        Stream { state: hash(words) }
    }

    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// Uniform in [0, 1), in steps of 2⁻²⁴.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 * (1.0 / 16_777_216.0)
    }

    /// Uniform in [low, high).
    pub fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// Bell-shaped around 0 with standard deviation 1, within ±3.47: the sum of four uniform
    /// numbers, which needs no logarithm and so has the same bits on every machine.
    pub fn bell(&mut self) -> f32 {
        let sum = self.unit() + self.unit() + self.unit() + self.unit();
        (sum - 2.0) * 1.732_050_8
    }

    /// Uniform in `0..bound`.
    pub fn index(&mut self, bound: usize) -> usize {
        below(self.bits(), bound as u64) as usize
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f32) -> bool {
        self.unit() < p
    }
}

/// A permutation of `0..n` given by a key, evaluated at single positions without a table: a
/// Feistel network over the next even power of two, walked until the value falls below `n`
/// (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", cycle walking).
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    n: u64,
    half_bits: u32,
    key: u64,
}

impl Permutation {
    const ROUNDS: u64 = 6;

    pub fn new(n: usize, key: u64) -> Self {
        let bits = u64::BITS - (n as u64).saturating_sub(1).leading_zeros();
        Permutation { n: n as u64, half_bits: bits.div_ceil(2).max(1), key }
    }

    /// Where position `i` goes.
    ///
    /// # Panics
    /// Where `i` is not below `n`: the walk might not end.
    pub fn at(&self, i: usize) -> usize {
        assert!((i as u64) < self.n, "position {i} of a permutation of {}", self.n);
        let mut value = i as u64;
        loop {
            value = self.encrypt(value);
            if value < self.n {
                return value as usize;
            }
        }
    }

    fn encrypt(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..Self::ROUNDS {
            let mixed = left ^ (hash(&[self.key, round, right]) & mask);
            (left, right) = (right, mixed);
        }
        (left << self.half_bits) | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_reach_every_position_once() {
        for n in [1, 2, 3, 5, 16, 17, 257, 1000] {
            for key in 0..3 {
                let permutation = Permutation::new(n, key);
                let mut seen = vec![false; n];
                (0..n).for_each(|i| seen[permutation.at(i)] = true);
                assert!(seen.iter().all(|&s| s), "n {n}, key {key}");
            }
        }
    }

    #[test]
    fn permutations_look_random() {
        // The mean distance between i and its image is n/3 for a random permutation.
        let n = 1000;
        let permutation = Permutation::new(n, 7);
        let mean = (0..n).map(|i| i.abs_diff(permutation.at(i)) as f64).sum::<f64>() / n as f64;
        assert!((mean - n as f64 / 3.0).abs() < 30.0, "{mean}");
        let other = Permutation::new(n, 8);
        let same = (0..n).filter(|&i| permutation.at(i) == other.at(i)).count();
        assert!(same < 10, "{same}");
    }

    #[test]
    fn streams_repeat_and_differ() {
        let take = |words: &[u64]| {
            let mut stream = Stream::new(words);
            [stream.bits(), stream.bits(), stream.bits()]
        };
        assert_eq!(take(&[1, 2]), take(&[1, 2]));
        assert_ne!(take(&[1, 2]), take(&[2, 1]));
        let mut stream = Stream::new(&[3]);
        let mean = (0..10_000).map(|_| stream.unit()).sum::<f32>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        let variance = (0..10_000).map(|_| stream.bell().powi(2)).sum::<f32>() / 10_000.0;
        assert!((variance - 1.0).abs() < 0.06, "{variance}");
    }
}
