//! Kernel launches of attention; kernels/attention.cu says how work is split.

use super::{Attention, AttentionGrad, Sizes};
use crate::device::kernels::{
    self, ATTENTION_D8_FWD_NHWC_F16, ATTENTION_D8_FWD_NHWC_F32, ATTENTION_D64_FWD_NHWC_F16,
    ATTENTION_D64_FWD_NHWC_F32, ATTENTION_D512_FWD_NHWC_F16, ATTENTION_D512_FWD_NHWC_F32,
    ATTENTION_KV_D8_DGRAD_NHWC_F16, ATTENTION_KV_D8_DGRAD_NHWC_F32,
    ATTENTION_KV_D64_DGRAD_NHWC_F16, ATTENTION_KV_D64_DGRAD_NHWC_F32,
    ATTENTION_KV_D512_DGRAD_NHWC_F16, ATTENTION_KV_D512_DGRAD_NHWC_F32,
    ATTENTION_Q_D8_DGRAD_NHWC_F16, ATTENTION_Q_D8_DGRAD_NHWC_F32, ATTENTION_Q_D64_DGRAD_NHWC_F16,
    ATTENTION_Q_D64_DGRAD_NHWC_F32, ATTENTION_Q_D512_DGRAD_NHWC_F16,
    ATTENTION_Q_D512_DGRAD_NHWC_F32, Kernel, UNSET, dimension,
};
use crate::device::{DType, KernelWork, TensorType};
use crate::error::{Error, Result};
use crate::ops::LaunchArgs;

/// Queries or keys of a block.
const THREADS: usize = 64;

kernels::params! {
    /// `Attention`.
    struct Forward for ATTENTION_D8_FWD_NHWC_F32, ATTENTION_D8_FWD_NHWC_F16, ATTENTION_D64_FWD_NHWC_F32, ATTENTION_D64_FWD_NHWC_F16, ATTENTION_D512_FWD_NHWC_F32, ATTENTION_D512_FWD_NHWC_F16
    {
        q: u64, k: u64, v: u64, y: u64, lse: u64,
        queries: i32, keys: i32, heads: i32, depth: i32, scale: f32, unused: i32,
    }
}

kernels::params! {
    /// `AttentionBackward`.
    struct Backward for ATTENTION_Q_D8_DGRAD_NHWC_F32, ATTENTION_Q_D8_DGRAD_NHWC_F16, ATTENTION_Q_D64_DGRAD_NHWC_F32, ATTENTION_Q_D64_DGRAD_NHWC_F16, ATTENTION_Q_D512_DGRAD_NHWC_F32, ATTENTION_Q_D512_DGRAD_NHWC_F16, ATTENTION_KV_D8_DGRAD_NHWC_F32, ATTENTION_KV_D8_DGRAD_NHWC_F16, ATTENTION_KV_D64_DGRAD_NHWC_F32, ATTENTION_KV_D64_DGRAD_NHWC_F16, ATTENTION_KV_D512_DGRAD_NHWC_F32, ATTENTION_KV_D512_DGRAD_NHWC_F16
    {
        dy: u64, q: u64, k: u64, v: u64, y: u64, lse: u64, dq: u64, dk: u64, dv: u64, delta: u64,
        queries: i32, keys: i32, heads: i32, depth: i32, scale: f32, unused: i32,
    }
}

/// The kernel whose rows are just long enough, of those for float32 or for float16.
fn fitting<'a>(
    depth: usize,
    ty: &TensorType,
    f32: [&'a Kernel; 3],
    f16: [&'a Kernel; 3],
) -> Result<&'a Kernel> {
    let kernels = if ty.dtype == DType::F16 { f16 } else { f32 };
    let index = [8, 64, 512].iter().position(|&most| depth <= most);
    index.map(|index| kernels[index]).ok_or_else(|| {
        let what = format!("{depth} channels a head; the kernels take at most 512");
        Error::operation("attention", what)
    })
}

