//! Multiplication element by element, of equal shapes or of all pixels by a row.

mod cpu;
mod launch;

use super::{Build, GradArgs, LaunchArgs, Op, TensorId, broadcast};
use crate::device::{KernelWork, TensorType};
use crate::error::Result;
use std::sync::Arc;

/// `a` `[B, …, C]`, `b` of the same shape or `[C]`, `[1, C]` or `[B, C]` → `y` = a·b.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mul;

impl Op for Mul {
    fn name(&self) -> &'static str {
        "mul"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        broadcast::infer(self.name(), inputs)
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let Some(dy) = args.output_grads[0] else {
            return Ok(vec![None, None]);
        };
        let (a, b) = (args.inputs[0], args.inputs[1]);
        let mut grads = vec![None, None];
        if args.needs[0] {
            grads[0] = Some(graph.push(Arc::new(Mul), &[dy, b])?[0]);
        }
        if args.needs[1] {
            let product = graph.push(Arc::new(Mul), &[dy, a])?[0];
            grads[1] = Some(broadcast::reduce(graph, product, a, b)?);
        }
        Ok(grads)
    }

    fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        broadcast::half(inputs)
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
    fn values_and_gradients() {
        let a = Host::new(&[2, 1, 2], vec![1.0, 2.0, 3.0, 4.0]);
        let b = Host::new(&[1, 2], vec![10.0, -1.0]);
        assert_eq!(run(&Mul, &[&a, &b])[0].data, [10.0, -2.0, 30.0, -4.0]);
        let a = Host::random(&[2, 3, 2, 5], 1);
        for shape in [&[2, 3, 2, 5][..], &[5], &[1, 5], &[2, 5]] {
            check_gradient(Arc::new(Mul), &[a.clone(), Host::random(shape, 2)], &[0], 1e-3);
        }
    }

    #[test]
    fn neither_threads_nor_batch_matter() {
        let (a, b) = (Host::random(&[3, 60, 60, 7], 1), Host::random(&[3, 7], 2));
        check_threads(&Mul, &[&a, &b]);
        check_batch(&Mul, &[&a, &b], &[true, true], &[0]);
    }
}
