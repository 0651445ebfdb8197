//! Convolutions as kernels run them: tiles of a matrix product, in float16 on tensor cores or in
//! float32; kernels/common/conv2d_tile.cuh, conv2d_small_tile.cuh and conv2d_narrow.cu say how work is split.
//!
//! [`TiledConv2d`] is what every convolution becomes on a target with kernels. Beyond the operands of
//! the plain operation it takes what only kernels take in ([`Extras`]); `graph::fuse` adds them.

mod cut;
mod launch;
mod narrow;
mod pack;

pub use pack::{TilePack, TilePacks};

use super::form::{Form, flops, output_type};
use crate::device::cpu::conv::Conv;
use crate::device::cpu::{Cpu, CpuKernel, Io};
use crate::device::{KernelWork, Target, TensorType};
use crate::error::{Error, Result};
use crate::ops::shape::are_moments;
use crate::ops::{LaunchArgs, Lowered, Op};
use cut::{Shape, Traits};
use std::sync::Arc;

/// Most convolutions of the same sources in one launch.
pub const MOST_SIBLINGS: usize = 3;

/// A group normalisation of the sources by moments that their producers left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    pub groups: usize,
    pub eps: f32,
}

/// A 1×1 convolution that is added to the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortcut {
    pack: TilePack,
    /// Reads a concatenation of two.
    pub second: bool,
    pub bias: bool,
}

/// What becomes of a sum before it is stored: the residual is multiplied by `residual_scale` and added,
/// and the result limited to ±`limit`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finish {
    pub residual_scale: f32,
    pub limit: f32,
}

impl Default for Finish {
    fn default() -> Finish {
        Finish { residual_scale: 1.0, limit: f32::INFINITY }
    }
}

/// What kernels take in beyond the operands of the plain convolution. Further inputs, in this order:
///
/// - of `norm`: moments of x and of x2, gamma, beta \[C\] or \[B, C\];
/// - of each sibling: its packed weight and, where the convolution has one, its bias;
/// - of the shortcut: its source, its second source, its packed weight, its bias.
///
/// Further outputs: of each sibling its result, and with `moments` those of the (first) result:
/// \[B, parts, 3, C_out / moments\] (see [`are_moments`]). With `keeps` what `norm` came to, for gradients:
/// the sources' scales and shifts \[B, 2, C\], and mean and rstd of the groups \[B, groups, 2\].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Extras {
    pub norm: Option<Norm>,
    /// Convolutions of the same sources beside the first.
    pub siblings: usize,
    pub shortcut: Option<Shortcut>,
    /// Channels of a slice whose moments are taken together; 0 for none.
    pub moments: usize,
    pub finish: Finish,
    /// With a `norm` only.
    pub keeps: bool,
}

/// What an output is, but for the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtraOutput {
    Sibling(usize),
    Moments,
    /// Scales and shifts of the normalisation.
    Affine,
    /// Mean and rstd of its groups.
    Statistics,
}

/// A convolution whose weights are packed; otherwise the inputs of the operation it comes from, and
/// those of its [`Extras`].
#[derive(Clone, Debug, PartialEq)]
pub struct TiledConv2d {
    pub(super) form: Form,
    pub(super) pack: TilePack,
    pub extras: Extras,
}

impl Form {
    pub(super) fn lower_tiled(&self, inputs: &[&TensorType]) -> Option<Lowered> {
        let dims = self.dims(inputs).ok()?;
        let conv = self.conv(inputs).ok()?;
        let dtype = inputs[0].dtype;
        let transposed = conv.transposed;
        let pack = TilePack { dims, transposed, pair: false, patched: false, narrow: false, dtype };
        let mut form = *self;
        let pointwise = conv.kernel == [1, 1] && conv.stride == [1, 1];
        if pointwise && self.padding == [0; 4] && conv.output == conv.input {
            // With the weight transposed it is a forward convolution.
            form.direction = super::Direction::Forward;
        }
        Some(Lowered {
            op: Arc::new(TiledConv2d { form, pack, extras: Extras::default() }),
            prepare: vec![(self.operands.weight_index(), Arc::new(pack))],
        })
    }
}

/// Where the inputs of an operation's extras stand.
struct Places {
    moments: [Option<usize>; 2],
    gamma: Option<usize>,
    beta: Option<usize>,
    weights: [Option<usize>; MOST_SIBLINGS],
    biases: [Option<usize>; MOST_SIBLINGS],
    shortcut: [Option<usize>; 2],
    shortcut_weight: Option<usize>,
    shortcut_bias: Option<usize>,
    count: usize,
}

