//! Operations: one folder each, with its shape rule, gradient rule, cost, CPU kernel (`cpu.rs`)
//! and kernel launches (`launch.rs`). Adding one is a folder here, a line in this list and a
//! kernel.

pub mod accumulate;
pub mod activation;
pub mod adamw;
pub mod add_noise;
pub mod attention;
pub mod cast;
pub mod combine;
pub mod concat;
pub mod conv2d;
pub mod conv_transpose2d;
pub mod copy;
pub mod dropout;
pub mod edm_loss;
pub mod fill;
pub mod fourier_features;
pub mod grad_norm;
pub mod group_norm;
#[cfg(test)]
mod kernel_parity;
pub mod linear;
pub mod mp_layer;
pub mod mse_loss;
pub mod noise;
pub mod patches;
pub mod pixel_norm;
pub mod place_columns;
pub mod preconditioned;
pub mod preconditioning;
pub mod resample;
pub mod row_linear;
pub mod sampler_update;
pub mod scale_add;
pub mod select_row;
mod shape;
pub mod state;
pub mod sum_pixels;
#[cfg(test)]
mod testing;
pub mod timestep_embedding;
pub mod weight_norm;

use crate::device::cpu::CpuKernel;
use crate::device::{KernelWork, Target, TensorType, View};
use crate::error::{Error, Result};
use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

/// A tensor of the graph being built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub usize);

/// What gradient rules and composite operations need of a graph under construction.
pub trait Build {
    fn ty(&self, tensor: TensorId) -> &TensorType;

    /// Appends a node and returns its outputs.
    ///
    /// # Errors
    /// When the operation's shape rule refuses the inputs.
    fn push(&mut self, op: Arc<dyn Op>, inputs: &[TensorId]) -> Result<Vec<TensorId>>;

    /// The same elements under another shape; never a copy.
    fn reshape(&mut self, tensor: TensorId, shape: &[usize]) -> Result<TensorId>;
}

/// What a gradient rule is given.
pub struct GradArgs<'a> {
    pub inputs: &'a [TensorId],
    pub outputs: &'a [TensorId],
    /// Gradient of each output, `None` where nothing depends on it.
    pub output_grads: &'a [Option<TensorId>],
    /// Which inputs' gradients are wanted.
    pub needs: &'a [bool],
}

impl GradArgs<'_> {
    /// The gradient of a linear operation on one input, whose transpose is what `transpose` makes.
    pub fn transposed<T: Op>(
        &self,
        graph: &mut dyn Build,
        transpose: impl FnOnce(&TensorType) -> T,
    ) -> Result<Vec<Option<TensorId>>> {
        let Some(dy) = self.output_grads[0].filter(|_| self.needs[0]) else {
            return Ok(vec![None]);
        };
        let op = transpose(graph.ty(self.inputs[0]));
        Ok(vec![Some(graph.push(Arc::new(op), &[dy])?[0])])
    }
}

/// A node rewritten for a target: another operation, some of whose inputs are first turned into
/// another form (packed weights, Winograd transforms). What depends on weights only then falls
/// into `prepare` by itself.
pub struct Lowered {
    pub op: Arc<dyn Op>,
    /// (index of the input, the operation that turns it into the form wanted).
    pub prepare: Vec<(usize, Arc<dyn Op>)>,
}

/// What an operation is given to say which kernels it launches.
pub struct LaunchArgs<'a> {
    pub target: &'a Target,
    pub inputs: &'a [View],
    pub outputs: &'a [View],
    pub scratch: Option<&'a View>,
    /// As many as [`Op::tickets`] asked for, all zero.
    pub tickets: Option<&'a View>,
}

/// An operation: everything that the graph, the plan and the devices ask of it. Instances hold
/// attributes only, never shapes, so that one instance serves any batch.
pub trait Op: CpuKernel + Debug + Any {
    /// As in plans and errors, e.g. `conv2d`.
    fn name(&self) -> &'static str;

    /// Shape rule: types of the outputs.
    ///
    /// # Errors
    /// Names the operation, the limit and the value that broke it.
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>>;

    /// Gradient rule: for each input its gradient, `None` where there is none.
    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let _ = (graph, args);
        Err(Error::operation(self.name(), "has no gradient"))
    }

    /// Twice the multiplications, for convolutions, products and attention; else 0.
    fn flops(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> u64 {
        let _ = (inputs, outputs);
        0
    }

    /// Bytes that must move: by default each input and output once.
    fn bytes(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> u64 {
        inputs.iter().chain(outputs).map(|ty| ty.bytes() as u64).sum()
    }

    /// FLOPs and bytes of each of so many launches: by default all with the first.
    fn costs(
        &self,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
        launches: usize,
    ) -> Vec<[u64; 2]> {
        let mut costs = vec![[0, 0]; launches];
        if let Some(first) = costs.first_mut() {
            *first = [self.flops(inputs, outputs), self.bytes(inputs, outputs)];
        }
        costs
    }

    /// Elements (4 bytes each) of working memory.
    fn scratch(&self, target: &Target, inputs: &[&TensorType], outputs: &[&TensorType]) -> usize {
        let _ = (target, inputs, outputs);
        0
    }

    /// Counters by which the blocks of this operation's launches find out which of them is the last:
    /// u32, zero before every launch and left at zero by it, so that all launches of a session share
    /// them.
    fn tickets(&self, target: &Target, inputs: &[&TensorType], outputs: &[&TensorType]) -> usize {
        let _ = (target, inputs, outputs);
        0
    }

    /// Whether outputs are read before they are written (updates in place, such as an optimizer's).
    fn in_place(&self) -> bool {
        false
    }

    /// How this target wants the node; `None`: as it stands.
    fn lower(&self, target: &Target, inputs: &[&TensorType]) -> Option<Lowered> {
        let _ = (target, inputs);
        None
    }

    /// Which inputs are float16 where a target computes in float16, given the types that they have so
    /// far; those beyond the list, and all by default, are float32. The types of the outputs follow
    /// from those of the inputs by the shape rule.
    fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        let _ = inputs;
        Vec::new()
    }

    /// Kernel launches for a GPU target, in order.
    ///
    /// # Errors
    /// Shapes beyond a kernel's limits, or an operation that has no kernel yet.
    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        Err(Error::operation(
            self.name(),
            format!("has no kernel for the target {} yet; use --device cpu", args.target.name),
        ))
    }
}
