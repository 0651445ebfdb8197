//! Sums and products element by element, of equal shapes or of all pixels with a row.

mod cpu;
mod launch;

use super::sum_pixels::{Rows, SumPixels};
use super::{Build, GradArgs, LaunchArgs, Op, TensorId, shape};
use crate::device::{KernelWork, TensorType};
use crate::error::{Error, Result};
use crate::ops::scale_add::ScaleAdd;
use std::sync::Arc;

/// `a` `[B, …, C]`, `b` of the same shape or `[C]`, `[1, C]` or `[B, C]` → `y` of the shape of `a`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Combine {
    /// y = s₀·a + s₁·b.
    Sum([f32; 2]),
    /// y = a·b.
    Product,
}

impl Combine {
    /// y = a + b.
    pub const ADD: Combine = Combine::Sum([1.0, 1.0]);

    /// The magnitude-preserving sum ((1 − t)·a + t·b) / √((1 − t)² + t²)
    /// (Karras et al. 2024, arXiv:2312.02696, eq. 88).
    pub fn mp_sum(t: f64) -> Combine {
        let norm = ((1.0 - t).powi(2) + t.powi(2)).sqrt();
        Combine::Sum([((1.0 - t) / norm) as f32, (t / norm) as f32])
    }

    /// The gradient of one input, before it is summed to the input's shape.
    fn gradient(
        &self,
        graph: &mut dyn Build,
        args: &GradArgs,
        dy: TensorId,
        which: usize,
    ) -> Result<TensorId> {
        match self {
            Combine::Sum(scales) if scales[which] == 1.0 => Ok(dy),
            Combine::Sum(scales) => {
                let op = ScaleAdd { scale: scales[which], offset: 0.0 };
                Ok(graph.push(Arc::new(op), &[dy])?[0])
            }
            Combine::Product => {
                Ok(graph.push(Arc::new(Combine::Product), &[dy, args.inputs[1 - which]])?[0])
            }
        }
    }
}

/// What may be float16: `a`, and `b` unless it is a row.
fn marks(inputs: &[&TensorType]) -> [bool; 2] {
    [true, inputs.len() == 2 && inputs[0].shape == inputs[1].shape]
}

impl Op for Combine {
    fn name(&self) -> &'static str {
        match self {
            Combine::Sum(_) => "add",
            Combine::Product => "mul",
        }
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::halves(self.name(), inputs, 2..=2, &marks(inputs))?;
        let (a, b) = (inputs[0], inputs[1]);
        if a.shape != b.shape && Rows::of(a, b).is_none() {
            return Err(Error::operation(
                self.name(),
                format!("b must be as a, or [C], [1, C] or [B, C] of it: {a:?} and {b:?}"),
            ));
        }
        Ok(vec![a.clone()])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let mut grads = vec![None, None];
        let Some(dy) = args.output_grads[0] else { return Ok(grads) };
        if args.needs[0] {
            grads[0] = Some(self.gradient(graph, args, dy, 0)?);
        }
        if args.needs[1] {
            let whole = self.gradient(graph, args, dy, 1)?;
            let (a, b) = (graph.ty(args.inputs[0]), graph.ty(args.inputs[1]));
            grads[1] = Some(match a.shape == b.shape {
                true => whole,
                false => {
                    let rows = Rows::of(a, b).expect("shapes were checked");
                    graph.push(Arc::new(SumPixels { rows }), &[whole])?[0]
                }
            });
        }
        Ok(grads)
    }

    fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        shape::follow(inputs, &marks(inputs))
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Host, check_batch, check_gradient, check_threads, run};

    const OPS: [Combine; 3] = [Combine::ADD, Combine::Sum([0.5, -2.0]), Combine::Product];

    #[test]
    fn rows_are_added_to_all_pixels() {
        let a = Host::new(&[2, 2, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let per_sample = Host::new(&[2, 2], vec![10.0, 20.0, 30.0, 40.0]);
        let want = [11.0, 22.0, 13.0, 24.0, 35.0, 46.0, 37.0, 48.0];
        assert_eq!(run(&Combine::ADD, &[&a, &per_sample])[0].data, want);
        for shape in [&[2][..], &[1, 2]] {
            let row = Host::new(shape, vec![10.0, 20.0]);
            let want = [11.0, 22.0, 13.0, 24.0, 15.0, 26.0, 17.0, 28.0];
            assert_eq!(run(&Combine::ADD, &[&a, &row])[0].data, want);
        }
    }

    #[test]
    fn scaled_sums_and_products() {
        let a = Host::new(&[2, 1, 2], vec![1.0, 2.0, 3.0, 4.0]);
        let b = Host::new(&[1, 2], vec![10.0, -1.0]);
        assert_eq!(run(&Combine::Product, &[&a, &b])[0].data, [10.0, -2.0, 30.0, -4.0]);
        assert_eq!(run(&Combine::Sum([2.0, 0.5]), &[&a, &b])[0].data, [7.0, 3.5, 11.0, 7.5]);
        let Combine::Sum([a, b]) = Combine::mp_sum(0.3) else { panic!("a sum") };
        assert!((a * a + b * b - 1.0).abs() <= 1e-6 && (b / a - 3.0 / 7.0).abs() <= 1e-6);
    }

    #[test]
    fn gradients() {
        let a = Host::random(&[2, 3, 2, 5], 1);
        let rows = [Host::random(&[3, 5], 1), Host::random(&[1, 5], 2)];
        for op in OPS {
            for shape in [&[2, 3, 2, 5][..], &[5], &[1, 5], &[2, 5]] {
                check_gradient(Arc::new(op), &[a.clone(), Host::random(shape, 2)], &[0], 1e-3);
            }
            check_gradient(Arc::new(op), &rows, &[0], 1e-3);
        }
    }

    #[test]
    fn neither_threads_nor_batch_matter() {
        let (a, b) = (Host::random(&[3, 60, 60, 7], 1), Host::random(&[3, 7], 2));
        for op in OPS {
            check_threads(&op, &[&a, &b]);
            check_batch(&op, &[&a, &b], &[true, true], &[0]);
        }
    }

    #[test]
    fn other_shapes_are_refused() {
        let a = TensorType::f32([2, 4, 3]);
        for shape in [&[4, 3][..], &[2], &[2, 1, 3], &[4, 2, 3]] {
            assert!(Combine::ADD.infer(&[&a, &TensorType::f32(shape)]).is_err());
        }
    }
}