impl TiledConv2d {
    fn places(&self) -> Places {
        let operands = &self.form.operands;
        let mut next = operands.count();
        let mut take = |wanted: bool| {
            next += usize::from(wanted);
            wanted.then(|| next - 1)
        };
        let Extras { norm, siblings, shortcut, .. } = self.extras;
        let moments = [take(norm.is_some()), take(norm.is_some() && operands.second)];
        let [gamma, beta] = [take(norm.is_some()), take(norm.is_some())];
        let mut weights = [Some(operands.weight_index()), None, None];
        let mut biases = [operands.index(super::Operand::Bias), None, None];
        for sibling in 1..=siblings {
            weights[sibling] = take(true);
            biases[sibling] = take(operands.bias);
        }
        let has = |part: fn(&Shortcut) -> bool| shortcut.as_ref().is_some_and(part);
        let sources = [take(shortcut.is_some()), take(has(|s| s.second))];
        let (shortcut_weight, shortcut_bias) = (take(shortcut.is_some()), take(has(|s| s.bias)));
        Places {
            moments,
            gamma,
            beta,
            weights,
            biases,
            shortcut: sources,
            shortcut_weight,
            shortcut_bias,
            count: next,
        }
    }

    fn refuse<T>(&self, what: String) -> Result<T> {
        Err(Error::operation(self.form.name, what))
    }

    /// Checks everything but moments and coefficients of a normalisation.
    pub(super) fn conv(&self, inputs: &[&TensorType]) -> Result<Conv> {
        let places = self.places();
        if inputs.len() != places.count {
            return self.refuse(format!("takes {} inputs, not {}", places.count, inputs.len()));
        }
        let [c_in, c_out] = self.pack.channels();
        let [kh, kw] = self.pack.kernel();
        let dims = match self.form.direction {
            super::Direction::Forward => [c_out, c_in, kh, kw],
            _ => [c_in, c_out, kh, kw],
        };
        let conv = self.form.describe(&inputs[..self.form.operands.count()], dims)?;
        let at = |place: Option<usize>| place.map(|index| inputs[index]);
        let packed = self.pack.packed();
        for weight in places.weights.into_iter().filter_map(at) {
            if *weight != packed {
                return self.refuse(format!("takes packed weights {packed:?}, not {weight:?}"));
            }
        }
        let bias = TensorType::f32([conv.c_out]);
        for ty in places.biases.into_iter().chain([places.shortcut_bias]).filter_map(at) {
            if *ty != bias {
                return self.refuse(format!("a bias is {ty:?}; it must be {bias:?}"));
            }
        }
        if let Some(shortcut) = &self.extras.shortcut {
            let channels = self.shortcut_channels(inputs);
            let like = |channels| TensorType {
                shape: vec![conv.batch, conv.output[0], conv.output[1], channels],
                dtype: self.pack.dtype,
            };
            let sources = places.shortcut.into_iter().filter_map(at);
            let fits = sources.zip(channels).all(|(ty, channels)| *ty == like(channels));
            let centred = conv.stride == [1, 1]
                && !conv.transposed
                && !conv.upsample
                && conv.input == conv.output;
            let whole = shortcut.pack.channels() == [channels.iter().sum(), conv.c_out];
            let weight = at(places.shortcut_weight) == Some(&shortcut.pack.packed());
            if !(fits && centred && whole && weight) {
                return self.refuse("a shortcut that doesn't fit the convolution".into());
            }
        }
        Ok(conv)
    }

    /// Channels of the shortcut's two sources.
    fn shortcut_channels(&self, inputs: &[&TensorType]) -> [usize; 2] {
        let last = |place: Option<usize>| {
            place.and_then(|index| inputs[index].shape.last().copied()).unwrap_or(0)
        };
        self.places().shortcut.map(last)
    }

    fn shape(&self, conv: &Conv, inputs: &[&TensorType]) -> Shape {
        let Extras { norm, siblings, moments, .. } = self.extras;
        let traits = Traits {
            affine: norm.is_some() || self.form.operands.affine,
            moments,
            shortcut: self.shortcut_channels(inputs).iter().sum(),
            siblings: 1 + siblings,
            narrow: self.pack.narrow.then(|| self.pack.columns()),
            dtype: self.pack.dtype,
        };
        Shape::of(conv, &traits)
    }

    /// What its moments are, in slices of so many channels.
    fn moments(&self, conv: &Conv) -> TensorType {
        let slices = conv.c_out / self.extras.moments;
        TensorType::f32([conv.batch, cut::moment_parts(conv), 3, slices])
    }
}

/// What `graph::fuse` asks and rewrites.
impl TiledConv2d {
    pub fn operands(&self) -> super::Operands {
        self.form.operands
    }

