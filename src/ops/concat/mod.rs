//! Concatenation along the channels, and its counterparts: a range of channels, and channels among
//! zeros.

mod cpu;
mod launch;

pub(in crate::ops) use launch::{Move, move_channels};

use super::{Build, GradArgs, LaunchArgs, Op, TensorId, shape};
use crate::device::{KernelWork, TensorType};
use crate::error::{Error, Result};
use std::sync::Arc;

/// `a` `[B, …, C₁]`, `b` `[B, …, C₂]` → `y` `[B, …, C₁ + C₂]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Concat;

/// `x` `[B, …, C]` → `y` `[B, …, channels]`: channels `start..start + channels`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceChannels {
    pub start: usize,
    pub channels: usize,
}

/// `x` `[B, …, C]` → `y` `[B, …, before + C + after]`: zeros before and behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PadChannels {
    pub before: usize,
    pub after: usize,
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
                    *grad =
                        Some(graph.push(Arc::new(SliceChannels { start, channels }), &[dy])?[0]);
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
        let Some(dy) = args.output_grads[0].filter(|_| args.needs[0]) else {
            return Ok(vec![None]);
        };
        let after = channels(graph.ty(args.inputs[0])) - self.start - self.channels;
        let op = PadChannels { before: self.start, after };
        Ok(vec![Some(graph.push(Arc::new(op), &[dy])?[0])])
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
        let Some(dy) = args.output_grads[0].filter(|_| args.needs[0]) else {
            return Ok(vec![None]);
        };
        let channels = channels(graph.ty(args.inputs[0]));
        let op = SliceChannels { start: self.before, channels };
        Ok(vec![Some(graph.push(Arc::new(op), &[dy])?[0])])
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
        let y = run(&Concat, &[&a, &b])[0].clone();
        assert_eq!(y.data, [1.0, 2.0, 5.0, 3.0, 4.0, 6.0]);
        let slice = run(&SliceChannels { start: 1, channels: 2 }, &[&y])[0].clone();
        assert_eq!(slice.data, [2.0, 5.0, 4.0, 6.0]);
        let padded = run(&PadChannels { before: 1, after: 2 }, &[&b])[0].clone();
        assert_eq!(padded.data, [0.0, 5.0, 0.0, 0.0, 0.0, 6.0, 0.0, 0.0]);
    }

    #[test]
    fn gradients() {
        let (a, b) = (Host::random(&[2, 3, 4], 1), Host::random(&[2, 3, 3], 2));
        check_gradient(Arc::new(Concat), &[a.clone(), b], &[0], 1e-3);
        check_gradient(
            Arc::new(SliceChannels { start: 1, channels: 2 }),
            std::slice::from_ref(&a),
            &[0],
            1e-3,
        );
        check_gradient(Arc::new(PadChannels { before: 2, after: 1 }), &[a], &[0], 1e-3);
    }

    #[test]
    fn neither_threads_nor_batch_matter() {
        let (a, b) = (Host::random(&[2, 70, 70, 5], 1), Host::random(&[2, 70, 70, 3], 2));
        check_threads(&Concat, &[&a, &b]);
        check_batch(&Concat, &[&a, &b], &[true, true], &[0]);
        check_threads(&SliceChannels { start: 1, channels: 3 }, &[&a]);
    }

    #[test]
    fn bad_shapes_are_refused() {
        let a = TensorType::f32([2, 3, 4]);
        assert!(Concat.infer(&[&a, &TensorType::f32([2, 2, 4])]).is_err());
        assert!(SliceChannels { start: 3, channels: 2 }.infer(&[&a]).is_err());
        assert!(SliceChannels { start: usize::MAX, channels: 2 }.infer(&[&a]).is_err());
    }
}
