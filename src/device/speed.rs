//! What a named GPU can do at best, from its data sheet: the floors that predictions rest on.

use super::Target;

/// Peak figures of a chip. Data sheets of the SXM forms; the gap between two kernels of a CUDA
/// graph is from published measurements (1.3 µs on an H100) and, for the older chips, an estimate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Float32 operations a second outside tensor cores.
    pub flops_f32: f64,
    /// Float16 operations a second on tensor cores, with float32 accumulation.
    pub flops_f16: f64,
    /// Bytes a second to and from device memory.
    pub bytes: f64,
    /// Seconds between two launches of a CUDA graph.
    pub launch_gap: f64,
}

impl Target {
    /// The chip's peak figures; `None` for the CPU, which is measured and not predicted.
    pub fn speed(&self) -> Option<Speed> {
        let [tflops_f32, tflops_f16, terabytes, microseconds] = match self.name {
            "v100" => [15.7, 125.0, 0.9, 1.5],
            "a100" => [19.5, 312.0, 1.555, 1.5],
            "h100" => [66.9, 989.0, 3.35, 1.3],
            _ => return None,
        };
        Some(Speed {
            flops_f32: tflops_f32 * 1e12,
            flops_f16: tflops_f16 * 1e12,
            bytes: terabytes * 1e12,
            launch_gap: microseconds * 1e-6,
        })
    }
}
