//! Normal deviates from Philox words by Box & Muller (1958), with polynomials of our own. Only
//! integer operations, IEEE multiplication, addition, square root and fused multiply-add occur, so
//! that every device gives the same bits.

use super::philox::philox4x32;
use crate::device::cpu::simd::LANES;
use crate::ops::state;

/// What a stream of noise depends on besides the element. Elements of a sample are numbered as in
/// NCHW; element e is word e mod 4 of the counter (e / 4, sample, step, purpose).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The seed: lower half, upper half.
    pub key: [u32; 2],
    /// See [`purpose`](super::philox::purpose).
    pub purpose: u32,
    pub step: u32,
    pub sample: u32,
}

/// Two independent standard normal deviates from two random words. Vectorises.
///
/// u = (a / 2⁸ + 1)·2⁻²⁴ in (0, 1]; the angle has 24 bits of b; results are below √(48·ln 2) = 5.77.
#[inline(always)]
pub fn box_muller(a: u32, b: u32) -> [f32; 2] {
    let radius = (-2.0 * ln_of_24_bits((a >> 8) + 1)).sqrt();
    let (cosine, sine) = cos_sin_of_24_bits(b >> 8);
    [radius * cosine, radius * sine]
}

/// ln(n·2⁻²⁴) for 1 ≤ n ≤ 2²⁴, at most 0.
///
/// n = m·2ᵏ with m in [√½, √2); ln m = f − f²/2 + f³·P(f), f = m − 1, where P is a minimax
/// polynomial of degree 8 (relative error of ln m below 1e-9 before rounding).
#[inline(always)]
fn ln_of_24_bits(n: u32) -> f32 {
    const HALF_ROOT: u32 = 0x3f35_04f3;
    let bits = (n as i32 as f32).to_bits();
    let exponent = (bits.wrapping_sub(HALF_ROOT) as i32) >> 23;
    let f = f32::from_bits(bits.wrapping_sub((exponent << 23) as u32)) - 1.0;
    let p = 0.069_153_68f32;
    let p = p.mul_add(f, -0.117_898_08);
    let p = p.mul_add(f, 0.118_729_76);
    let p = p.mul_add(f, -0.123_843_48);
    let p = p.mul_add(f, 0.142_186_58);
    let p = p.mul_add(f, -0.166_692_51);
    let p = p.mul_add(f, 0.200_022_27);
    let p = p.mul_add(f, -0.249_999_87);
    let p = p.mul_add(f, 0.333_333_1);
    let square = f * f;
    let tail = square.mul_add(-0.5, square * f * p);
    ((exponent - 24) as f32).mul_add(std::f32::consts::LN_2, f + tail)
}

/// cos and sin of 2π·(n + ½)·2⁻²⁴ for n < 2²⁴.
///
/// The upper two bits are the quadrant q; with t in (−½, ½) from the others the angle is
/// π/2·(q + ½ + t), taken as π/2·(q + t), which only turns the circle. Minimax polynomials in t².
#[inline(always)]
fn cos_sin_of_24_bits(n: u32) -> (f32, f32) {
    let quadrant = n >> 22;
    let odd = (2 * (n & 0x3f_ffff) + 1) as i32;
    let t = (odd - (1 << 22)) as f32 * (1.0 / (1 << 23) as f32);
    let z = t * t;
    let s = 2.590_451e-4f32;
    let s = s.mul_add(z, -4.731_733_4e-3);
    let s = s.mul_add(z, 7.970_048e-2);
    let s = s.mul_add(z, -0.645_964_5);
    let s = s.mul_add(z, std::f32::consts::FRAC_PI_2) * t;
    let c = 9.036_317e-4f32;
    let c = c.mul_add(z, -2.086_007_2e-2);
    let c = c.mul_add(z, 0.253_669_2);
    let c = c.mul_add(z, -1.233_700_5);
    let c = c.mul_add(z, 1.0);
    let (x, y) = if quadrant & 1 == 1 { (s, c) } else { (c, s) };
    // Quadrants 1 and 2 lie left, 2 and 3 below.
    let left = ((quadrant ^ (quadrant >> 1)) & 1) << 31;
    let below = (quadrant >> 1) << 31;
    (f32::from_bits(x.to_bits() ^ left), f32::from_bits(y.to_bits() ^ below))
}

impl Stream {
    /// That of a training run's sample number `sample` of this micro-batch.
    pub fn of_run(purpose: u32, state: &[f32], sample: usize) -> Stream {
        Stream {
            key: state::seed(state),
            purpose,
            step: state::word(state, state::STEP),
            sample: state::word(state, state::SAMPLE).wrapping_add(sample as u32),
        }
    }

    /// The words of elements 4·quad..4·quad + 4.
    #[inline(always)]
    pub fn words(&self, quad: u32) -> [u32; 4] {
        philox4x32([quad, self.sample, self.step, self.purpose], self.key)
    }

    /// The deviates of elements 4·quad..4·quad + 4.
    #[inline(always)]
    pub fn quad(&self, quad: u32) -> [f32; 4] {
        let words = self.words(quad);
        let ([a, b], [c, d]) = (box_muller(words[0], words[1]), box_muller(words[2], words[3]));
        [a, b, c, d]
    }
}

