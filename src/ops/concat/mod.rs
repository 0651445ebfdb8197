//! Concatenation along the channels, and its counterparts: a range of channels, and channels among
//! others of one value.

mod cpu;
mod launch;

pub(in crate::ops) use launch::{Move, move_channels};

use super::{Build, GradArgs, LaunchArgs, Op, TensorId, shape};
use crate::device::{KernelWork, TensorType};
use crate::error::{Error, Result};
use std::sync::Arc;

/// `a` `[B, …, C₁]`, `b` `[B, …, C₂]` → `y` `[B, …, C₁ + C₂]`: s₀·a, then s₁·b.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Concat {
    pub scales: [f32; 2],
}

/// `x` `[B, …, C]` → `y` `[B, …, channels]`: channels `start..start + channels`, times `scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SliceChannels {
    pub start: usize,
    pub channels: usize,
    pub scale: f32,
}

/// `x` `[B, …, C]` → `y` `[B, …, before + C + after]`: scale·x, and `value` before and behind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PadChannels {
    pub before: usize,
    pub after: usize,
    pub scale: f32,
    pub value: f32,
}

impl Concat {
    /// Both as they are.
    pub const PLAIN: Concat = Concat { scales: [1.0, 1.0] };

    /// The magnitude-preserving concatenation of `channels` (Karras et al. 2024, arXiv:2312.02696,
    /// eq. 103): √((N_a + N_b)/((1 − t)² + t²)) times (1 − t)/√N_a and t/√N_b.
    pub fn mp_cat(channels: [usize; 2], t: f64) -> Concat {
        let [a, b] = channels.map(|count| count as f64);
        let both = ((a + b) / ((1.0 - t).powi(2) + t.powi(2))).sqrt();
        Concat { scales: [(both * (1.0 - t) / a.sqrt()) as f32, (both * t / b.sqrt()) as f32] }
    }
}

impl SliceChannels {
    /// As they are.
    pub fn plain(start: usize, channels: usize) -> SliceChannels {
        SliceChannels { start, channels, scale: 1.0 }
    }
}

impl PadChannels {
    /// Zeros before and behind.
    pub fn zeros(before: usize, after: usize) -> PadChannels {
        PadChannels { before, after, scale: 1.0, value: 0.0 }
    }
}

/// Number of channels: the last dimension.
fn channels(ty: &TensorType) -> usize {
    ty.shape[ty.shape.len() - 1]
}

/// The type with another number of channels.
fn with_channels(ty: &TensorType, channels: usize) -> TensorType {
    let mut ty = ty.clone();
    let last = ty.shape.len() - 1;
    ty.shape[last] = channels;
    ty
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::halves(self.name(), inputs, 2..=2, &[true; 2])?;
        let (a, b) = (inputs[0], inputs[1]);
        shape::expect(self.name(), "b but for its channels", &with_channels(b, channels(a)), a)?;
        Ok(vec![with_channels(a, channels(a) + channels(b))])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let mut grads = vec![None, None];
        if let Some(dy) = args.output_grads[0] {
            let mut start = 0;
            for (index, grad) in grads.iter_mut().enumerate() {
                let channels = channels(graph.ty(args.inputs[index]));
                if args.needs[index] {
                    let op = SliceChannels { start, channels, scale: self.scales[index] };
                    *grad = Some(graph.push(Arc::new(op), &[dy])?[0]);
                }
                start += channels;
            }
        }
        Ok(grads)
    }

    fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        shape::follow(inputs, &[true; 2])
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

impl Op for SliceChannels {
    fn name(&self) -> &'static str {
        "slice_channels"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::halves(self.name(), inputs, 1..=1, &[true])?;
        let end = self.start.checked_add(self.channels);
        if self.channels == 0 || end.is_none_or(|end| end > channels(inputs[0])) {
            return Err(Error::operation(
                self.name(),
                format!(
                    "{} channels from {} are not in {:?}",
                    self.channels, self.start, inputs[0]
                ),
            ));
        }
        Ok(vec![with_channels(inputs[0], self.channels)])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        args.transposed(graph, |x| PadChannels {
            before: self.start,
            after: channels(x) - self.start - self.channels,
            scale: self.scale,
            value: 0.0,
        })
    }

    fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        shape::follow(inputs, &[true])
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

