//! Every algorithm against a direct convolution in float64, over odd shapes, and what must not
//! change a bit.

use super::*;
use crate::device::cpu::{Cpu, Simd, simd};
use crate::ops::conv_transpose2d::ConvTranspose2d;
use crate::ops::testing::{Host, assert_same_bits, check_batch, check_gradient, run_on};

/// A convolution with random operands.
struct Case {
    op: Conv2d,
    inputs: Vec<Host>,
}

impl Case {
    /// x \[batch, h, w, c\] and weight \[out, c, kh, kw\].
    fn new(op: Conv2d, x: [usize; 4], weight: [usize; 3]) -> Case {
        Case::with_second(op, x, 0, weight)
    }

    fn with_second(op: Conv2d, x: [usize; 4], second: usize, weight: [usize; 3]) -> Case {
        let [batch, h, w, c] = x;
        let [out, kh, kw] = weight;
        let dims = [out, c + second, kh, kw];
        let mut inputs: Vec<Host> = Vec::new();
        for (index, operand) in op.operands.list().enumerate() {
            let shape = match operand {
                Operand::X => x.to_vec(),
                Operand::X2 => vec![batch, h, w, second],
                Operand::Affine => vec![batch, 2, c + second],
                Operand::Weight => dims.to_vec(),
                Operand::Bias => vec![out],
                Operand::Shift => vec![batch, out],
                Operand::Residual => {
                    let bare = Conv2d { operands: Operands::default(), ..op.clone() };
                    let up = usize::from(op.operands.upsample);
                    let x = TensorType::f32([batch, h << up, w << up, c + second]);
                    bare.infer(&[&x, &TensorType::f32(dims)]).unwrap()[0].shape.clone()
                }
            };
            inputs.push(Host::random(&shape, 7 + index as u64));
        }
        Case { op, inputs }
    }

    fn operand(&self, operand: Operand) -> Option<&Host> {
        self.op.index(operand).map(|index| &self.inputs[index])
    }

    fn types(&self) -> Vec<&TensorType> {
        self.inputs.iter().map(|host| &host.ty).collect()
    }

    /// As a target's program runs it: lowered, the weight packed first.
    fn run(&self, cpu: &Cpu) -> Host {
        let lowered = self.op.lower(&Target::CPU, &self.types()).expect("a form for the CPU");
        run_lowered(cpu, &lowered, &self.inputs)
    }

    /// The definition, in float64.
    fn reference(&self) -> Vec<f64> {
        let op = &self.op;
        let x = self.operand(Operand::X).unwrap();
        let weight = self.operand(Operand::Weight).unwrap();
        let [batch, h, w, first] = shape4(x);
        let [out, c_in, kh, kw] = shape4(weight);
        let output = op.infer(&self.types()).unwrap();
        let [_, ho, wo, _] = <[usize; 4]>::try_from(&output[0].shape[..]).unwrap();
        let up = usize::from(op.operands.upsample);
        let z = |b: usize, y: isize, x_: isize, c: usize| -> f64 {
            if y < 0 || x_ < 0 || y as usize >= h << up || x_ as usize >= w << up {
                return 0.0;
            }
            let pixel = (b * h + (y as usize >> up)) * w + (x_ as usize >> up);
            let mut value = if c < first {
                f64::from(x.data[pixel * first + c])
            } else {
                let second = c_in - first;
                f64::from(self.operand(Operand::X2).unwrap().data[pixel * second + c - first])
            };
            if let Some(affine) = self.operand(Operand::Affine) {
                let at = |row: usize| f64::from(affine.data[(b * 2 + row) * c_in + c]);
                value = value * at(0) + at(1);
            }
            if op.operands.silu {
                value /= 1.0 + (-value).exp();
            }
            value
        };
        let mut y = Vec::new();
        for b in 0..batch {
            // The source once, so that SiLU isn't computed again for every tap.
            let (hs, ws) = (h << up, w << up);
            let mut plane = vec![0.0; hs * ws * c_in];
            for (index, value) in plane.iter_mut().enumerate() {
                let (pixel, c) = (index / c_in, index % c_in);
                *value = z(b, (pixel / ws) as isize, (pixel % ws) as isize, c);
            }
            for at in 0..ho * wo * out {
                let (pixel, o) = (at / out, at % out);
                let (oy, ox) = (pixel / wo, pixel % wo);
                let mut sum = 0.0;
                for ky in 0..kh {
                    for kx in 0..kw {
                        let (iy, ix) = (oy * op.stride[0] + ky, ox * op.stride[1] + kx);
                        let (iy, ix) =
                            (iy.wrapping_sub(op.padding[0]), ix.wrapping_sub(op.padding[2]));
                        if iy >= hs || ix >= ws {
                            continue;
                        }
                        for c in 0..c_in {
                            let k = f64::from(weight.data[((o * c_in + c) * kh + ky) * kw + kx]);
                            sum += k * plane[(iy * ws + ix) * c_in + c];
                        }
                    }
                }
                if let Some(bias) = self.operand(Operand::Bias) {
                    sum += f64::from(bias.data[o]);
                }
                if let Some(shift) = self.operand(Operand::Shift) {
                    sum += f64::from(shift.data[b * out + o]);
                }
                if let Some(residual) = self.operand(Operand::Residual) {
                    sum += f64::from(residual.data[((b * ho + oy) * wo + ox) * out + o]);
                }
                y.push(sum);
            }
        }
        y
    }

