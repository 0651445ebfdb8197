//! Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, eq. 1) that never holds a
//! matrix of N × M scores: the softmax runs over tiles of keys (Milakov & Gimelshein 2018,
//! arXiv:1805.02867), and the gradient recomputes probabilities from their log-sum-exp (Dao et al.
//! 2022, arXiv:2205.14135, algorithm 4, but without sums that several tasks share).

mod backward;
mod cpu;
mod launch;
mod packed;
mod tiles;

pub use packed::PackedAttention;

use super::shape;
use super::{Build, GradArgs, LaunchArgs, Op, TensorId};
use crate::device::{KernelWork, Target, TensorType};
use crate::error::{Error, Result};
use std::sync::Arc;

/// `q` `[B, N, heads·D]`, `k` and `v` `[B, M, heads·D]` → `y` `[B, N, heads·D]`, `lse`
/// `[B, N, heads]`. Head h owns channels h·D..(h + 1)·D. Per head: s = scale·q·kᵀ,
/// y = softmax(s)·v, lse = ln Σ exp(s) over the keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    pub heads: usize,
    pub scale: f32,
}

/// (`dy`, `q`, `k`, `v`, `y`, `lse`) → `dq`, `dk`, `dv`. With p = exp(s − lse),
/// δ = Σ dy·y over a head's channels and ds = p·(dy·vᵀ − δ): dq = scale·ds·k, dk = scale·dsᵀ·q,
/// dv = pᵀ·dy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionGrad {
    pub heads: usize,
    pub scale: f32,
}

/// B, N, M, heads, D.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    depth: usize,
}

impl Sizes {
    /// From the shapes of `q` and `k`.
    fn of(q: &[usize], k: &[usize], heads: usize) -> Sizes {
        Sizes { batch: q[0], queries: q[1], keys: k[1], heads, depth: q[2] / heads }
    }

    fn check(name: &str, heads: usize, q: &TensorType, k: &TensorType) -> Result<Sizes> {
        let (&[batch, _, channels], &[key_batch, _, key_channels]) = (&q.shape[..], &k.shape[..])
        else {
            return Err(Error::operation(name, format!("takes [B, N, C], not {q:?} and {k:?}")));
        };
        if batch != key_batch || channels != key_channels {
            return Err(Error::operation(
                name,
                format!("batch and channels of q {q:?} and k {k:?} must be equal"),
            ));
        }
        if heads == 0 || !channels.is_multiple_of(heads) {
            return Err(Error::operation(
                name,
                format!("{channels} channels can't be cut into {heads} heads"),
            ));
        }
        Ok(Sizes::of(&q.shape, &k.shape, heads))
    }

    fn channels(&self) -> usize {
        self.heads * self.depth
    }

    /// Twice the multiplications of one product of N × D by D × M for all heads and samples.
    fn product_flops(&self) -> u64 {
        2 * (self.batch * self.queries * self.channels()) as u64 * self.keys as u64
    }

    fn lse(&self) -> TensorType {
        TensorType::f32([self.batch, self.queries, self.heads])
    }
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::halves(self.name(), inputs, 3..=3, &[true; 3])?;
        let sizes = Sizes::check(self.name(), self.heads, inputs[0], inputs[1])?;
        shape::expect(self.name(), "v", inputs[2], inputs[1])?;
        Ok(vec![inputs[0].clone(), sizes.lse()])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let Some(dy) = args.output_grads[0] else {
            return Ok(vec![None; 3]);
        };
        let op = AttentionGrad { heads: self.heads, scale: self.scale };
        let inputs: Vec<TensorId> =
            [dy].iter().chain(args.inputs).chain(args.outputs).copied().collect();
        let grads = graph.push(Arc::new(op), &inputs)?;
        Ok(grads.into_iter().zip(args.needs).map(|(id, &needed)| needed.then_some(id)).collect())
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        2 * Sizes::of(&inputs[0].shape, &inputs[1].shape, self.heads).product_flops()
    }

    fn scratch(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        if !target.is_cpu() {
            return 0;
        }
        let sizes = Sizes::of(&inputs[0].shape, &inputs[1].shape, self.heads);
        cpu::scratch(&sizes)
    }

    fn half(&self, _: &[&TensorType]) -> Vec<bool> {
        vec![true; 3]
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

impl Op for AttentionGrad {
    fn name(&self) -> &'static str {
        "attention_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::halves(self.name(), inputs, 6..=6, &[true; 5])?;
        let [dy, q, k, v, y, lse] = inputs else { unreachable!("six inputs") };
        let sizes = Sizes::check(self.name(), self.heads, q, k)?;
        shape::expect(self.name(), "v", v, k)?;
        shape::expect(self.name(), "dy", dy, q)?;
        shape::expect(self.name(), "y", y, q)?;
        shape::expect(self.name(), "lse", lse, &sizes.lse())?;
        Ok(vec![(*q).clone(), (*k).clone(), (*v).clone()])
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        // s, dy·vᵀ, dq, dk, dv, each once, whatever a kernel recomputes.
        5 * Sizes::of(&inputs[1].shape, &inputs[2].shape, self.heads).product_flops()
    }

    fn costs(
        &self,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
        launches: usize,
    ) -> Vec<[u64; 2]> {
        let [flops, bytes] = [self.flops(inputs, outputs), self.bytes(inputs, outputs)];
        if launches < 2 {
            return vec![[flops, bytes]; launches];
        }
        // dq, then dk and dv, which read all but y once more.
        let of = |tensors: &[&TensorType]| tensors.iter().map(|ty| ty.bytes() as u64).sum::<u64>();
        let made = of(&outputs[1..]);
        let again = of(inputs) - inputs[4].bytes() as u64;
        vec![[flops / 5 * 3, bytes - made], [flops / 5 * 2, made + again]]
    }

    fn scratch(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        let sizes = Sizes::of(&inputs[1].shape, &inputs[2].shape, self.heads);
        if !target.is_cpu() {
            return AttentionGrad::kernel_scratch(&sizes);
        }
        let tiles = tiles::count(sizes.queries.max(sizes.keys));
        sizes.lse().elements() + sizes.batch * tiles * backward::task_scratch(sizes.depth)
    }

    fn half(&self, _: &[&TensorType]) -> Vec<bool> {
        // All but the log-sum-exp.
        vec![true; 5]
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests;
