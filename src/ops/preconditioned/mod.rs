//! What a preconditioned network gives, from its input and the output of the network inside
//! (Karras et al. 2022, arXiv:2206.00364, eq. 7). Float32 whatever the precision: at low noise it is
//! the input but for little, and that little is what a sampler goes by.

pub(super) mod cpu;
mod launch;

use super::combine::Combine;
use super::sum_pixels::{Rows, SumPixels};
use super::{Build, GradArgs, LaunchArgs, Op, TensorId, shape};
use crate::device::{DType, KernelWork, TensorType};
use crate::error::{Error, Result};
use std::sync::Arc;

/// `x` and `output` `[B, …, C]`, `c_skip` and `c_out` `[1, C]` or `[B, C]` → `y` = c_skip·x +
/// c_out·output of the same shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preconditioned;

/// The output of the network inside may be float16.
const HALF: [bool; 4] = [false, true, false, false];

impl Op for Preconditioned {
    fn name(&self) -> &'static str {
        "preconditioned"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::halves(self.name(), inputs, 4..=4, &HALF)?;
        let [x, output, c_skip, c_out] = inputs else { unreachable!("there are four") };
        let rows = matches!(Rows::of(x, c_skip), Some(Rows::One | Rows::Samples));
        if x.shape != output.shape || c_skip != c_out || !rows {
            return Err(Error::operation(
                self.name(),
                format!(
                    "x and output must be alike, c_skip and c_out [1, C] or [B, C] of them: {x:?}, \
                     {output:?}, {c_skip:?} and {c_out:?}"
                ),
            ));
        }
        Ok(vec![x.with_dtype(DType::F32)])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let mut grads = vec![None; 4];
        let Some(dy) = args.output_grads[0] else { return Ok(grads) };
        for which in (0..4).filter(|&which| args.needs[which]) {
            // Of x and c_skip, of output and c_out, each is the other's factor.
            let factor = args.inputs[(which + 2) % 4];
            let mut grad = graph.push(Arc::new(Combine::Product), &[dy, factor])?[0];
            if which >= 2 {
                let rows = Rows::of(graph.ty(dy), graph.ty(args.inputs[which]));
                let rows = rows.expect("shapes were checked");
                grad = graph.push(Arc::new(SumPixels { rows }), &[grad])?[0];
            }
            grads[which] = Some(grad);
        }
        Ok(grads)
    }

    fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        shape::follow(inputs, &HALF)
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Host, check_batch, check_gradient, check_threads, run};

    fn inputs(batch: usize, rows: usize, size: usize, channels: usize) -> [Host; 4] {
        let image = |seed| Host::random(&[batch, size, size, channels], seed);
        let row = |seed| Host::random(&[rows, channels], seed);
        [image(1), image(2), row(3), row(4)]
    }

    #[test]
    fn each_sample_has_its_rows() {
        let image = Host::new(&[2, 2, 1], vec![1.0, 2.0, 3.0, 4.0]);
        let output = Host::new(&[2, 2, 1], vec![1.0, -1.0, 0.5, 0.0]);
        let c_skip = Host::new(&[2, 1], vec![0.5, 2.0]);
        let c_out = Host::new(&[2, 1], vec![1.0, 10.0]);
        let y = run(&Preconditioned, &[&image, &output, &c_skip, &c_out]);
        assert_eq!(y[0].data, [1.5, 0.0, 11.0, 8.0]);
        let [c_skip, c_out] = [0.5, -1.0].map(|value| Host::new(&[1, 1], vec![value]));
        let y = run(&Preconditioned, &[&image, &output, &c_skip, &c_out]);
        assert_eq!(y[0].data, [-0.5, 2.0, 1.0, 2.0]);
    }

    #[test]
    fn gradients() {
        for rows in [1, 3] {
            check_gradient(Arc::new(Preconditioned), &inputs(3, rows, 2, 3), &[0], 1e-3);
        }
    }

    #[test]
    fn neither_threads_nor_batch_matter() {
        let [x, output, c_skip, c_out] = &inputs(3, 3, 60, 5);
        let inputs = [x, output, c_skip, c_out];
        check_threads(&Preconditioned, &inputs);
        check_batch(&Preconditioned, &inputs, &[true; 4], &[0]);
    }

    #[test]
    fn only_the_output_of_the_network_may_be_float16() {
        let image = TensorType::f32([2, 4, 4, 3]);
        let (half, row) = (image.with_dtype(DType::F16), TensorType::f32([2, 3]));
        let y = Preconditioned.infer(&[&image, &half, &row, &row]).unwrap();
        assert_eq!(y, std::slice::from_ref(&image));
        assert!(Preconditioned.infer(&[&half, &half, &row, &row]).is_err());
        let flat = TensorType::f32([3]);
        let said = Preconditioned.infer(&[&image, &image, &flat, &flat]).unwrap_err();
        assert!(said.to_string().contains("[1, C] or [B, C]"), "{said}");
    }
}