crate::vectorised! {
    /// Writes the deviates of `pixels` (a range within one sample of `total` pixels) to `out`
    /// `[pixels, channels]`.
    pub fn fill_pixels<'a>(
        stream: &'a Stream,
        pixels: std::ops::Range<usize>,
        total: usize,
        channels: usize,
        out: &'a mut [f32],
    ) {
        for channel in 0..channels {
            let (start, end) = (channel * total + pixels.start, channel * total + pixels.end);
            let mut quad = start / 4;
            while 4 * quad < end {
                let mut block = [[0.0f32; LANES]; 4];
                for lane in 0..LANES {
                    let normals = stream.quad((quad + lane) as u32);
                    for (word, normal) in block.iter_mut().zip(normals) {
                        word[lane] = normal;
                    }
                }
                let first = 4 * quad;
                for element in first.max(start)..(first + 4 * LANES).min(end) {
                    let value = block[element % 4][(element - first) / 4];
                    out[(element - start) * channels + channel] = value;
                }
                quad += LANES;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Simd;

    #[test]
    fn logarithm_and_angle_are_exact_to_rounding() {
        for i in 0..200_000u32 {
            let n = if i < 1000 { i + 1 } else { (i * 83) % (1 << 24) + 1 };
            let want = (f64::from(n) / f64::from(1 << 24)).ln();
            let error = (f64::from(ln_of_24_bits(n)) - want).abs();
            assert!(error <= 1.5e-7 * want.abs().max(1e-9), "{n}: {error}");
            let n = n - 1;
            let (c, s) = cos_sin_of_24_bits(n);
            let quadrant = f64::from(n >> 22);
            let t = (2.0 * f64::from(n & 0x3f_ffff) + 1.0) / f64::from(1 << 23) - 0.5;
            let angle = std::f64::consts::FRAC_PI_2 * (quadrant + t);
            assert!((f64::from(c) - angle.cos()).abs() <= 1.2e-7, "cos {n}");
            assert!((f64::from(s) - angle.sin()).abs() <= 1.2e-7, "sin {n}");
        }
        assert_eq!(ln_of_24_bits(1 << 24), 0.0);
        assert!(box_muller(0, 0).iter().all(|x| x.is_finite()));
    }

    #[test]
    fn moments_of_a_million_deviates() {
        let stream = Stream { key: [1, 2], purpose: 3, step: 4, sample: 5 };
        let mut moments = [0.0f64; 6];
        let (mut neighbours, mut previous, mut inside) = (0.0, 0.0, 0);
        let count = 1 << 20;
        for quad in 0..count / 4 {
            for x in stream.quad(quad).map(f64::from) {
                for (power, moment) in moments.iter_mut().enumerate() {
                    *moment += x.powi(power as i32 + 1);
                }
                neighbours += x * previous;
                previous = x;
                inside += i32::from(x.abs() < 1.0);
            }
        }
        let n = f64::from(count);
        // Mean and variance of powers of a normal deviate; four standard errors each.
        let expected =
            [(0.0, 1.0), (1.0, 2.0), (0.0, 15.0), (3.0, 96.0), (0.0, 945.0), (15.0, 10170.0)];
        for (power, ((mean, variance), moment)) in expected.iter().zip(moments).enumerate() {
            let error = (moment / n - mean).abs();
            let bound: f64 = 4.0 * f64::sqrt(variance / n);
            assert!(error <= bound, "moment {}: {}", power + 1, moment / n);
        }
        assert!((neighbours / n).abs() <= 4.0 / n.sqrt());
        assert!((f64::from(inside) / n - 0.682_689_5).abs() <= 4.0 * (0.2166 / n).sqrt());
    }

    #[test]
    fn pixels_follow_the_numbering_of_nchw() {
        let stream = Stream { key: [7, 8], purpose: 9, step: 10, sample: 11 };
        let (total, channels) = (5 * 7, 3);
        let want: Vec<f32> = (0..total * channels)
            .map(|index| {
                let element = index % channels * total + index / channels;
                stream.quad(element as u32 / 4)[element % 4]
            })
            .collect();
        for simd in [Simd::Scalar, Simd::Avx2, Simd::Avx512] {
            for cut in [0, 1, 17, 34] {
                let mut out = vec![f32::NAN; total * channels];
                let (head, tail) = out.split_at_mut(cut * channels);
                fill_pixels(simd, &stream, 0..cut, total, channels, head);
                fill_pixels(simd, &stream, cut..total, total, channels, tail);
                assert_eq!(out, want);
            }
        }
    }

    #[test]
    fn every_part_of_the_counter_matters() {
        let stream = Stream { key: [1, 2], purpose: 3, step: 4, sample: 5 };
        let others = [
            Stream { key: [2, 2], ..stream },
            Stream { key: [1, 3], ..stream },
            Stream { purpose: 4, ..stream },
            Stream { step: 5, ..stream },
            Stream { sample: 6, ..stream },
        ];
        for other in others {
            assert!(stream.quad(0).iter().zip(other.quad(0)).all(|(&a, b)| a != b));
        }
    }
}
