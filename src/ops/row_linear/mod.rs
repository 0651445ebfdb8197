//! Linear layers of rows, and their gradients, all layers of the same rows at once: those of a time embedding, and its
//! projections. `graph::fuse` makes these of the products that layers are built of.

mod cpu;
mod launch;

use super::{LaunchArgs, Op, shape};
use crate::device::{KernelWork, Target, TensorType};
use crate::error::{Error, Result};

/// Most layers of one operation.
pub const MOST_LAYERS: usize = 32;

/// What is computed of y_i = x·w_iᵀ + b_i with x \[B, K\], w_i \[C_i, K\], b_i \[C_i\]; all float32.
/// On a target that computes in float16 tensor cores multiply them, rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowLinear {
    /// x, all w_i, all b_i → all y_i \[B, C_i\].
    Forward,
    /// All dy_i \[B, C_i\], all w_i → dx = Σ dy_i·w_i over the layers in their order.
    Dgrad,
    /// x, all dy_i → all dw_i = dy_iᵀ·x, all db_i = Σ dy_i over rows.
    Wgrad,
}

/// The sizes of an operation.
struct Extents {
    rows: usize,
    width: usize,
    channels: Vec<usize>,
}

impl RowLinear {
    /// How many layers so many inputs are of.
    fn layers(&self, inputs: usize) -> usize {
        match self {
            RowLinear::Forward => (inputs - 1) / 2,
            RowLinear::Dgrad => inputs / 2,
            RowLinear::Wgrad => inputs - 1,
        }
    }

    fn extents(&self, inputs: &[&TensorType]) -> Result<Extents> {
        shape::floats(self.name(), inputs, 2..=2 * MOST_LAYERS + 1)?;
        let layers = self.layers(inputs.len());
        let (first, rest) = match self {
            RowLinear::Dgrad => inputs.split_at(layers),
            _ => inputs.split_at(1),
        };
        let two = |ty: &TensorType| <[usize; 2]>::try_from(&ty.shape[..]).ok();
        let extents = (|| {
            let [rows, _] = two(first[0])?;
            let [_, width] = two(if *self == RowLinear::Dgrad { rest[0] } else { first[0] })?;
            // Channels of a layer stand in its weight, or in the gradient of its result.
            let channels: Option<Vec<usize>> = match self {
                RowLinear::Forward => rest[..layers].iter().map(|ty| Some(two(ty)?[0])).collect(),
                RowLinear::Dgrad => first.iter().map(|ty| Some(two(ty)?[1])).collect(),
                RowLinear::Wgrad => rest.iter().map(|ty| Some(two(ty)?[1])).collect(),
            };
            Some(Extents { rows, width, channels: channels? })
        })();
        let refuse = |wanted: &[TensorType]| {
            Err(Error::operation(self.name(), format!("takes {wanted:?}, not {inputs:?}")))
        };
        let Some(extents) = extents.filter(|_| (1..=MOST_LAYERS).contains(&layers)) else {
            return refuse(&[]);
        };
        let Extents { rows, width, channels } = &extents;
        let x = TensorType::f32([*rows, *width]);
        let weights = channels.iter().map(|&c| TensorType::f32([c, *width]));
        let biases = channels.iter().map(|&c| TensorType::f32([c]));
        let results = channels.iter().map(|&c| TensorType::f32([*rows, c]));
        let wanted: Vec<TensorType> = match self {
            RowLinear::Forward => std::iter::once(x).chain(weights).chain(biases).collect(),
            RowLinear::Dgrad => results.chain(weights).collect(),
            RowLinear::Wgrad => std::iter::once(x).chain(results).collect(),
        };
        if !inputs.iter().copied().eq(&wanted) {
            return refuse(&wanted);
        }
        Ok(extents)
    }
}

