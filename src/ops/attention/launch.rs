//! Kernel launches of attention; kernels/attention.cu and kernels/attention_wide.cu say how work is
//! split.

use super::{Attention, AttentionGrad, PackedAttention, Sizes};
use crate::device::kernels::{self, Kernel, UNSET, dimension};
use crate::device::{CodePath, DType, KernelWork, Target, TensorType, View};
use crate::error::{Error, Result};
use crate::ops::LaunchArgs;
use crate::ops::conv2d::in_pieces;

/// The most channels of a head for which each kernel of a set is built.
const DEPTHS: [usize; 6] = [8, 32, 64, 128, 256, 512];
/// From here on the kernels of attention.cu end and those of attention_wide.cu begin.
const WIDE: usize = 128;
/// Blocks that a multiprocessor should get before a block does the work of several.
const BLOCKS_EACH: usize = 8;

macro_rules! sets {
    ($($set:ident = [$($kernel:ident),+ $(,)?];)+) => {
        kernels::params! {
            /// `Attention`, of which `PackedAttention` is given parts of one tensor. Forward knows
            /// nothing of gradients, and each kernel of gradients nothing of what others write.
            struct Params for $($($kernel),+),+ {
                q: u64, k: u64, v: u64, dy: u64, y: u64, lse: u64, delta: u64,
                dq: u64, dk: u64, dv: u64,
                queries: i32, keys: i32, heads: i32, depth: i32, scale: f32, passes: i32,
            }
        }
        $(static $set: [&Kernel; DEPTHS.len()] = [$(&kernels::$kernel),+];)+
    };
}

sets! {
    FORWARD_F32 = [
        ATTENTION_D8_FWD_NHWC_F32,
        ATTENTION_D32_FWD_NHWC_F32,
        ATTENTION_D64_FWD_NHWC_F32,
        ATTENTION_D128_FWD_NHWC_F32,
        ATTENTION_D256_FWD_NHWC_F32,
        ATTENTION_D512_FWD_NHWC_F32,
    ];
    FORWARD_F16 = [
        ATTENTION_D8_FWD_NHWC_F16,
        ATTENTION_D32_FWD_NHWC_F16,
        ATTENTION_D64_FWD_NHWC_F16,
        ATTENTION_D128_FWD_NHWC_F16,
        ATTENTION_D256_FWD_NHWC_F16,
        ATTENTION_D512_FWD_NHWC_F16,
    ];
    PACKED_F32 = [
        ATTENTION_PACKED_D8_FWD_NHWC_F32,
        ATTENTION_PACKED_D32_FWD_NHWC_F32,
        ATTENTION_PACKED_D64_FWD_NHWC_F32,
        ATTENTION_PACKED_D128_FWD_NHWC_F32,
        ATTENTION_PACKED_D256_FWD_NHWC_F32,
        ATTENTION_PACKED_D512_FWD_NHWC_F32,
    ];
    PACKED_F16 = [
        ATTENTION_PACKED_D8_FWD_NHWC_F16,
        ATTENTION_PACKED_D32_FWD_NHWC_F16,
        ATTENTION_PACKED_D64_FWD_NHWC_F16,
        ATTENTION_PACKED_D128_FWD_NHWC_F16,
        ATTENTION_PACKED_D256_FWD_NHWC_F16,
        ATTENTION_PACKED_D512_FWD_NHWC_F16,
    ];
    QUERIES_F32 = [
        ATTENTION_Q_D8_DGRAD_NHWC_F32,
        ATTENTION_Q_D32_DGRAD_NHWC_F32,
        ATTENTION_Q_D64_DGRAD_NHWC_F32,
        ATTENTION_Q_D128_DGRAD_NHWC_F32,
        ATTENTION_Q_D256_DGRAD_NHWC_F32,
        ATTENTION_Q_D512_DGRAD_NHWC_F32,
    ];
    QUERIES_F16 = [
        ATTENTION_Q_D8_DGRAD_NHWC_F16,
        ATTENTION_Q_D32_DGRAD_NHWC_F16,
        ATTENTION_Q_D64_DGRAD_NHWC_F16,
        ATTENTION_Q_D128_DGRAD_NHWC_F16,
        ATTENTION_Q_D256_DGRAD_NHWC_F16,
        ATTENTION_Q_D512_DGRAD_NHWC_F16,
    ];
    KEYS_F32 = [
        ATTENTION_KV_D8_DGRAD_NHWC_F32,
        ATTENTION_KV_D32_DGRAD_NHWC_F32,
        ATTENTION_KV_D64_DGRAD_NHWC_F32,
        ATTENTION_KV_D128_DGRAD_NHWC_F32,
        ATTENTION_KV_D256_DGRAD_NHWC_F32,
        ATTENTION_KV_D512_DGRAD_NHWC_F32,
    ];
    KEYS_F16 = [
        ATTENTION_KV_D8_DGRAD_NHWC_F16,
        ATTENTION_KV_D32_DGRAD_NHWC_F16,
        ATTENTION_KV_D64_DGRAD_NHWC_F16,
        ATTENTION_KV_D128_DGRAD_NHWC_F16,
        ATTENTION_KV_D256_DGRAD_NHWC_F16,
        ATTENTION_KV_D512_DGRAD_NHWC_F16,
    ];
}