    /// Against the definition and, bit by bit, over threads, SIMD levels, batches and the form that
    /// isn't lowered.
    fn check(&self) {
        let one = self.run(&Cpu::new(1));
        assert_rms(&one.data, &self.reference(), 2e-6, &format!("{:?}", self.op));
        for threads in [2, 3] {
            let many = self.run(&Cpu::new(threads));
            assert_same_bits(&one, &many, &format!("{threads} threads"));
        }
        if Simd::available() >= Simd::Avx2 {
            let avx2 = self.run(&Cpu::with_simd(2, Simd::Avx2));
            assert_same_bits(&one, &avx2, "AVX2");
        }
        let scalar = self.run(&Cpu::with_simd(2, Simd::Scalar));
        let scalar: Vec<f64> = scalar.data.iter().map(|&value| f64::from(value)).collect();
        assert_rms(&one.data, &scalar, 3e-6, "without SIMD");
        let references: Vec<&Host> = self.inputs.iter().collect();
        let bare = run_on(&Cpu::new(2), &self.op, &references, &[]).unwrap();
        assert_same_bits(&one, &bare[0], "not lowered");
        for sample in 0..self.inputs[0].ty.shape[0] {
            let inputs = (self.inputs.iter().zip(self.op.operands.list()))
                .map(|(host, operand)| match operand {
                    Operand::Weight | Operand::Bias => host.clone(),
                    _ => host.samples(sample..sample + 1),
                })
                .collect();
            let alone = Case { op: self.op.clone(), inputs }.run(&Cpu::new(2));
            assert_same_bits(&alone, &one.samples(sample..sample + 1), "alone");
        }
    }
}

fn shape4(host: &Host) -> [usize; 4] {
    host.ty.shape[..].try_into().unwrap()
}

fn run_lowered(cpu: &Cpu, lowered: &Lowered, inputs: &[Host]) -> Host {
    let mut inputs = inputs.to_vec();
    for (index, op) in &lowered.prepare {
        inputs[*index] = run_on(cpu, &**op, &[&inputs[*index]], &[]).unwrap().remove(0);
    }
    let references: Vec<&Host> = inputs.iter().collect();
    run_on(cpu, &*lowered.op, &references, &[]).unwrap().remove(0)
}

/// RMS of the error over RMS of what is wanted.
fn assert_rms(got: &[f32], want: &[f64], bound: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = squares(&mut got.iter().zip(want).map(|(&got, want)| f64::from(got) - want));
    let error = (error / squares(&mut want.iter().copied())).sqrt();
    assert!(error <= bound, "{what}: relative error {error:e}, allowed {bound:e}");
}

