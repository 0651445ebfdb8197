//! When a replayed reference case agrees with what the file wants: bounds relative to the size of
//! the expected tensor in float32, and relative to PyTorch's own half-precision error in float16.

use super::reference_case::{Kind, ReferenceCase, Wanted};
use super::tensors::Tensor;
pub use crate::device::Precision;
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// What is said about one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorVerdict {
    pub name: String,
    /// Largest |got − want|; NaN where something is NaN or infinite.
    pub max_abs_error: f64,
    /// Where it is, as an index into each dimension.
    pub at: Vec<usize>,
    /// The error as a share of what is allowed; NaN as above, `None` where nothing is judged.
    pub allowed_share: Option<f64>,
    /// `None`: reported, not judged.
    pub pass: Option<bool>,
}

/// What is said about a case.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub tensors: Vec<TensorVerdict>,
    /// At least one tensor was judged, and all that were judged pass.
    pub pass: bool,
}

/// Smaller tensors are judged together in float16: their own few errors are a matter of luck.
const FEW: usize = 256;

/// Compares what a replay got, under the full names and in the layout of
/// [`ReferenceCase::wanted`], with what the case wants.
///
/// # Errors
/// A wanted tensor that `got` lacks or has in another size: the replay is wrong, not the device.
pub fn judge(
    case: &ReferenceCase,
    got: &BTreeMap<String, Vec<f32>>,
    precision: Precision,
) -> Result<Verdict> {
    let mut pairs = Vec::new();
    for wanted in case.wanted() {
        let got = got.get(wanted.name).ok_or_else(|| {
            Error::file(&case.path, format!("the replay gives no tensor `{}`", wanted.name))
        })?;
        if got.len() != wanted.want.len() {
            let what = format!(
                "the replay gives {} elements for `{}`, whose shape is {:?}",
                got.len(),
                wanted.name,
                wanted.shape
            );
            return Err(Error::file(&case.path, what));
        }
        pairs.push(Pair { wanted, got, size: 0.0 });
    }
    let of_gradients = pairs
        .iter()
        .filter(|pair| pair.wanted.kind == Kind::Gradient)
        .map(|pair| rms(pair.wanted.want))
        .fold(0.0, f64::max);
    for pair in &mut pairs {
        let least = match pair.wanted.kind {
            Kind::Output => 1e-3,
            Kind::Gradient => 0.01 * of_gradients,
        };
        pair.size = rms(pair.wanted.want).max(1e-3).max(least);
    }
    let tensors = match precision {
        Precision::Fp32 => pairs.iter().map(|pair| pair.judge_fp32(case)).collect(),
        Precision::Fp16 => judge_fp16(&pairs),
    };
    let pass = tensors.iter().any(|tensor: &TensorVerdict| tensor.pass.is_some())
        && tensors.iter().all(|tensor| tensor.pass != Some(false));
    Ok(Verdict { tensors, pass })
}

/// How far off each of a case's intermediates is that `got` has, in order of execution, as a share of
/// the float32 bound for whole networks. Reported, not judged.
pub fn intermediates(case: &ReferenceCase, got: &BTreeMap<String, Vec<f32>>) -> Vec<TensorVerdict> {
    let of = |(path, tensor): &(String, Tensor)| {
        let (got, want) = (got.get(path)?, tensor.to_f32()?);
        let (max_abs_error, index) = largest_error(got, &want);
        let at = coordinates(index, &tensor.shape);
        let atol = 1e-4 * rms(&want).max(1e-3);
        // Another size is another result.
        let share = if got.len() == want.len() { share(got, &want, 1e-3, atol) } else { f64::NAN };
        let name = path.clone();
        Some(TensorVerdict { name, max_abs_error, at, allowed_share: Some(share), pass: None })
    };
    case.intermediates.iter().filter_map(of).collect()
}

/// The first of these that is outside the bound, or not finite; `None`: all are within.
pub fn first_divergence(intermediates: &[TensorVerdict]) -> Option<&str> {
    let within = |share: f64| share <= 1.0;
    let outside = |verdict: &&TensorVerdict| !verdict.allowed_share.is_some_and(within);
    intermediates.iter().find(outside).map(|verdict| verdict.name.as_str())
}

struct Pair<'a> {
    wanted: Wanted<'a>,
    got: &'a [f32],
    /// The s of the rules: what errors are measured by.
    size: f64,
}

