//! Weights normalised to unit magnitude, row by row (Karras et al. 2024, arXiv:2312.02696, eq. 66): a
//! row is what one output channel is made from, all but the first dimension.

mod cpu;
mod launch;

use super::sum_pixels::{Rows, SumPixels};
use super::{Build, GradArgs, LaunchArgs, Op, TensorId, shape};
use crate::device::{KernelWork, TensorType};
use crate::error::{Error, Result};
use std::sync::Arc;

/// `w` `[out, …]` and, with `learned`, a gain g `[1]` → `y` `[out, …]`: each row w of n elements
/// becomes gain·g·w / (10⁻⁴·√n + ‖w‖), which is the row normalised to unit magnitude, times gain·g/√n.
///
/// With several `parts` the rows of the weight are those of part 0, 1, … in turns; rows of `y` stand
/// part by part. So one weight for queries, keys and values in turns becomes one for three runs of
/// channels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightNorm {
    pub gain: f32,
    pub learned: bool,
    pub parts: usize,
}

/// `dy` (rows as in `y` above), `w` and, with a learned gain, g `[1]` → `dw` and, with a learned
/// gain, each row's share of dg, `[out, 1]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightNormGrad(pub WeightNorm);

/// In place on a weight `[out, …]`: each row becomes w / (10⁻⁴ + ‖w‖/√n), as EDM2 does after each
/// step of the optimizer, so that weights can't grow (the same paper, appendix B.3).
#[derive(Clone, Debug, PartialEq)]
pub struct ForceUnitNorm {
    pub shape: Vec<usize>,
}

impl WeightNorm {
    /// For a convolution or a linear layer without gain.
    pub const PLAIN: WeightNorm = WeightNorm { gain: 1.0, learned: false, parts: 1 };

    /// Where a row of the weight stands in the result.
    fn place(&self, row: usize, rows: usize) -> usize {
        row % self.parts * (rows / self.parts) + row / self.parts
    }

    /// Checks what forward and backward read but for the gradient.
    fn check(&self, name: &str, inputs: &[&TensorType]) -> Result<()> {
        let rows = inputs[0].shape[0];
        if inputs[0].shape.len() < 2 || self.parts == 0 || !rows.is_multiple_of(self.parts) {
            return Err(Error::operation(
                name,
                format!("needs [out, …], out divisible by {}, not {:?}", self.parts, inputs[0]),
            ));
        }
        match inputs.get(1) {
            Some(gain) => shape::expect(name, "gain", gain, &TensorType::f32([1])),
            None => Ok(()),
        }
    }
}

impl Op for WeightNorm {
    fn name(&self) -> &'static str {
        "weight_norm"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let count = 1 + usize::from(self.learned);
        shape::floats(self.name(), inputs, count..=count)?;
        self.check(self.name(), inputs)?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let Some(dy) = args.output_grads[0] else { return Ok(vec![None; args.inputs.len()]) };
        let mut inputs = vec![dy];
        inputs.extend(args.inputs);
        let made = graph.push(Arc::new(WeightNormGrad(*self)), &inputs)?;
        let mut grads = vec![args.needs[0].then_some(made[0])];
        if self.learned {
            grads.push(match args.needs[1] {
                true => Some(graph.push(Arc::new(SumPixels { rows: Rows::Flat }), &made[1..])?[0]),
                false => None,
            });
        }
        Ok(grads)
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

impl Op for WeightNormGrad {
    fn name(&self) -> &'static str {
        "weight_norm_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let count = 2 + usize::from(self.0.learned);
        shape::floats(self.name(), inputs, count..=count)?;
        self.0.check(self.name(), &inputs[1..])?;
        shape::expect(self.name(), "dy", inputs[0], inputs[1])?;
        let mut outputs = vec![inputs[1].clone()];
        if self.0.learned {
            outputs.push(TensorType::f32([inputs[1].shape[0], 1]));
        }
        Ok(outputs)
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

impl Op for ForceUnitNorm {
    fn name(&self) -> &'static str {
        "force_unit_norm"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::arity(self.name(), inputs, 0..=0)?;
        let w = TensorType::f32(self.shape.clone());
        shape::float(self.name(), &w)?;
        WeightNorm::PLAIN.check(self.name(), &[&w])?;
        Ok(vec![w])
    }

    fn in_place(&self) -> bool {
        true
    }

