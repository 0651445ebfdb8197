//! Element types and tensor types.

use std::fmt;

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    F16,
    /// Bit patterns and counters of the step state.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::F16 => 2,
        }
    }
}

/// Shape and element type. Activations are `[B, H, W, C]`, token sequences `[B, N, C]`, weights
/// as PyTorch has them.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TensorType {
    pub shape: Vec<usize>,
    pub dtype: DType,
}

impl TensorType {
    pub fn f32(shape: impl Into<Vec<usize>>) -> Self {
        TensorType { shape: shape.into(), dtype: DType::F32 }
    }

    pub fn f16(shape: impl Into<Vec<usize>>) -> Self {
        TensorType { shape: shape.into(), dtype: DType::F16 }
    }

    pub fn u32(shape: impl Into<Vec<usize>>) -> Self {
        TensorType { shape: shape.into(), dtype: DType::U32 }
    }

    /// The same shape with elements of another type.
    pub fn with_dtype(&self, dtype: DType) -> Self {
        TensorType { shape: self.shape.clone(), dtype }
    }

    /// The largest number there is where the true one is larger, so that limits refuse it.
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1, |product: usize, &size| product.saturating_mul(size))
    }

    pub fn bytes(&self) -> usize {
        self.elements().saturating_mul(self.dtype.size())
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = match self.dtype {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::U32 => "u32",
        };
        write!(f, "{dtype}{:?}", self.shape)
    }
}