fn all() -> Operands {
    Operands {
        second: false,
        affine: true,
        silu: true,
        upsample: false,
        bias: true,
        shift: true,
        residual: true,
    }
}

fn rich(kernel: [usize; 2], operands: Operands) -> Conv2d {
    Conv2d { operands, ..Conv2d::same(kernel, true) }
}

#[test]
fn plain_kernels_strides_and_paddings() {
    for (kernel, stride, padding) in [
        ([3, 3], [1, 1], [1, 1, 1, 1]),
        ([3, 3], [2, 2], [0, 1, 0, 1]),
        ([3, 3], [2, 2], [1, 1, 1, 1]),
        ([1, 1], [1, 1], [0, 0, 0, 0]),
        ([1, 1], [2, 2], [0, 0, 0, 0]),
        ([1, 1], [1, 1], [1, 0, 0, 2]),
        ([2, 5], [3, 1], [0, 2, 3, 0]),
        ([7, 4], [1, 2], [4, 3, 1, 2]),
        ([5, 1], [1, 3], [2, 2, 0, 0]),
        ([3, 3], [1, 1], [0, 0, 0, 0]),
        ([6, 7], [4, 5], [6, 5, 3, 7]),
    ] {
        let operands = Operands { bias: true, ..Operands::default() };
        let op = Conv2d { stride, padding, operands };
        Case::new(op.clone(), [2, 13, 19, 3], [17, kernel[0], kernel[1]]).check();
        Case::new(op, [1, 8, 9, 33], [3, kernel[0], kernel[1]]).check();
    }
}

#[test]
fn linear_layers() {
    for (x, out) in [
        ([1, 1, 1, 64], 48),
        ([5, 1, 1, 37], 130),
        ([2, 1, 77, 300], 96),
        ([3, 5, 7, 16], 16),
        ([1, 40, 30, 520], 20),
    ] {
        Case::new(Conv2d::pointwise(true), x, [out, 1, 1]).check();
        Case::new(rich([1, 1], all()), x, [out, 1, 1]).check();
    }
}

#[test]
fn everything_fused() {
    for (x, out) in
        [([2, 13, 19, 17], 33), ([1, 8, 8, 48], 48), ([3, 16, 16, 32], 20), ([2, 9, 33, 64], 64)]
    {
        Case::new(rich([3, 3], all()), x, [out, 3, 3]).check();
        let second = Operands { second: true, ..all() };
        Case::with_second(rich([3, 3], second), x, 21, [out, 3, 3]).check();
        let up = Operands { upsample: true, bias: true, ..Operands::default() };
        Case::new(rich([3, 3], up), x, [out, 3, 3]).check();
        Case::new(rich([5, 5], Operands { upsample: true, ..all() }), x, [out, 5, 5]).check();
        let stride = Conv2d { stride: [2, 2], ..rich([3, 3], second) };
        Case::with_second(stride, x, 3, [out, 3, 3]).check();
    }
}

#[test]
fn borders_are_zero_after_norm_and_silu() {
    let operands = Operands { affine: true, silu: true, ..Operands::default() };
    let mut case = Case::new(rich([3, 3], operands), [1, 6, 6, 16], [16, 3, 3]);
    case.inputs[0].data.fill(0.0);
    case.inputs[1].data.fill(1.0);
    case.inputs[2].data.fill(1.0);
    let y = case.run(&Cpu::new(1));
    let inner = simd::silu(1.0) * 16.0;
    let at = |row: usize, column: usize| y.data[(row * 6 + column) * 16];
    for (got, taps) in [(at(0, 0), 4.0), (at(0, 3), 6.0), (at(3, 3), 9.0)] {
        assert!((got - taps * inner).abs() <= 1e-3, "{got} for {taps} taps");
    }
}

