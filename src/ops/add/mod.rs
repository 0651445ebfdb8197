//! Addition, of equal shapes or of a row to all pixels.

mod cpu;
mod launch;

pub(in crate::ops) use launch::combine;

use super::{Build, GradArgs, LaunchArgs, Op, TensorId, broadcast};
use crate::device::{KernelWork, TensorType};
use crate::error::Result;

/// `a` `[B, …, C]`, `b` of the same shape or `[C]`, `[1, C]` or `[B, C]` → `y` = a + b.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Add;

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        broadcast::infer(self.name(), inputs)
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let Some(dy) = args.output_grads[0] else {
            return Ok(vec![None, None]);
        };
        let (a, b) = (args.inputs[0], args.inputs[1]);
        let db = match args.needs[1] {
            true => Some(broadcast::reduce(graph, dy, a, b)?),
            false => None,
        };
        Ok(vec![args.needs[0].then_some(dy), db])
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
    use std::sync::Arc;

    #[test]
    fn rows_are_added_to_all_pixels() {
        let a = Host::new(&[2, 2, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let per_sample = Host::new(&[2, 2], vec![10.0, 20.0, 30.0, 40.0]);
        let want = [11.0, 22.0, 13.0, 24.0, 35.0, 46.0, 37.0, 48.0];
        assert_eq!(run(&Add, &[&a, &per_sample])[0].data, want);
        for shape in [&[2][..], &[1, 2]] {
            let row = Host::new(shape, vec![10.0, 20.0]);
            let want = [11.0, 22.0, 13.0, 24.0, 15.0, 26.0, 17.0, 28.0];
            assert_eq!(run(&Add, &[&a, &row])[0].data, want);
        }
    }

    #[test]
    fn gradients() {
        let a = Host::random(&[2, 3, 2, 5], 1);
        for shape in [&[2, 3, 2, 5][..], &[5], &[1, 5], &[2, 5]] {
            check_gradient(Arc::new(Add), &[a.clone(), Host::random(shape, 2)], &[0], 1e-3);
        }
        let rows = [Host::random(&[3, 5], 1), Host::random(&[1, 5], 2)];
        check_gradient(Arc::new(Add), &rows, &[0], 1e-3);
    }

    #[test]
    fn neither_threads_nor_batch_matter() {
        let (a, b) = (Host::random(&[3, 60, 60, 7], 1), Host::random(&[3, 7], 2));
        check_threads(&Add, &[&a, &b]);
        check_batch(&Add, &[&a, &b], &[true, true], &[0]);
    }

    #[test]
    fn other_shapes_are_refused() {
        let a = TensorType::f32([2, 4, 3]);
        for shape in [&[4, 3][..], &[2], &[2, 1, 3], &[4, 2, 3]] {
            assert!(Add.infer(&[&a, &TensorType::f32(shape)]).is_err());
        }
    }
}