impl Pair<'_> {
    fn judge_fp32(&self, case: &ReferenceCase) -> TensorVerdict {
        let narrow = case.is_single_operation() && self.wanted.kind == Kind::Output;
        let (rtol, atol) = if narrow { (1e-4, 1e-5) } else { (1e-3, 1e-4) };
        let rtol = case.rtol.unwrap_or(rtol);
        let atol = case.atol.unwrap_or(atol * self.size);
        let share = share(self.got, self.wanted.want, rtol, atol);
        self.verdict(Some(share))
    }

    fn verdict(&self, allowed_share: Option<f64>) -> TensorVerdict {
        let (max_abs_error, index) = largest_error(self.got, self.wanted.want);
        TensorVerdict {
            name: self.wanted.name.to_string(),
            max_abs_error,
            at: coordinates(index, self.wanted.shape),
            allowed_share,
            // A NaN passes nothing.
            pass: allowed_share.map(|share| share <= 1.0),
        }
    }
}

/// Errors of one or several tensors in float16, and PyTorch's own.
#[derive(Default)]
struct Errors {
    squares: [f64; 2],
    largest: [f64; 2],
    count: usize,
}

impl Errors {
    fn add(&mut self, pair: &Pair) {
        let half = pair.wanted.half.unwrap_or_default();
        for ((got, want), half) in pair.got.iter().zip(pair.wanted.want).zip(half) {
            let want = f64::from(*want);
            for (slot, value) in [f64::from(*got), f64::from(*half)].into_iter().enumerate() {
                let error = (value - want).abs() / pair.size;
                self.squares[slot] += error * error;
                // f64::max would let a NaN vanish.
                if error.is_nan() || error > self.largest[slot] {
                    self.largest[slot] = error;
                }
            }
            self.count += 1;
        }
    }

    /// The larger share of what is allowed, of root mean square and of maximum.
    fn share(&self) -> f64 {
        let rms = self.squares.map(|sum| (sum / self.count.max(1) as f64).sqrt());
        let shares =
            [rms[0] / (2.0 * rms[1] + 1e-3), self.largest[0] / (2.0 * self.largest[1] + 4e-3)];
        if shares.iter().any(|share| share.is_nan()) || !self.squares[0].is_finite() {
            return f64::NAN;
        }
        shares[0].max(shares[1])
    }
}

fn judge_fp16(pairs: &[Pair]) -> Vec<TensorVerdict> {
    let mut together = [Errors::default(), Errors::default()];
    for pair in pairs {
        if pair.wanted.half.is_some() && pair.got.len() < FEW {
            together[pair.wanted.kind as usize].add(pair);
        }
    }
    pairs
        .iter()
        .map(|pair| {
            let share = pair.wanted.half.map(|_| {
                if pair.got.len() < FEW {
                    return together[pair.wanted.kind as usize].share();
                }
                let mut own = Errors::default();
                own.add(pair);
                own.share()
            });
            pair.verdict(share)
        })
        .collect()
}

/// Root mean square; 0 for nothing.
fn rms(values: &[f32]) -> f64 {
    let sum: f64 = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    (sum / values.len().max(1) as f64).sqrt()
}

/// Largest |got − want| / (atol + rtol·|want|), NaN where `got` is not finite.
fn share(got: &[f32], want: &[f32], rtol: f64, atol: f64) -> f64 {
    let mut largest = 0.0_f64;
    for (&got, &want) in got.iter().zip(want) {
        let (got, want) = (f64::from(got), f64::from(want));
        let error = (got - want).abs();
        let allowed = atol + rtol * want.abs();
        let share = if error == 0.0 { 0.0 } else { error / allowed };
        if !got.is_finite() || share.is_nan() {
            return f64::NAN;
        }
        largest = largest.max(share);
    }
    largest
}

/// The largest error and its index; the first that is not finite, as NaN, before all others.
fn largest_error(got: &[f32], want: &[f32]) -> (f64, usize) {
    let mut largest = (0.0, 0);
    for (index, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - f64::from(want)).abs();
        if !error.is_finite() {
            return (f64::NAN, index);
        }
        if error > largest.0 {
            largest = (error, index);
        }
    }
    largest
}

/// Index into each dimension of element `index`.
fn coordinates(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for (slot, &length) in at.iter_mut().zip(shape).rev() {
        *slot = index % length.max(1);
        index /= length.max(1);
    }
    at
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
