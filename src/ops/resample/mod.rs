//! Nearest-neighbour upsampling and pooling by integer factors: each the other's gradient.

mod cpu;
mod launch;

use super::{Build, GradArgs, LaunchArgs, Op, TensorId, shape};
use crate::device::{KernelWork, TensorType};
use crate::error::{Error, Result};

/// `x` `[B, H, W, C]` → `y` `[B, H·factor, W·factor, C]`, each element scale·x at
/// (h / factor, w / factor); PyTorch's `nearest` with scale 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpsampleNearest2d {
    pub factor: usize,
    pub scale: f32,
}

/// `x` `[B, H, W, C]` → `y` `[B, H / factor, W / factor, C]`: scale times the sum over each square
/// of factor × factor; the average pool with scale 1 / factor².
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pool2d {
    pub factor: usize,
    pub scale: f32,
}

impl UpsampleNearest2d {
    /// Copies, as networks use it.
    pub fn copies(factor: usize) -> Self {
        UpsampleNearest2d { factor, scale: 1.0 }
    }
}

impl Pool2d {
    /// The mean of each square.
    pub fn average(factor: usize) -> Self {
        Pool2d { factor, scale: 1.0 / (factor * factor) as f32 }
    }
}

fn image(name: &str, inputs: &[&TensorType], factor: usize) -> Result<[usize; 4]> {
    shape::halves(name, inputs, 1..=1, &[true])?;
    match inputs[0].shape[..] {
        [b, h, w, c] if factor > 0 => Ok([b, h, w, c]),
        _ => Err(Error::operation(
            name,
            format!("takes [B, H, W, C] and a factor of at least 1, not {:?}, {factor}", inputs[0]),
        )),
    }
}

impl Op for UpsampleNearest2d {
    fn name(&self) -> &'static str {
        "upsample_nearest2d"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let [b, h, w, c] = image(self.name(), inputs, self.factor)?;
        let shape = vec![b, h * self.factor, w * self.factor, c];
        Ok(vec![TensorType { shape, ..*inputs[0] }])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        args.transposed(graph, |_| Pool2d { factor: self.factor, scale: self.scale })
    }

    fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        shape::follow(inputs, &[true])
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

impl Op for Pool2d {
    fn name(&self) -> &'static str {
        "pool2d"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let [b, h, w, c] = image(self.name(), inputs, self.factor)?;
        if !h.is_multiple_of(self.factor) || !w.is_multiple_of(self.factor) {
            return Err(Error::operation(
                self.name(),
                format!("height {h} and width {w} must be multiples of {}", self.factor),
            ));
        }
        let shape = vec![b, h / self.factor, w / self.factor, c];
        Ok(vec![TensorType { shape, ..*inputs[0] }])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        args.transposed(graph, |_| UpsampleNearest2d { factor: self.factor, scale: self.scale })
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
    use std::sync::Arc;

    #[test]
    fn values() {
        let x = Host::new(&[1, 1, 2, 2], vec![1.0, 2.0, 3.0, 4.0]);
        let up = run(&UpsampleNearest2d::copies(2), &[&x])[0].clone();
        assert_eq!(up.ty.shape, [1, 2, 4, 2]);
        let row = [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0];
        assert_eq!(up.data, [row, row].concat());
        let x = Host::new(&[1, 2, 2, 1], vec![1.0, 2.0, 3.0, 6.0]);
        assert_eq!(run(&Pool2d::average(2), &[&x])[0].data, [3.0]);
    }

    #[test]
    fn gradients() {
        for factor in [1, 2, 3] {
            let x = Host::random(&[2, 3 * factor, 2 * factor, 3], 1);
            check_gradient(
                Arc::new(UpsampleNearest2d::copies(factor)),
                std::slice::from_ref(&x),
                &[0],
                1e-3,
            );
            check_gradient(Arc::new(Pool2d::average(factor)), &[x], &[0], 1e-3);
        }
    }

    #[test]
    fn neither_threads_nor_batch_matter() {
        let x = Host::random(&[2, 24, 26, 33], 1);
        for op in [&UpsampleNearest2d::copies(2) as &dyn Op, &Pool2d::average(2)] {
            check_threads(op, &[&x]);
            check_batch(op, &[&x], &[true], &[0]);
        }
    }

    #[test]
    fn odd_sizes_are_refused() {
        assert!(Pool2d::average(2).infer(&[&TensorType::f32([1, 4, 5, 1])]).is_err());
        assert!(Pool2d { factor: 0, scale: 1.0 }.infer(&[&TensorType::f32([1, 4, 4, 1])]).is_err());
    }
}