    fn bytes(&self, _: &[&TensorType], outputs: &[&TensorType]) -> u64 {
        2 * outputs[0].bytes() as u64
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Cpu;
    use crate::ops::testing::{
        Host, assert_close, assert_same_bits, check_gradient, check_threads, run, run_on,
    };

    #[test]
    fn values() {
        let w = Host::new(&[3, 2, 2], (1..=12).map(|x| x as f32).collect());
        let op = WeightNorm { gain: 2.0, learned: true, parts: 1 };
        let y = run(&op, &[&w, &Host::new(&[1], vec![0.5])])[0].clone();
        let want: Vec<f32> = w
            .data
            .chunks(4)
            .flat_map(|row| {
                let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                row.iter().map(move |x| x / (2e-4 + norm))
            })
            .collect();
        assert_close(&y.data, &want, 1e-6);
    }

    #[test]
    fn parts_that_come_in_turns_leave_one_by_one() {
        let w = Host::random(&[6, 5], 1);
        let y = run(&WeightNorm { parts: 3, ..WeightNorm::PLAIN }, &[&w])[0].clone();
        let plain = run(&WeightNorm::PLAIN, &[&w])[0].clone();
        for (at, from) in [0, 3, 1, 4, 2, 5].into_iter().enumerate() {
            assert_eq!(y.data[5 * at..5 * at + 5], plain.data[5 * from..5 * from + 5]);
        }
    }

    #[test]
    fn gradients() {
        let far = |shape: &[usize]| {
            let mut w = Host::random(shape, 1);
            w.data.iter_mut().for_each(|w| *w += 0.7f32.copysign(*w));
            w
        };
        for (shape, parts) in [(&[4, 3, 3, 3][..], 1), (&[6, 19], 3), (&[2, 1, 1, 1], 1)] {
            let op = WeightNorm { gain: 1.3, learned: false, parts };
            check_gradient(Arc::new(op), &[far(shape)], &[0], 2e-3);
            let op = WeightNorm { learned: true, ..op };
            let gain = Host::new(&[1], vec![-0.4]);
            check_gradient(Arc::new(op), &[far(shape), gain], &[0], 2e-3);
        }
        // A gain that starts at zero still has a gradient.
        let op = WeightNorm { gain: 1.0, learned: true, parts: 1 };
        let inputs = [far(&[4, 7]), Host::new(&[1], vec![0.0])];
        check_gradient(Arc::new(op), &inputs, &[0], 2e-3);
    }

    #[test]
    fn forced_rows_have_unit_magnitude_and_stay() {
        let w = Host::random(&[5, 3, 3, 3], 1);
        let op = ForceUnitNorm { shape: w.ty.shape.clone() };
        let force =
            |w: &Host| run_on(&Cpu::new(2), &op, &[], std::slice::from_ref(w)).unwrap().remove(0);
        let once = force(&w);
        for row in once.data.chunks(27) {
            let mean = row.iter().map(|x| x * x).sum::<f32>() / 27.0;
            assert!((mean - 1.0).abs() <= 1e-3, "{mean}");
        }
        assert_close(&force(&once).data, &once.data, 1e-3);
    }

    #[test]
    fn threads_do_not_matter() {
        let (w, dy) = (Host::random(&[33, 40, 3, 3], 1), Host::random(&[33, 40, 3, 3], 2));
        let gain = Host::new(&[1], vec![0.7]);
        let op = WeightNorm { gain: 1.3, learned: true, parts: 3 };
        check_threads(&op, &[&w, &gain]);
        check_threads(&WeightNormGrad(op), &[&dy, &w, &gain]);
        let force = ForceUnitNorm { shape: w.ty.shape.clone() };
        let on = |threads| {
            run_on(&Cpu::new(threads), &force, &[], std::slice::from_ref(&w)).unwrap().remove(0)
        };
        assert_same_bits(&on(1), &on(3), "threads");
    }

    #[test]
    fn bad_shapes_are_refused() {
        let (w, gain) = (TensorType::f32([4, 3]), TensorType::f32([1]));
        let thirds = WeightNorm { parts: 3, ..WeightNorm::PLAIN };
        assert!(thirds.infer(&[&w]).is_err());
        assert!(WeightNorm::PLAIN.infer(&[&w, &gain]).is_err());
        let learned = WeightNorm { learned: true, ..WeightNorm::PLAIN };
        assert!(learned.infer(&[&w, &TensorType::f32([4])]).is_err());
        assert!(WeightNorm::PLAIN.infer(&[&TensorType::f32([4])]).is_err());
        assert!(ForceUnitNorm { shape: vec![4] }.infer(&[]).is_err());
    }
}