#[test]
fn gradients_agree_with_differences() {
    let operands = Operands { bias: true, shift: true, residual: true, ..Operands::default() };
    for (kernel, stride, padding, c, out) in [
        ([3, 3], [1, 1], [1, 1, 1, 1], 3, 5),
        ([3, 3], [1, 1], [1, 1, 1, 1], 17, 18),
        ([3, 3], [2, 2], [0, 1, 0, 1], 5, 16),
        ([3, 3], [2, 2], [1, 1, 1, 1], 4, 6),
        ([1, 1], [1, 1], [0, 0, 0, 0], 20, 33),
        ([1, 1], [2, 3], [0, 0, 0, 0], 3, 4),
        ([2, 5], [3, 1], [0, 2, 3, 0], 4, 3),
        ([5, 4], [1, 2], [4, 3, 1, 2], 2, 3),
    ] {
        let op = Conv2d { stride, padding, operands };
        let case = Case::new(op.clone(), [2, 9, 7, c], [out, kernel[0], kernel[1]]);
        check_gradient(Arc::new(op), &case.inputs, &[0], 2e-4);
    }
}

#[test]
fn transposed_gradients_agree_with_differences() {
    for (kernel, stride, padding) in
        [([4, 4], [2, 2], [1, 1]), ([3, 3], [1, 1], [1, 1]), ([2, 3], [3, 1], [0, 2])]
    {
        let op = ConvTranspose2d::new(stride, padding, true);
        let inputs = [
            Host::random(&[2, 5, 6, 7], 1),
            Host::random(&[7, 4, kernel[0], kernel[1]], 2),
            Host::random(&[4], 3),
        ];
        check_gradient(Arc::new(op.clone()), &inputs, &[0], 2e-4);
        check_batch(&op, &inputs.iter().collect::<Vec<_>>(), &[true, false, false], &[0]);
    }
}