fn grid(sizes: &Sizes, rows: usize) -> Result<[u32; 3]> {
    if sizes.heads > 65_535 || sizes.batch > 65_535 {
        return Err(Error::operation("attention", "more than 65,535 heads or samples"));
    }
    let rows = dimension("attention", rows.next_multiple_of(THREADS))? as u32 / THREADS as u32;
    Ok([rows, sizes.heads as u32, sizes.batch as u32])
}

impl Attention {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([q, k, v], [y, lse]) = (args.inputs, args.outputs) else {
            unreachable!("inputs are checked")
        };
        let sizes = Sizes::of(&q.ty.shape, &k.ty.shape, self.heads);
        let int = |size| dimension("attention", size);
        let params = Forward {
            q: UNSET,
            k: UNSET,
            v: UNSET,
            y: UNSET,
            lse: UNSET,
            queries: int(sizes.queries)?,
            keys: int(sizes.keys)?,
            heads: int(sizes.heads)?,
            depth: int(sizes.depth)?,
            scale: self.scale,
            unused: 0,
        };
        let kernel = fitting(
            sizes.depth,
            &q.ty,
            [&ATTENTION_D8_FWD_NHWC_F32, &ATTENTION_D64_FWD_NHWC_F32, &ATTENTION_D512_FWD_NHWC_F32],
            [&ATTENTION_D8_FWD_NHWC_F16, &ATTENTION_D64_FWD_NHWC_F16, &ATTENTION_D512_FWD_NHWC_F16],
        )?;
        Ok(vec![kernel.launch(
            grid(&sizes, sizes.queries)?,
            [THREADS as u32, 1, 1],
            0,
            &params,
            &[Some(q), Some(k), Some(v)],
            &[Some(y), Some(lse)],
        )])
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
        let int = |size| dimension("attention_grad", size);
        let params = Backward {
            dy: UNSET,
            q: UNSET,
            k: UNSET,
            v: UNSET,
            y: UNSET,
            lse: UNSET,
            dq: UNSET,
            dk: UNSET,
            dv: UNSET,
            delta: UNSET,
            queries: int(sizes.queries)?,
            keys: int(sizes.keys)?,
            heads: int(sizes.heads)?,
            depth: int(sizes.depth)?,
            scale: self.scale,
            unused: 0,
        };
        let for_q = fitting(
            sizes.depth,
            &q.ty,
            [
                &ATTENTION_Q_D8_DGRAD_NHWC_F32,
                &ATTENTION_Q_D64_DGRAD_NHWC_F32,
                &ATTENTION_Q_D512_DGRAD_NHWC_F32,
            ],
            [
                &ATTENTION_Q_D8_DGRAD_NHWC_F16,
                &ATTENTION_Q_D64_DGRAD_NHWC_F16,
                &ATTENTION_Q_D512_DGRAD_NHWC_F16,
            ],
        )?;
        let for_kv = fitting(
            sizes.depth,
            &q.ty,
            [
                &ATTENTION_KV_D8_DGRAD_NHWC_F32,
                &ATTENTION_KV_D64_DGRAD_NHWC_F32,
                &ATTENTION_KV_D512_DGRAD_NHWC_F32,
            ],
            [
                &ATTENTION_KV_D8_DGRAD_NHWC_F16,
                &ATTENTION_KV_D64_DGRAD_NHWC_F16,
                &ATTENTION_KV_D512_DGRAD_NHWC_F16,
            ],
        )?;
        let read = [Some(dy), Some(q), Some(k), Some(v), Some(y), Some(lse)];
        let threads = [THREADS as u32, 1, 1];
        let mut last = for_kv.launch(
            grid(&sizes, sizes.keys)?,
            threads,
            0,
            &params,
            &read,
            &[None, Some(dk), Some(dv)],
        );
        // The second kernel reads what the first wrote in the struct's last pointer field.
        last.pointers.insert(read.len(), (std::mem::offset_of!(Backward, delta), delta.clone()));
        Ok(vec![
            for_q.launch(
                grid(&sizes, sizes.queries)?,
                threads,
                0,
                &params,
                &read,
                &[Some(dq), None, None, Some(delta)],
            ),
            last,
        ])
    }
}
