use super::Patches;
use crate::device::cpu::{Cpu, CpuKernel, Io};
use half::f16;

/// What kernels are compared with: the CPU itself takes no patches.
impl CpuKernel for Patches {
    fn run(&self, _: &Cpu, io: Io<'_, '_>) {
        let (x, y) = (&io.inputs[0], &mut io.outputs[0]);
        let [_, height, width, first] = x.shape[..] else { unreachable!("inputs are checked") };
        let second = io.inputs.get(1);
        let channels = first + second.map_or(0, |second| second.shape[3]);
        let elements = y.shape[3];
        let [kh, kw] = self.kernel;
        for (pixel, patch) in y.data.chunks_mut(elements).enumerate() {
            let (row, ox) = (pixel / self.output[1], pixel % self.output[1]);
            let (sample, oy) = (row / self.output[0], row % self.output[0]);
            for (at, element) in patch.iter_mut().enumerate() {
                let (c, ky, kx) = (at / (kh * kw), at / kw % kh, at % kw);
                *element = 0.0;
                if c >= channels {
                    continue;
                }
                let [iy, ix] = [self.source(0, oy, ky), self.source(1, ox, kx)];
                let inside =
                    (0..height as isize).contains(&iy) && (0..width as isize).contains(&ix);
                if inside {
                    let place = (sample * height + iy as usize) * width + ix as usize;
                    let value = match second {
                        Some(second) if c >= first => {
                            second.data[place * second.shape[3] + c - first]
                        }
                        _ => x.data[place * first + c],
                    };
                    *element = f16::from_f32(value).to_f32();
                }
            }
        }
    }
}
