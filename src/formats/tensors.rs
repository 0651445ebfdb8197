//! Named tensors in memory and in safetensors files. A file is checked against its own length
//! before anything is allocated; written files are the same bytes for the same tensors.

use super::atomic::write_atomic;
use crate::error::{Error, Result};
use crate::models::Weights;
use crate::models::json_config::shorten;
use half::{bf16, f16};
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// Elements of a tensor, in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    F64(Vec<f64>),
    I64(Vec<i64>),
    /// Read as such; nothing in this project writes it.
    I32(Vec<i32>),
    U8(Vec<u8>),
}

/// Calls `$body` with `$values` bound to the vector, whatever its element type.
macro_rules! each {
    ($data:expr, $values:ident => $body:expr) => {
        match $data {
            TensorData::F32($values) => $body,
            TensorData::F16($values) => $body,
            TensorData::Bf16($values) => $body,
            TensorData::F64($values) => $body,
            TensorData::I64($values) => $body,
            TensorData::I32($values) => $body,
            TensorData::U8($values) => $body,
        }
    };
}

impl TensorData {
    pub fn len(&self) -> usize {
        each!(self, values => values.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As safetensors names it, e.g. `F32`.
    pub fn type_name(&self) -> &'static str {
        match self {
            TensorData::F32(_) => "F32",
            TensorData::F16(_) => "F16",
            TensorData::Bf16(_) => "BF16",
            TensorData::F64(_) => "F64",
            TensorData::I64(_) => "I64",
            TensorData::I32(_) => "I32",
            TensorData::U8(_) => "U8",
        }
    }

    fn element_bytes(&self) -> usize {
        match self {
            TensorData::F64(_) | TensorData::I64(_) => 8,
            TensorData::F32(_) | TensorData::I32(_) => 4,
            TensorData::F16(_) | TensorData::Bf16(_) => 2,
            TensorData::U8(_) => 1,
        }
    }

    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        each!(self, values => {
            if cfg!(target_endian = "little") {
                return out.write_all(bytemuck::cast_slice(values));
            }
            values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
        })
    }
}

/// A shape and its elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: TensorData,
}

impl Tensor {
    /// # Panics
    /// Where the shape doesn't hold as many elements as there are values: a mistake in the caller.
    pub fn f32(shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Self {
        Self::new(shape, TensorData::F32(values))
    }

    /// # Panics
    /// As [`Tensor::f32`].
    pub fn i64(shape: impl Into<Vec<usize>>, values: Vec<i64>) -> Self {
        Self::new(shape, TensorData::I64(values))
    }

    /// # Panics
    /// As [`Tensor::f32`].
    pub fn new(shape: impl Into<Vec<usize>>, data: TensorData) -> Self {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), data.len(), "elements of shape {shape:?}");
        Tensor { shape, data }
    }

    /// The elements as float32: exact for F32, F16 and BF16, rounded for F64; `None` for integers.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        self.clone().into_f32()
    }

    /// [`Tensor::to_f32`] without a copy where the elements are float32 already.
    pub fn into_f32(self) -> Option<Vec<f32>> {
        match self.data {
            TensorData::F32(values) => Some(values),
            TensorData::F16(values) => Some(values.into_iter().map(f16::to_f32).collect()),
            TensorData::Bf16(values) => Some(values.into_iter().map(bf16::to_f32).collect()),
            TensorData::F64(values) => Some(values.into_iter().map(|v| v as f32).collect()),
            TensorData::I64(_) | TensorData::I32(_) | TensorData::U8(_) => None,
        }
    }

    /// The elements of an integer tensor.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        match &self.data {
            TensorData::I64(values) => Some(values.clone()),
            TensorData::I32(values) => Some(values.iter().map(|&v| v.into()).collect()),
            TensorData::U8(values) => Some(values.iter().map(|&v| v.into()).collect()),
            _ => None,
        }
    }

    /// Index of the first NaN or infinity.
    fn first_non_finite(&self) -> Option<usize> {
        match &self.data {
            TensorData::F32(values) => values.iter().position(|v| !v.is_finite()),
            TensorData::F16(values) => values.iter().position(|v| !v.is_finite()),
            TensorData::Bf16(values) => values.iter().position(|v| !v.is_finite()),
            TensorData::F64(values) => values.iter().position(|v| !v.is_finite()),
            TensorData::I64(_) | TensorData::I32(_) | TensorData::U8(_) => None,
        }
    }
}

/// Tensors by name, in alphabetical order, with a file's metadata.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensors {
    pub metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Tensor>,
}