    /// Whether a normalisation in front of the sources, or of its own result, can be taken in: not by
    /// a transposed convolution, whose tiles are no neighbouring pixels.
    pub fn is_forward(&self) -> bool {
        self.form.direction == super::Direction::Forward
    }

    /// All outputs but the first.
    pub fn extra_outputs(&self) -> Vec<ExtraOutput> {
        let Extras { siblings, moments, keeps, .. } = self.extras;
        let mut outputs: Vec<ExtraOutput> = (0..siblings).map(ExtraOutput::Sibling).collect();
        outputs.extend((moments > 0).then_some(ExtraOutput::Moments));
        outputs.extend(
            keeps.then_some([ExtraOutput::Affine, ExtraOutput::Statistics]).into_iter().flatten(),
        );
        outputs
    }

    /// With the normalisation given by moments instead of by an affine; `silu` follows it.
    pub fn normalised(&self, norm: Norm, second: bool, silu: bool) -> TiledConv2d {
        let mut conv = self.clone();
        conv.form.operands.affine = false;
        conv.form.operands.second = second;
        conv.form.operands.silu = silu;
        conv.extras.norm = Some(norm);
        conv
    }

    /// With another convolution of the same sources, `None` where they differ in more than weights.
    pub fn with_sibling(&self, other: &TiledConv2d) -> Option<TiledConv2d> {
        let plain = Extras { siblings: self.extras.siblings, ..Extras::default() };
        let alike = self.form == other.form && self.pack == other.pack;
        let operands = self.form.operands;
        if !alike || self.extras != plain || other.extras != Extras::default() {
            return None;
        }
        if operands.shift || operands.residual || self.extras.siblings + 1 == MOST_SIBLINGS {
            return None;
        }
        let mut conv = self.clone();
        conv.extras.siblings += 1;
        Some(conv)
    }

    /// With a 1×1 convolution added instead of the residual that it made; `None` where either has
    /// something that stands in the way.
    pub fn with_shortcut(&self, shortcut: &TiledConv2d) -> Option<TiledConv2d> {
        let Form { stride, padding, operands, direction, .. } = shortcut.form;
        let super::Operands { second, bias, .. } = operands;
        let plain = operands == super::Operands { second, bias, ..super::Operands::default() };
        let pointwise = shortcut.pack.dims[2..] == [1, 1]
            && stride == [1, 1]
            && padding == [0; 4]
            && direction == super::Direction::Forward;
        let [kh, kw] = [self.pack.dims[2], self.pack.dims[3]];
        let [top, bottom, left, right] = self.form.padding;
        let centred = self.form.stride == [1, 1]
            && self.is_forward()
            && !self.form.operands.upsample
            && [2 * top + 1, 2 * bottom + 1, 2 * left + 1, 2 * right + 1] == [kh, kh, kw, kw];
        let free = self.extras == Extras::default() && shortcut.extras == Extras::default();
        if !(plain && pointwise && centred && free) {
            return None;
        }
        let mut conv = self.clone();
        conv.form.operands.residual = false;
        conv.extras.shortcut = Some(Shortcut { pack: shortcut.pack, second, bias });
        Some(conv)
    }

    /// With a residual times `scale`, `None` where something stands in the way.
    pub fn with_residual(&self, scale: f32) -> Option<TiledConv2d> {
        let mut conv = self.clone();
        conv.extras.finish.residual_scale = scale;
        let taken = std::mem::replace(&mut conv.form.operands.residual, true);
        (!taken && self.extras == Extras::default()).then_some(conv)
    }

    /// With another 1×1 convolution of its kind added, whose result was the residual, as one of both
    /// sources and both weights; `None` where either has something that stands in the way.
    pub fn with_pair(&self, other: &TiledConv2d) -> Option<TiledConv2d> {
        let plain = super::Operands::default();
        let alike = self.form == Form { operands: self.form.operands, ..other.form }
            && self.form.operands == super::Operands { residual: true, ..plain }
            && other.form.operands == plain
            && self.pack == other.pack;
        let Form { stride, padding, .. } = self.form;
        let pointwise = self.pack.dims[2..] == [1, 1] && stride == [1, 1] && padding == [0; 4];
        let free = self.extras == Extras::default() && other.extras == Extras::default();
        if !(alike && pointwise && free && self.is_forward() && !self.pack.pair) {
            return None;
        }
        let mut conv = self.clone();
        conv.form.operands = super::Operands { second: true, ..plain };
        conv.pack.pair = true;
        Some(conv)
    }

    /// How its weight is packed.
    pub fn pack(&self) -> TilePack {
        self.pack
    }