/// What the launches of an operation share.
struct Job<'a> {
    name: &'static str,
    target: &'a Target,
    sizes: Sizes,
    params: Params,
    half: bool,
    /// Of one tensor of queries, keys and values.
    packed: bool,
    /// Heads are no whole pieces, so that rows are read half a piece at a time.
    parted: bool,
    /// Index into a set of kernels.
    index: usize,
}

impl Job<'_> {
    /// Refuses what the kernels can't take.
    fn new<'a>(
        name: &'static str,
        args: &'a LaunchArgs,
        sizes: Sizes,
        scale: f32,
    ) -> Result<Job<'a>> {
        let refuse = |what: String| Err(Error::operation(name, what));
        let depth = sizes.depth;
        let index = DEPTHS.iter().position(|&most| depth <= most);
        let (Some(index), true) = (index, depth.is_multiple_of(4)) else {
            return refuse(format!(
                "{depth} channels a head; the kernels take multiples of 4 of at most 512"
            ));
        };
        if sizes.heads > 65_535 || sizes.batch > 65_535 {
            return refuse("more than 65,535 heads or samples".into());
        }
        let largest = args.inputs.iter().chain(args.outputs).map(|v| v.ty.elements()).max();
        if largest > Some(i32::MAX as usize) {
            return refuse(format!(
                "a tensor of {} elements; 2^31 - 1 can be",
                largest.unwrap_or(0)
            ));
        }
        if let Some(view) = args.inputs.iter().chain(args.outputs).find(|v| v.offset % 16 != 0) {
            return refuse(format!("{view:?} does not lie at a multiple of 16 bytes"));
        }
        let int = |size| dimension(name, size);
        let params = Params {
            q: UNSET,
            k: UNSET,
            v: UNSET,
            dy: UNSET,
            y: UNSET,
            lse: UNSET,
            delta: UNSET,
            dq: UNSET,
            dk: UNSET,
            dv: UNSET,
            queries: int(sizes.queries)?,
            keys: int(sizes.keys)?,
            heads: int(sizes.heads)?,
            depth: int(depth)?,
            scale,
            passes: 1,
        };
        let half = args.outputs[0].ty.dtype == DType::F16;
        let packed = args.inputs.len() == 1;
        let parted = !in_pieces(Some(&args.outputs[0]), depth, args.outputs[0].ty.dtype);
        Ok(Job { name, target: args.target, sizes, params, half, packed, parted, index })
    }

    /// A launch over `rows` rows of each head and sample, against `others` of the other side.
    fn launch(
        &self,
        [f32, f16]: [&[&'static Kernel; DEPTHS.len()]; 2],
        [rows, others]: [usize; 2],
        read: &[Option<&View>],
        written: &[Option<&View>],
    ) -> Result<KernelWork> {
        let kernel = (if self.half { f16 } else { f32 })[self.index];
        let depth = DEPTHS[self.index];
        let forward = read.len() == 3;
        let (mut params, mut own, mut shared) = (self.params, kernel.threads as usize / 2, 0);
        if depth < WIDE {
            let passes = self.passes(rows.div_ceil(own), others);
            own *= passes;
            params.passes = dimension(self.name, passes)?;
        } else {
            (own, shared) = self.wide(depth, forward);
        }
        let blocks = dimension(self.name, rows.div_ceil(own))? as u32;
        let grid = [blocks, self.sizes.heads as u32, self.sizes.batch as u32];
        let block = [kernel.threads, 1, 1];
        let work = kernel.launch(grid, block, shared as u32, &params, read, written);
        Ok(work.with_general(self.parted))
    }

    /// How many passes over own rows a block of attention.cu makes: several where the rows of the
    /// other side all fit into its tile and the target still gets blocks enough.
    fn passes(&self, parts: usize, others: usize) -> usize {
        let bytes = if self.half { 2 } else { 4 };
        let tile = match DEPTHS[self.index] {
            8 => 256,
            depth => 8192 / bytes / depth,
        };
        if others > tile {
            return 1;
        }
        let blocks = parts * self.sizes.heads * self.sizes.batch;
        (blocks / (BLOCKS_EACH * self.target.multiprocessors as usize)).clamp(1, parts)
    }

    /// Own rows of a block of attention_wide.cu and its dynamic shared memory, which that file
    /// describes.
    fn wide(&self, depth: usize, forward: bool) -> (usize, usize) {
        let (element, channels, slice) = if self.half { (2, 64, 16) } else { (4, 32, 8) };
        // Of own rows, and of rows of the other side that are worked on together.
        let (own, others) = match (forward, self.half) {
            (true, true) => (64, 32),
            (true, false) => (32, 64),
            _ => (32, 32),
        };
        // Planes of 16 bytes a row with an odd pitch.
        let area = |rows: usize, channels: usize| channels * element * (rows | 1);
        let buffers = if self.target.code_path == CodePath::Sm70 { 1 } else { 2 };
        let weights = area(own, others);
        let chunk = if forward { area(others, channels) } else { 4 * area(own, channels) };
        let stages = buffers * chunk.max(area(slice, depth));
        let shared = if forward {
            let key_scales = if self.packed { 4 * others } else { 0 };
            area(own, depth) + weights + stages + 4 * own * (others / 16 + 1) + key_scales
        } else {
            2 * weights + stages + 4 * 1024 + 8 * others + 4 * 4
        };
        (own, shared)
    }
}

impl Attention {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([q, k, v], [y, lse]) = (args.inputs, args.outputs) else {
            unreachable!("inputs are checked")
        };
        let sizes = Sizes::of(&q.ty.shape, &k.ty.shape, self.heads);
        let job = Job::new("attention", args, sizes, self.scale)?;
        let read = [Some(q), Some(k), Some(v)];
        let written = [None, Some(y), Some(lse)];
        Ok(vec![job.launch(
            [&FORWARD_F32, &FORWARD_F16],
            [sizes.queries, sizes.keys],
            &read,
            &written,
        )?])
    }
}