impl Tensors {
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a safetensors file. NaN and infinities are kept: callers that can't use them ask
    /// [`Tensors::require_finite`].
    ///
    /// # Errors
    /// A file that can't be read, is truncated, contradicts itself, or holds an element type other
    /// than those of [`TensorData`]. Nothing is allocated beyond a small multiple of its length.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (mut file, header) = open(path)?;
        let mut tensors = BTreeMap::new();
        let infos = header.tensors();
        for name in header.offset_keys() {
            let info = infos[&name];
            let Some(data) =
                decode(info.dtype, info.data_offsets.1 - info.data_offsets.0, &mut file)
            else {
                return Err(Error::file(
                    path,
                    format!(
                        "the tensor `{}` has the element type {}; supported are F32, F16, BF16, \
                         F64, I64, I32 and U8",
                        shorten(&name),
                        info.dtype
                    ),
                ));
            };
            let data = data.map_err(|error| Error::io(path, error))?;
            tensors.insert(name, Tensor { shape: info.shape.clone(), data });
        }
        Ok(Tensors { metadata: metadata(&header), tensors })
    }

    /// Reads the metadata of a safetensors file and none of its tensors.
    ///
    /// # Errors
    /// A file that can't be read, is truncated or contradicts itself.
    pub fn read_metadata(path: impl AsRef<Path>) -> Result<BTreeMap<String, String>> {
        open(path.as_ref()).map(|(_, header)| metadata(&header))
    }

    /// Writes a safetensors file, whole or not at all; the same tensors give the same bytes.
    ///
    /// # Errors
    /// What the operating system says, with the path.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        self.write_with(path, &self.metadata)
    }

    /// [`Tensors::write`] with other metadata.
    ///
    /// # Errors
    /// As [`Tensors::write`].
    pub fn write_with(
        &self,
        path: impl AsRef<Path>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        let path = path.as_ref();
        // Wider elements first keep every tensor aligned, as the format wants.
        let mut order: Vec<_> = self.tensors.iter().collect();
        order.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.data.element_bytes()));
        let mut header = serde_json::Map::new();
        if !metadata.is_empty() {
            header.insert("__metadata__".into(), serde_json::json!(metadata));
        }
        let mut offset = 0;
        for (name, tensor) in &order {
            let end = offset + tensor.data.len() * tensor.data.element_bytes();
            header.insert(
                name.to_string(),
                serde_json::json!({
                    "dtype": tensor.data.type_name(),
                    "shape": tensor.shape,
                    "data_offsets": [offset, end],
                }),
            );
            offset = end;
        }
        let mut header = serde_json::Value::Object(header).to_string();
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        write_atomic(path, |out| {
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(header.as_bytes())?;
            order.iter().try_for_each(|(_, tensor)| tensor.data.write(out))
        })
    }

    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) -> Option<Tensor> {
        self.tensors.insert(name.into(), tensor)
    }

    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    pub fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.tensors.remove(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Takes a floating-point tensor of this shape out, as float32.
    ///
    /// # Errors
    /// A tensor that is missing, or of another shape or kind; `path` is named.
    pub fn take_f32(&mut self, name: &str, shape: &[usize], path: &Path) -> Result<Vec<f32>> {
        let Some(tensor) = self.tensors.remove(name) else {
            return Err(Error::file(path, format!("lacks the tensor `{name}`")));
        };
        if tensor.shape != shape {
            let what = format!(
                "the tensor `{name}` has the shape {:?}; the configuration needs {shape:?}",
                tensor.shape
            );
            return Err(Error::file(path, what));
        }
        let kind = tensor.data.type_name();
        tensor.into_f32().ok_or_else(|| {
            Error::file(path, format!("the tensor `{name}` is {kind}; floating point is needed"))
        })
    }

    /// Takes a network's weights out: exactly those of `parameters` (see
    /// [`crate::models::parameters`]), in its order, as float32.
    ///
    /// # Errors
    /// Tensors that are missing, surplus, or of another shape or kind; `path` is named.
    pub fn take_weights(
        &mut self,
        parameters: Vec<(String, Vec<usize>)>,
        path: &Path,
    ) -> Result<Weights> {
        self.require_names(parameters.iter().map(|(name, _)| name.as_str()), path)?;
        let take = |(name, shape): (String, Vec<usize>)| {
            let values = self.take_f32(&name, &shape, path)?;
            Ok((name, shape, values))
        };
        Ok(Weights { tensors: parameters.into_iter().map(take).collect::<Result<_>>()? })
    }

    /// Whether exactly the tensors of `expected` are there.
    ///
    /// # Errors
    /// Names the missing and the surplus ones.
    pub fn require_names<'a>(
        &self,
        expected: impl IntoIterator<Item = &'a str>,
        path: &Path,
    ) -> Result<()> {
        let expected: std::collections::BTreeSet<&str> = expected.into_iter().collect();
        let missing: Vec<&str> =
            expected.iter().copied().filter(|name| !self.tensors.contains_key(*name)).collect();
        let surplus: Vec<&str> = self.names().filter(|name| !expected.contains(name)).collect();
        let mut said = Vec::new();
        for (what, names) in [("lacks", &missing), ("has, beyond the configuration,", &surplus)] {
            if !names.is_empty() {
                said.push(format!("{what} {}", listed(names)));
            }
        }
        if said.is_empty() {
            return Ok(());
        }
        let what =
            format!("{}; the weights and the configuration are not a pair", said.join(" and "));
        Err(Error::file(path, what))
    }

    /// Whether no element is NaN or infinite.
    ///
    /// # Errors
    /// Names the first tensor with such an element, and where in it.
    pub fn require_finite(&self, path: &Path) -> Result<()> {
        for (name, tensor) in &self.tensors {
            if let Some(index) = tensor.first_non_finite() {
                let what = format!(
                    "the tensor `{}` is NaN or infinite at element {index}; use a file from before \
                     that happened",
                    shorten(name)
                );
                return Err(Error::file(path, what));
            }
        }
        Ok(())
    }
}

