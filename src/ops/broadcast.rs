//! What `add` and `mul` share: `a` `[B, …, C]` with `b` of the same shape, or `b` `[C]`, `[1, C]`
//! or `[B, C]` that holds for all pixels.

use super::shape::{self, Extent, Slices};
use super::sum_pixels::{Rows, SumPixels};
use super::{Build, TensorId};
use crate::device::TensorType;
use crate::device::cpu::{Cpu, Cut, Io};
use crate::error::{Error, Result};
use std::sync::Arc;

/// What may be float16: `a`, and `b` unless it is a row.
fn marks(inputs: &[&TensorType]) -> [bool; 2] {
    [true, inputs.len() == 2 && inputs[0].shape == inputs[1].shape]
}

/// What is float16, see [`super::Op::half`].
pub fn half(inputs: &[&TensorType]) -> Vec<bool> {
    shape::follow(inputs, &marks(inputs))
}

/// The type of the result.
pub fn infer(name: &str, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
    shape::halves(name, inputs, 2..=2, &marks(inputs))?;
    let (a, b) = (inputs[0], inputs[1]);
    if a.shape != b.shape && Rows::of(a, b).is_none() {
        return Err(Error::operation(
            name,
            format!("b must be as a, or [C], [1, C] or [B, C] of it: {a:?} and {b:?}"),
        ));
    }
    Ok(vec![a.clone()])
}

/// The gradient of `b`, from a gradient of the shape of `a`.
pub fn reduce(
    graph: &mut dyn Build,
    gradient: TensorId,
    a: TensorId,
    b: TensorId,
) -> Result<TensorId> {
    if graph.ty(a).shape == graph.ty(b).shape {
        return Ok(gradient);
    }
    let rows = Rows::of(graph.ty(a), graph.ty(b)).expect("shapes were checked");
    Ok(graph.push(Arc::new(SumPixels { rows }), &[gradient])?[0])
}

/// y = a + b, or a·b if `product`.
pub fn run(cpu: &Cpu, io: Io<'_, '_>, product: bool) {
    let (a, b) = (io.inputs[0], io.inputs[1]);
    let same = a.shape == b.shape;
    let extent = Extent::of(a.shape);
    let channels = extent.channels;
    let slices = Slices::new(extent.pixels, channels);
    let cut = Cut {
        data: &mut *io.outputs[0].data,
        sample: extent.sample(),
        slice: slices.pixels * channels,
    };
    cpu.cut_mut(extent.batch, slices.count, [cut], &|sample, slice, [y]| {
        let start = sample * extent.sample() + slices.range(slice).start * channels;
        let a = &a.data[start..][..y.len()];
        let b = if same {
            &b.data[start..][..y.len()]
        } else {
            let rows = b.data.len() / channels;
            &b.data[sample % rows * channels..][..channels]
        };
        combine(cpu.simd(), a, b, y, product);
    });
}

crate::vectorised! {
    /// Combines rows of `a`, each as long as `b`, with `b`.
    fn combine<'a>(a: &'a [f32], b: &'a [f32], y: &'a mut [f32], product: bool) {
        for (y, a) in y.chunks_exact_mut(b.len()).zip(a.chunks_exact(b.len())) {
            if product {
                for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
                    *y = a * b;
                }
            } else {
                for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
                    *y = a + b;
                }
            }
        }
    }
}