impl PackedAttention {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([packed], [y, lse]) = (args.inputs, args.outputs) else {
            unreachable!("inputs are checked")
        };
        let sizes = self.sizes(&packed.ty.shape);
        let job = Job::new("attention", args, sizes, self.scale)?;
        // From its first element to its last.
        let (rows, channels) = (sizes.batch * sizes.queries, sizes.channels());
        let [q, k, v] = [0, 1, 2].map(|part| View {
            offset: packed.offset + part * channels * packed.ty.dtype.size(),
            ty: TensorType { shape: vec![(3 * rows - 2) * channels], dtype: packed.ty.dtype },
            ..packed.clone()
        });
        let read = [Some(&q), Some(&k), Some(&v)];
        let written = [None, Some(y), Some(lse)];
        let tokens = [sizes.queries, sizes.keys];
        Ok(vec![job.launch([&PACKED_F32, &PACKED_F16], tokens, &read, &written)?])
    }
}

impl AttentionGrad {
    /// Elements of working memory: Σ dy·y of every query and head.
    pub(super) fn kernel_scratch(sizes: &Sizes) -> usize {
        sizes.lse().elements()
    }

    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([dy, q, k, v, y, lse], [dq, dk, dv]) = (args.inputs, args.outputs) else {
            unreachable!("inputs are checked")
        };
        let Some(delta) = args.scratch else { unreachable!("working memory was asked for") };
        let sizes = Sizes::of(&q.ty.shape, &k.ty.shape, self.heads);
        let job = Job::new("attention_grad", args, sizes, self.scale)?;
        let inputs = [Some(q), Some(k), Some(v), Some(dy), Some(y), Some(lse)];
        let written = [Some(delta), Some(dq)];
        let for_q = job.launch(
            [&QUERIES_F32, &QUERIES_F16],
            [sizes.queries, sizes.keys],
            &inputs,
            &written,
        )?;
        // Reads the Σ dy·y that the first kernel wrote.
        let read = [Some(q), Some(k), Some(v), Some(dy), None, Some(lse), Some(delta)];
        let written = [None, Some(dk), Some(dv)];
        let for_kv =
            job.launch([&KEYS_F32, &KEYS_F16], [sizes.keys, sizes.queries], &read, &written)?;
        Ok(vec![for_q, for_kv])
    }
}
