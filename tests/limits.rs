//! Shapes that can't be taken are refused when a program is compiled, by operation and limit, before
//! any device is opened.

use cyanea::Result;
use cyanea::device::cpu::{Cpu, CpuKernel, Io};
use cyanea::device::kernels::{KERNELS, Kernel};
use cyanea::device::{KernelWork, Target, TensorType, View};
use cyanea::graph::{Build, Graph, Plan, lower};
use cyanea::ops::attention::{Attention, AttentionGrad, PackedAttention};
use cyanea::ops::concat::Concat;
use cyanea::ops::group_norm::GroupNorm;
use cyanea::ops::{LaunchArgs, Op};

/// Compiles one operation on inputs of these shapes.
fn compile(op: impl Op, shapes: &[&[usize]], target: &Target) -> Result<Plan> {
    let mut g = Graph::new();
    let mut inputs = Vec::new();
    for (index, shape) in shapes.iter().enumerate() {
        inputs.push(g.input(&format!("input {index}"), TensorType::f32(*shape))?);
    }
    let y = g.scoped("somewhere", |g| g.one(op, &inputs))?;
    let ty = g.ty(y).clone();
    let out = g.input("y", ty)?;
    g.bind(y, out)?;
    lower::lower(&mut g, target)?;
    Plan::new(&[("run", &g)], target)
}

fn refused(op: impl Op + Clone, shapes: &[&[usize]], words: &[&str]) {
    for target in [Target::V100, Target::A100, Target::H100] {
        let Err(error) = compile(op.clone(), shapes, &target) else {
            panic!("{op:?} takes {shapes:?} on {}", target.name)
        };
        let said = error.to_string();
        for word in words {
            assert!(said.contains(word), "`{said}` does not name {word}");
        }
    }
}

#[test]
fn groups_must_divide_the_channels() {
    let norm = |groups| GroupNorm { groups, eps: 1e-5, silu: false };
    refused(norm(5), &[&[1, 4, 4, 12], &[12], &[12]], &["group_norm", "12", "5"]);
    refused(norm(0), &[&[1, 4, 4, 12], &[12], &[12]], &["group_norm", "12", "0"]);
    assert!(compile(norm(4), &[&[1, 4, 4, 12], &[12], &[12]], &Target::V100).is_ok());
}

#[test]
fn heads_have_up_to_512_channels_in_fours() {
    let attention = |heads| Attention { heads, scale: 1.0 };
    let same = |shape: &'static [usize]| [shape; 3];
    refused(attention(1), &same(&[1, 16, 516]), &["attention", "516", "512"]);
    refused(attention(2), &same(&[1, 16, 2 * 1024]), &["attention", "1024", "512"]);
    refused(attention(5), &same(&[1, 16, 12]), &["attention", "12", "5"]);
    // 6 channels a head, and those of the gradient and of one tensor.
    refused(attention(2), &same(&[1, 16, 12]), &["attention", "6 channels", "multiples of 4"]);
    let gradient = AttentionGrad { heads: 2, scale: 1.0 };
    for (channels, words) in [(12, "6 channels"), (1032, "516 channels")] {
        let shape: &[usize] = &[1, 16, channels];
        let tensors = [shape, shape, shape, shape, shape, &[1, 16, 2]];
        refused(gradient, &tensors, &["attention_grad", words, "multiples of 4 of at most 512"]);
        let packed = PackedAttention { heads: 2, scale: 1.0 };
        let one: &[usize] = &[1, 16, 3 * channels];
        refused(packed, &[one], &["attention", words, "multiples of 4 of at most 512"]);
    }
    for channels in [4, 8, 40, 64, 128, 256, 512] {
        let shape: &[usize] = &[1, 17, channels];
        assert!(compile(attention(1), &[shape; 3], &Target::V100).is_ok(), "{channels}");
    }
}

#[test]
fn nothing_is_attended_to_without_tokens_or_images() {
    let attention = Attention { heads: 1, scale: 1.0 };
    refused(attention, &[&[1, 0, 8], &[1, 4, 8], &[1, 4, 8]], &["attention", "[1, 0, 8]"]);
    refused(attention, &[&[1, 4, 8], &[1, 0, 8], &[1, 0, 8]], &["attention", "[1, 0, 8]"]);
    let norm = GroupNorm { groups: 4, eps: 1e-5, silu: false };
    refused(norm, &[&[0, 4, 4, 12], &[12], &[12]], &["group_norm", "[0, 4, 4, 12]"]);
}

#[test]
fn tensors_are_counted_in_31_bits() {
    // Inputs, results, and sizes that 64 bits can't count.
    refused(Concat::PLAIN, &[&[1 << 11, 1 << 20], &[1, 1]], &["input 0", "2^31 - 1", "2048"]);
    let half: &[usize] = &[1, 1 << 30];
    refused(Concat::PLAIN, &[half, half], &["concat", "2^31 - 1", "2147483648"]);
    refused(Concat::PLAIN, &[&[1 << 40, 1 << 40], &[1, 1]], &["input 0", "2^31 - 1"]);
}

/// Launches a kernel with so much dynamic shared memory.
#[derive(Clone, Debug)]
struct Greedy(&'static str, u32);

impl CpuKernel for Greedy {
    fn run(&self, _: &Cpu, _: Io<'_, '_>) {}
}

impl Op for Greedy {
    fn name(&self) -> &'static str {
        "greedy"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        Ok(vec![inputs[0].clone()])
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let kernel = Kernel::named(self.0).unwrap();
        let (x, y): (&View, &View) = (&args.inputs[0], &args.outputs[0]);
        Ok(vec![KernelWork {
            kernel: kernel.name,
            grid: [1, 1, 1],
            block: [32, 1, 1],
            shared_bytes: self.1,
            params: vec![0; kernel.params_bytes],
            pointers: vec![(0, x.clone()), (8, y.clone())],
            written: 1,
            general: false,
        }])
    }
}

#[test]
fn shared_memory_is_that_of_the_architecture() {
    let greedy = Greedy(KERNELS[0].name, 200 << 10);
    for (target, limit) in [(Target::V100, 96 << 10), (Target::A100, 163 << 10)] {
        let error = compile(greedy.clone(), &[&[4]], &target).unwrap_err().to_string();
        for word in ["somewhere", "greedy", "204800", target.name, &limit.to_string()] {
            assert!(error.contains(word), "`{error}` does not name {word}");
        }
    }
    assert!(compile(greedy, &[&[4]], &Target::H100).is_ok());

    // A kernel's own arrays count too, whether or not the build compiled for GPUs.
    for kernel in KERNELS {
        let (name, fixed) = (kernel.name, kernel.shared);
        let fits = |bytes| compile(Greedy(name, bytes), &[&[4]], &Target::V100).is_ok();
        assert!(fits((96 << 10) - fixed), "{name} with {fixed} bytes");
        assert!(!fits((96 << 10) - fixed + 1), "{name} with {fixed} bytes");
    }
}