impl Op for RowLinear {
    fn name(&self) -> &'static str {
        match self {
            RowLinear::Forward => "row_linear",
            RowLinear::Dgrad => "row_linear_dgrad",
            RowLinear::Wgrad => "row_linear_wgrad",
        }
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let Extents { rows, width, channels } = self.extents(inputs)?;
        let results = channels.iter().map(|&c| TensorType::f32([rows, c]));
        let weights = channels.iter().map(|&c| TensorType::f32([c, width]));
        let biases = channels.iter().map(|&c| TensorType::f32([c]));
        Ok(match self {
            RowLinear::Forward => results.collect(),
            RowLinear::Dgrad => vec![TensorType::f32([rows, width])],
            RowLinear::Wgrad => weights.chain(biases).collect(),
        })
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        self.extents(inputs).map_or(0, |Extents { rows, width, channels }| {
            2 * (rows * width * channels.iter().sum::<usize>()) as u64
        })
    }

    fn scratch(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        if target.is_cpu() { 0 } else { self.partials(inputs)[1] }
    }

    fn tickets(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        if target.is_cpu() { 0 } else { self.partials(inputs)[0] }
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Host, assert_close, check_threads, run};

    /// x, two weights, two biases: three rows of four, layers of two and one.
    fn small() -> [Host; 5] {
        [
            Host::random(&[3, 4], 1),
            Host::random(&[2, 4], 2),
            Host::random(&[1, 4], 3),
            Host::random(&[2], 4),
            Host::random(&[1], 5),
        ]
    }

    #[test]
    fn layers_and_their_gradients_are_the_definition() {
        let [x, w0, w1, b0, b1] = small();
        let (dy0, dy1) = (Host::random(&[3, 2], 6), Host::random(&[3, 1], 7));
        let y = run(&RowLinear::Forward, &[&x, &w0, &w1, &b0, &b1]);
        let dx = &run(&RowLinear::Dgrad, &[&dy0, &dy1, &w0, &w1])[0];
        let weights = run(&RowLinear::Wgrad, &[&x, &dy0, &dy1]);
        let layers = [(&w0, &b0, &dy0), (&w1, &b1, &dy1)];
        let mut want_dx = vec![0.0; 12];
        for (layer, (w, b, dy)) in layers.into_iter().enumerate() {
            let c = b.data.len();
            let dot = |row: usize, o: usize| -> f32 {
                (0..4).map(|k| x.data[4 * row + k] * w.data[4 * o + k]).sum()
            };
            let want: Vec<f32> = (0..3 * c).map(|i| dot(i / c, i % c) + b.data[i % c]).collect();
            assert_close(&y[layer].data, &want, 1e-6);
            let product = |o: usize, k: usize| -> f32 {
                (0..3).map(|row| dy.data[c * row + o] * x.data[4 * row + k]).sum()
            };
            let want: Vec<f32> = (0..4 * c).map(|i| product(i / 4, i % 4)).collect();
            assert_close(&weights[layer].data, &want, 1e-6);
            let want: Vec<f32> =
                (0..c).map(|o| (0..3).map(|row| dy.data[c * row + o]).sum()).collect();
            assert_close(&weights[2 + layer].data, &want, 1e-6);
            for (i, dx) in want_dx.iter_mut().enumerate() {
                *dx +=
                    (0..c).map(|o| dy.data[c * (i / 4) + o] * w.data[4 * o + i % 4]).sum::<f32>();
            }
        }
        assert_close(&dx.data, &want_dx, 1e-6);
    }

    #[test]
    fn threads_do_not_matter() {
        let (x, w) = (Host::random(&[5, 300], 1), Host::random(&[70, 300], 2));
        let (b, dy) = (Host::random(&[70], 3), Host::random(&[5, 70], 4));
        check_threads(&RowLinear::Forward, &[&x, &w, &b]);
        check_threads(&RowLinear::Dgrad, &[&dy, &w]);
        check_threads(&RowLinear::Wgrad, &[&x, &dy]);
    }

    #[test]
    fn other_shapes_are_refused() {
        let [x, w0, w1, b0, b1] = small().map(|host| host.ty);
        let refused = |op: RowLinear, inputs: &[&TensorType]| op.infer(inputs).unwrap_err();
        refused(RowLinear::Forward, &[&x, &w0, &w1, &b1, &b0]);
        refused(RowLinear::Forward, &[&x, &x, &b0]);
        refused(RowLinear::Dgrad, &[&x, &w0]);
        let many = vec![&x; MOST_LAYERS + 2];
        refused(RowLinear::Wgrad, &many);
    }
}
