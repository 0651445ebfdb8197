//! What shape rules and CPU kernels share: activations seen as samples × pixels × channels, and
//! the checks that every shape rule makes.

use crate::device::cpu::Cut;
use crate::device::{DType, TensorType};
use crate::error::{Error, Result};
use std::ops::RangeInclusive;

/// An activation `[B, …, C]` as samples × pixels × channels; `[C]` is one sample of one pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub batch: usize,
    pub pixels: usize,
    pub channels: usize,
}

impl Extent {
    pub fn of(shape: &[usize]) -> Extent {
        match shape {
            [] => Extent { batch: 1, pixels: 1, channels: 1 },
            [channels] => Extent { batch: 1, pixels: 1, channels: *channels },
            [batch, pixels @ .., channels] => {
                Extent { batch: *batch, pixels: pixels.iter().product(), channels: *channels }
            }
        }
    }

    /// Elements of one sample.
    pub fn sample(&self) -> usize {
        self.pixels * self.channels
    }
}

/// Pixels of one sample cut into slices of about [`Slices::ELEMENTS`] elements: the tasks of most
/// kernels and the leaves of their reductions. Depends on the shape of one sample only.
#[derive(Clone, Copy, Debug)]
pub struct Slices {
    /// Slices of one sample.
    pub count: usize,
    /// Pixels of one slice; the last may have fewer.
    pub pixels: usize,
    total: usize,
}

impl Slices {
    /// 64 KB: half of what a core's second-level cache can hold of an input and an output.
    pub const ELEMENTS: usize = 16 << 10;

    pub fn new(pixels: usize, channels: usize) -> Slices {
        let slice = (Self::ELEMENTS / channels).clamp(1, pixels);
        Slices { count: pixels.div_ceil(slice), pixels: slice, total: pixels }
    }

    /// Pixels of slice `index`, as a range within the sample.
    pub fn range(&self, index: usize) -> std::ops::Range<usize> {
        let start = index * self.pixels;
        start..(start + self.pixels).min(self.total)
    }

    /// A tensor of this extent, cut so.
    pub fn cut<'a>(&self, extent: Extent, data: &'a mut [f32]) -> Cut<'a> {
        Cut { data, sample: extent.sample(), slice: self.pixels * extent.channels }
    }
}

/// Checks the number of inputs, and that each is float32 and not empty.
///
/// # Errors
/// Names the operation and what it was given.
pub fn floats(operation: &str, inputs: &[&TensorType], count: RangeInclusive<usize>) -> Result<()> {
    arity(operation, inputs, count)?;
    for ty in inputs {
        float(operation, ty)?;
    }
    Ok(())
}

/// Checks the number of inputs, that none is empty, and their element types: the inputs that `half`
/// marks are all float32 or all float16, the others float32. Returns the type of the marked ones.
///
/// # Errors
/// Names the operation and what it was given.
pub fn halves(
    operation: &str,
    inputs: &[&TensorType],
    count: RangeInclusive<usize>,
    half: &[bool],
) -> Result<DType> {
    arity(operation, inputs, count)?;
    let marked = |index: usize| half.get(index) == Some(&true);
    let first = inputs.iter().enumerate().find(|(index, _)| marked(*index));
    let dtype = first.map_or(DType::F32, |(_, ty)| ty.dtype);
    for (index, ty) in inputs.iter().enumerate() {
        if !(marked(index) && dtype == DType::F16 && ty.dtype == dtype) {
            float(operation, ty)?;
        } else if ty.shape.is_empty() || ty.elements() == 0 {
            return Err(empty(operation, ty));
        }
    }
    Ok(dtype)
}

/// Whether a tensor has one row a sample, as embeddings of timesteps and labels and what is made of
/// them. Rows are float32 in any precision: they are few, and an error in one is in every pixel.
pub fn is_rows(ty: &TensorType) -> bool {
    ty.shape.len() == 2
}

/// For operations that only move or combine elements: the inputs that `may` marks are float16 as soon
/// as one of them is.
pub fn follow(inputs: &[&TensorType], may: &[bool]) -> Vec<bool> {
    let half = inputs.iter().zip(may).any(|(ty, may)| *may && ty.dtype == DType::F16);
    may.iter().map(|may| *may && half).collect()
}

/// Checks the number of inputs.
///
/// # Errors
/// Names the operation and the number.
pub fn arity(operation: &str, inputs: &[&TensorType], count: RangeInclusive<usize>) -> Result<()> {
    if count.contains(&inputs.len()) {
        return Ok(());
    }
    let wanted = match (count.start(), count.end()) {
        (low, high) if low == high => low.to_string(),
        (low, high) => format!("{low} to {high}"),
    };
    Err(Error::operation(operation, format!("takes {wanted} inputs, not {}", inputs.len())))
}

/// Checks that a tensor is float32 and has at least one element.
///
/// # Errors
/// Names the operation and the type.
pub fn float(operation: &str, ty: &TensorType) -> Result<()> {
    if ty.shape.is_empty() || ty.elements() == 0 {
        return Err(empty(operation, ty));
    }
    if ty.dtype != DType::F32 {
        return Err(Error::operation(operation, format!("needs a float32 tensor, not {ty:?}")));
    }
    Ok(())
}

fn empty(operation: &str, ty: &TensorType) -> Error {
    Error::operation(operation, format!("{ty:?} is empty; each dimension must be at least 1"))
}

/// Checks that a tensor has exactly this type.
///
/// # Errors
/// Names the operation, the tensor's role and both types.
pub fn expect(operation: &str, role: &str, ty: &TensorType, wanted: &TensorType) -> Result<()> {
    if ty == wanted {
        return Ok(());
    }
    Err(Error::operation(operation, format!("{role} must be {wanted:?}, not {ty:?}")))
}

/// Whether these are moments that a convolution left of a source with so many channels from `offset` on,
/// `[B, parts, 3, slices]`: of each part of a sample's pixels and each slice of channels the number of elements,
/// their mean, and the sum of their squared deviations from it. A part may be empty, with some finite mean, but not the
/// first. Parts and the channels of a slice are powers of two, and no slice belongs to two groups of `width` channels.
pub fn are_moments(
    ty: &TensorType,
    batch: usize,
    channels: usize,
    offset: usize,
    width: usize,
) -> bool {
    let &[samples, parts, 3, slices] = &ty.shape[..] else { return false };
    if ty.dtype != DType::F32 || slices == 0 || !channels.is_multiple_of(slices) {
        return false;
    }
    let slice = channels / slices;
    let alone = width.is_multiple_of(slice) && offset.is_multiple_of(slice);
    samples == batch && alone && slice.is_power_of_two() && parts.is_power_of_two()
}

/// log2 of a slice's channels and of parts, of accepted moments of a source with so many channels, as kernels
/// take them; −1 and 0 where there are none.
pub fn moments_logs(moments: Option<&TensorType>, channels: usize) -> [i32; 2] {
    let Some(ty) = moments else { return [-1, 0] };
    [channels / ty.shape[3], ty.shape[1]].map(|power| power.ilog2() as i32)
}