impl Op for PadChannels {
    fn name(&self) -> &'static str {
        "pad_channels"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::halves(self.name(), inputs, 1..=1, &[true])?;
        Ok(vec![with_channels(inputs[0], self.before + channels(inputs[0]) + self.after)])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let (start, scale) = (self.before, self.scale);
        args.transposed(graph, |x| SliceChannels { start, channels: channels(x), scale })
    }

    fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        shape::follow(inputs, &[true])
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Host, check_batch, check_gradient, check_threads, run};

    #[test]
    fn values() {
        let a = Host::new(&[2, 1, 2], vec![1.0, 2.0, 3.0, 4.0]);
        let b = Host::new(&[2, 1, 1], vec![5.0, 6.0]);
        let y = run(&Concat::PLAIN, &[&a, &b])[0].clone();
        assert_eq!(y.data, [1.0, 2.0, 5.0, 3.0, 4.0, 6.0]);
        let scaled = run(&Concat { scales: [2.0, -1.0] }, &[&a, &b])[0].clone();
        assert_eq!(scaled.data, [2.0, 4.0, -5.0, 6.0, 8.0, -6.0]);
        let slice = run(&SliceChannels::plain(1, 2), &[&y])[0].clone();
        assert_eq!(slice.data, [2.0, 5.0, 4.0, 6.0]);
        let padded = run(&PadChannels::zeros(1, 2), &[&b])[0].clone();
        assert_eq!(padded.data, [0.0, 5.0, 0.0, 0.0, 0.0, 6.0, 0.0, 0.0]);
        let ones = PadChannels { before: 0, after: 1, scale: 0.5, value: 1.0 };
        assert_eq!(run(&ones, &[&b])[0].data, [2.5, 1.0, 3.0, 1.0]);
    }

    /// The mean square of the concatenation is that of its parts, and both weigh as `t` says.
    #[test]
    fn magnitudes_are_preserved() {
        let [a, b] = Concat::mp_cat([192, 64], 0.5).scales;
        let mean = (192.0 * a * a + 64.0 * b * b) / 256.0;
        assert!((mean - 1.0).abs() <= 1e-6, "{mean}");
        assert!((192.0 * a * a - 64.0 * b * b).abs() <= 1e-4);
    }

    #[test]
    fn gradients() {
        let (a, b) = (Host::random(&[2, 3, 4], 1), Host::random(&[2, 3, 3], 2));
        let concat = Concat { scales: [0.7, -1.3] };
        check_gradient(Arc::new(concat), &[a.clone(), b], &[0], 1e-3);
        let slice = SliceChannels { start: 1, channels: 2, scale: 0.7 };
        check_gradient(Arc::new(slice), std::slice::from_ref(&a), &[0], 1e-3);
        let pad = PadChannels { before: 2, after: 1, scale: 0.7, value: 0.3 };
        check_gradient(Arc::new(pad), &[a], &[0], 1e-3);
    }

    #[test]
    fn neither_threads_nor_batch_matter() {
        let (a, b) = (Host::random(&[2, 70, 70, 5], 1), Host::random(&[2, 70, 70, 3], 2));
        for op in [Concat::PLAIN, Concat { scales: [0.7, -1.3] }] {
            check_threads(&op, &[&a, &b]);
            check_batch(&op, &[&a, &b], &[true, true], &[0]);
        }
        check_threads(&SliceChannels { start: 1, channels: 3, scale: 0.7 }, &[&a]);
    }

    #[test]
    fn bad_shapes_are_refused() {
        let a = TensorType::f32([2, 3, 4]);
        assert!(Concat::PLAIN.infer(&[&a, &TensorType::f32([2, 2, 4])]).is_err());
        assert!(SliceChannels::plain(3, 2).infer(&[&a]).is_err());
        assert!(SliceChannels::plain(usize::MAX, 2).infer(&[&a]).is_err());
    }
}