/// ⟨conv(x), dy⟩ = ⟨x, dgrad(dy)⟩ = ⟨w, wgrad(x, dy)⟩, and the same bits on any number of threads.
#[test]
fn gradients_are_adjoint_at_every_size() {
    for (x, out, kernel, stride, padding) in [
        ([3, 16, 16, 32], 48, [3, 3], [1, 1], [1, 1, 1, 1]),
        ([2, 13, 19, 33], 17, [3, 3], [1, 1], [1, 1, 1, 1]),
        ([2, 17, 12, 64], 64, [3, 3], [2, 2], [0, 1, 0, 1]),
        ([2, 9, 9, 70], 100, [1, 1], [1, 1], [0, 0, 0, 0]),
        ([2, 8, 8, 64], 64, [3, 3], [1, 1], [1, 1, 1, 1]),
        ([1, 21, 10, 8], 19, [7, 5], [3, 2], [3, 3, 2, 2]),
    ] {
        let op = Conv2d { stride, padding, operands: Operands::default() };
        let case = Case::new(op, x, [out, kernel[0], kernel[1]]);
        let y = case.reference();
        let shape = case.op.infer(&case.types()).unwrap().remove(0).shape;
        let dy = Host::random(&shape, 99);
        let product: f64 = y.iter().zip(&dy.data).map(|(y, &dy)| y * f64::from(dy)).sum();
        let size = y.iter().map(|y| y * y).sum::<f64>().sqrt();
        let size = size * dy.data.iter().map(|&d| f64::from(d).powi(2)).sum::<f64>().sqrt();
        let inner = |a: &Host, b: &Host| -> f64 {
            a.data.iter().zip(&b.data).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let dgrad = Conv2dDgrad { stride, padding, input: [x[1], x[2]] };
        let wgrad = Conv2dWgrad::new(stride, padding, kernel, true);
        let (source, weight) = (&case.inputs[0], &case.inputs[1]);
        let lowered = dgrad.lower(&Target::CPU, &[&dy.ty, &weight.ty]).unwrap();
        let operands = [dy.clone(), weight.clone()];
        let dx = run_lowered(&Cpu::new(1), &lowered, &operands);
        assert!((inner(&dx, source) - product).abs() <= 1e-6 * size);
        let dw = run_on(&Cpu::new(1), &wgrad, &[source, &dy], &[]).unwrap();
        assert!((inner(&dw[0], weight) - product).abs() <= 1e-6 * size);
        for threads in [2, 3] {
            let cpu = Cpu::new(threads);
            assert_same_bits(&dx, &run_lowered(&cpu, &lowered, &operands), "dx");
            let again = run_on(&cpu, &wgrad, &[source, &dy], &[]).unwrap();
            assert_same_bits(&dw[0], &again[0], "dw");
            assert_same_bits(&dw[1], &again[1], "db");
        }
    }
}

/// As above, for sources that are concatenated, normalised and upsampled while they are read.
#[test]
fn weight_gradients_read_what_the_convolution_reads() {
    let plain = Operands::default();
    for (operands, stride) in [
        (Operands { affine: true, silu: true, ..plain }, [1, 1]),
        (Operands { second: true, affine: true, ..plain }, [2, 1]),
        (Operands { second: true, upsample: true, ..plain }, [1, 1]),
        (Operands { second: true, affine: true, silu: true, upsample: true, ..plain }, [2, 2]),
    ] {
        let padding = [1, 1, 0, 1];
        let op = Conv2d { stride, padding, operands };
        let (x, dims) = ([2, 6, 5, 18], [9, 3, 3]);
        let case = match operands.second {
            true => Case::with_second(op, x, 7, dims),
            false => Case::new(op, x, dims),
        };
        let y = case.reference();
        let dy = Host::random(&case.op.infer(&case.types()).unwrap()[0].shape, 99);
        let weight = operands.weight_index();
        let wgrad = Conv2dWgrad { operands, ..Conv2dWgrad::new(stride, padding, [3, 3], false) };
        let inputs: Vec<&Host> = case.inputs[..weight].iter().chain([&dy]).collect();
        let dw = run_on(&Cpu::new(2), &wgrad, &inputs, &[]).unwrap().remove(0);
        let product = |a: &mut dyn Iterator<Item = f64>, b: &Host| -> f64 {
            a.zip(&b.data).map(|(a, &b)| a * f64::from(b)).sum()
        };
        let want = product(&mut y.iter().copied(), &dy);
        let got = product(&mut dw.data.iter().map(|&x| f64::from(x)), &case.inputs[weight]);
        let size = product(
            &mut y.iter().map(|y| y.abs()),
            &Host { ty: dy.ty.clone(), data: dy.data.iter().map(|x| x.abs()).collect() },
        );
        assert!((got - want).abs() <= 1e-6 * size, "{operands:?}: {got}, {want}");
    }
}

#[test]
fn refusals_name_the_operation_the_value_and_the_limit() {
    let x = TensorType::f32([1, 4, 4, 8]);
    let weight = TensorType::f32([16, 9, 3, 3]);
    let refused = |op: &dyn Op, inputs: &[&TensorType]| op.infer(inputs).unwrap_err().to_string();
    let message = refused(&Conv2d::same([3, 3], false), &[&x, &weight]);
    assert!(message.contains("conv2d") && message.contains('9') && message.contains('8'));
    let weight = TensorType::f32([16, 8, 5, 5]);
    let message = refused(&Conv2d::new([1, 1], [0, 0], false), &[&x, &weight]);
    assert!(message.contains("[5, 5]") && message.contains("[4, 4]"), "{message}");
    let message = refused(&Conv2d::new([0, 1], [2, 2], false), &[&x, &weight]);
    assert!(message.contains("stride"), "{message}");
    let bias = TensorType::f32([15]);
    let message = refused(&Conv2d::same([5, 5], true), &[&x, &weight, &bias]);
    assert!(message.contains("[16]") && message.contains("[15]"), "{message}");
    let message = refused(&Conv2d::same([5, 5], true), &[&x, &weight]);
    assert!(message.contains("3 inputs"), "{message}");
    let message = refused(
        &ConvTranspose2d::new([1, 1], [4, 4], false),
        &[&TensorType::f32([1, 1, 1, 16]), &weight],
    );
    assert!(message.contains("conv_transpose2d"), "{message}");
}