impl FromIterator<(String, Tensor)> for Tensors {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> Self {
        Tensors { metadata: BTreeMap::new(), tensors: tensors.into_iter().collect() }
    }
}

impl IntoIterator for Tensors {
    type Item = (String, Tensor);
    type IntoIter = std::collections::btree_map::IntoIter<String, Tensor>;

    fn into_iter(self) -> Self::IntoIter {
        self.tensors.into_iter()
    }
}

/// A few names and how many more there are.
fn listed(names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(3).map(|n| format!("`{}`", shorten(n))).collect();
    let rest = match names.len().saturating_sub(3) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let noun = if names.len() == 1 { "the tensor" } else { "the tensors" };
    format!("{noun} {}{rest}", shown.join(", "))
}

/// Opens a file, at its first tensor, and reads its header.
fn open(path: &Path) -> Result<(File, Metadata)> {
    let mut file = File::open(path).map_err(|error| Error::io(path, error))?;
    let status = file.metadata().map_err(|error| Error::io(path, error))?;
    if !status.is_file() {
        return Err(Error::file(path, "is no file; a .safetensors file is needed"));
    }
    let length = status.len();
    let mut prefix = [0_u8; 8];
    if length < 8 {
        let what = format!(
            "is no safetensors file: {length} bytes, fewer than the 8 that every one begins \
             with; copy or download it again"
        );
        return Err(Error::file(path, what));
    }
    file.read_exact(&mut prefix).map_err(|error| Error::io(path, error))?;
    let header = u64::from_le_bytes(prefix);
    if header > length - 8 {
        let what = format!(
            "is no safetensors file, or a truncated one: its header claims {header} bytes, but \
             only {} follow; copy or download it again",
            length - 8
        );
        return Err(Error::file(path, what));
    }
    let header = parse_header(&mut file, prefix, length, path)?;
    Ok((file, header))
}

fn metadata(header: &Metadata) -> BTreeMap<String, String> {
    header.metadata().clone().unwrap_or_default().into_iter().collect()
}

/// Reads and checks the header of a file of `length` bytes whose first 8 are `prefix`.
fn parse_header(file: &mut File, prefix: [u8; 8], length: u64, path: &Path) -> Result<Metadata> {
    let too_large =
        || Error::file(path, format!("{length} bytes don't fit into this machine's memory"));
    let size = usize::try_from(length).map_err(|_| too_large())?;
    // The crate checks a header against a buffer as long as the whole file, but looks at its
    // beginning only. So the rest is promised, not filled: a vector's spare zeros, which the
    // operating system hands out when they are touched.
    Vec::<u8>::new().try_reserve_exact(size).map_err(|_| too_large())?;
    let mut whole = vec![0; size];
    let end = 8 + u64::from_le_bytes(prefix) as usize;
    whole[..8].copy_from_slice(&prefix);
    file.read_exact(&mut whole[8..end]).map_err(|error| Error::io(path, error))?;
    let (_, header) = SafeTensors::read_metadata(&whole).map_err(|error| {
        let what = format!(
            "is no safetensors file, or a damaged one: {}; copy or download it again",
            shorten(&error.to_string())
        );
        Error::file(path, what)
    })?;
    Ok(header)
}

/// Reads the little-endian elements in the next `length` bytes; `None` where their type is none of
/// [`TensorData`].
fn decode(
    dtype: Dtype,
    length: usize,
    from: &mut impl Read,
) -> Option<std::io::Result<TensorData>> {
    macro_rules! values {
        ($variant:ident, $type:ty) => {{
            let mut values = vec![<$type>::default(); length / size_of::<$type>()];
            from.read_exact(bytemuck::cast_slice_mut(&mut values)).map(|()| {
                if cfg!(target_endian = "big") {
                    values
                        .iter_mut()
                        .for_each(|value| *value = <$type>::from_le_bytes(value.to_ne_bytes()));
                }
                TensorData::$variant(values)
            })
        }};
    }
    Some(match dtype {
        Dtype::F32 => values!(F32, f32),
        Dtype::F16 => values!(F16, f16),
        Dtype::BF16 => values!(Bf16, bf16),
        Dtype::F64 => values!(F64, f64),
        Dtype::I64 => values!(I64, i64),
        Dtype::I32 => values!(I32, i32),
        Dtype::U8 => values!(U8, u8),
        _ => return None,
    })
}

#[cfg(test)]
#[path = "tensors_tests.rs"]
mod tests;