    /// Leaving what the normalisation of its sources came to.
    pub fn keeping(&self) -> TiledConv2d {
        let mut conv = self.clone();
        conv.extras.keeps = true;
        conv
    }

    /// With results within ±`limit`, `None` where something stands in the way.
    pub fn with_limit(&self, limit: f32) -> Option<TiledConv2d> {
        let Extras { siblings, moments, finish, .. } = self.extras;
        let mut conv = self.clone();
        conv.extras.finish.limit = limit;
        (siblings == 0 && moments == 0 && finish.limit == f32::INFINITY).then_some(conv)
    }

    /// Leaving moments of slices of so many channels.
    pub fn with_moments(&self, slice: usize) -> TiledConv2d {
        let mut conv = self.clone();
        conv.extras.moments = slice;
        conv
    }
}

impl Op for TiledConv2d {
    fn name(&self) -> &'static str {
        self.form.name
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let conv = self.conv(inputs)?;
        let places = self.places();
        if let Some(Norm { groups, .. }) = self.extras.norm {
            if conv.transposed {
                return self.refuse("it is transposed, and reads its source as it is".into());
            }
            let gamma = places.gamma.map(|index| inputs[index]);
            let fits = gamma.is_some_and(|ty| {
                let rows = ty.elements() / conv.c_in();
                ty.elements() % conv.c_in() == 0 && (rows == 1 || rows == conv.batch)
            });
            if !fits || groups == 0 || !conv.c_in().is_multiple_of(groups) {
                return self.refuse(format!(
                    "{} channels can't be normalised in {groups} groups by {gamma:?}",
                    conv.c_in()
                ));
            }
            let sources = places.moments.into_iter().zip(conv.channels);
            for ((place, channels), offset) in sources.zip([0, conv.channels[0]]) {
                let Some(ty) = place.map(|index| inputs[index]) else { continue };
                let width = conv.c_in() / groups;
                if !are_moments(ty, conv.batch, channels, offset, width) {
                    return self.refuse(format!(
                        "moments are {ty:?}; they must be [{}, parts, 3, slices] of {channels} channels, \
                         in slices of a power of two that divide groups of {width}",
                        conv.batch
                    ));
                }
            }
        }
        let result = output_type(&conv, self.pack.dtype);
        let slice = self.extras.moments;
        if slice > 0
            && (!conv.c_out.is_multiple_of(slice) || !cut::WEIGHT_BLOCK.is_multiple_of(slice))
        {
            return self.refuse(format!("no moments of slices of {slice} channels"));
        }
        let groups = self.extras.norm.map(|norm| norm.groups);
        if self.extras.keeps && groups.is_none() {
            return self.refuse("has no normalisation to leave anything of".into());
        }
        let Extras { siblings, shortcut, .. } = self.extras;
        if self.pack.narrow && (siblings > 0 || shortcut.is_some() || slice > 0) {
            return self.refuse("taps are columns of a result alone".into());
        }
        let extra = self.extra_outputs().into_iter().map(|extra| match extra {
            ExtraOutput::Sibling(_) => result.clone(),
            ExtraOutput::Moments => self.moments(&conv),
            ExtraOutput::Affine => TensorType::f32([conv.batch, 2, conv.c_in()]),
            ExtraOutput::Statistics => TensorType::f32([conv.batch, groups.unwrap_or(0), 2]),
        });
        Ok(std::iter::once(result.clone()).chain(extra).collect())
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        let Ok(conv) = self.conv(inputs) else { return 0 };
        let shortcut: usize = self.shortcut_channels(inputs).iter().sum();
        let pixels = conv.batch * conv.output[0] * conv.output[1];
        // Not of the zeros that patches end with.
        let [c_in, _] = self.pack.channels();
        let taps = conv.kernel[0] * conv.kernel[1];
        let own = flops(&conv) / (c_in * taps) as u64 * self.pack.terms() as u64;
        own * (1 + self.extras.siblings as u64) + 2 * (pixels * shortcut * conv.c_out) as u64
    }

    fn scratch(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        let Ok(conv) = self.conv(inputs) else { return 0 };
        self.shared(&conv, &self.shape(&conv, inputs), target).elements()
    }

    fn tickets(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        let Ok(conv) = self.conv(inputs) else { return 0 };
        self.shared(&conv, &self.shape(&conv, inputs), target).tickets()
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

/// [`Form::lower`](super::Form::lower) makes these for GPU targets alone.
impl CpuKernel for TiledConv2d {
    fn run(&self, _: &Cpu, _: Io<'_, '_>) {
        unreachable!("a form for kernels on the CPU")
    }
}
