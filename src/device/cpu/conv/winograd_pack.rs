//! Packing of weights for the Winograd forms: U = G g Gᵀ.

use super::super::Cpu;
use super::super::lanes::{LaneWork, Lanes, run as run_lanes};
use super::form::Pack;
use super::{Output, PANEL, panel_vectors, panels, transform};

/// Packs a canonical weight as U.
pub(super) fn pack(cpu: &Cpu, form: &Pack, size: usize, weight: &[f32], packed: &mut [f32]) {
    let (c_in, c_out) = form.channels();
    let groups = c_in.div_ceil(16);
    let out = Output(packed.as_mut_ptr());
    cpu.run(groups * panels(c_out), &|task| {
        let (panel, group) = (task / groups, task % groups);
        let work = PackWork { form, size, weight, out, panel, group };
        // SAFETY: `packed` has the length that the form says, and each task its own part.
        unsafe { run_lanes(cpu.simd(), work) }
    });
}

struct PackWork<'a> {
    form: &'a Pack,
    size: usize,
    weight: &'a [f32],
    out: Output,
    panel: usize,
    group: usize,
}

impl LaneWork for PackWork<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let (c_in, c_out) = self.form.channels();
        let inner = self.form.dims[1];
        let depth = c_in.next_multiple_of(16);
        let frequencies = (self.size + 2) * (self.size + 2);
        let vectors = panel_vectors(c_out, self.panel);
        let start = self.panel * PANEL * frequencies * depth;
        for k in self.group * 16..(self.group + 1) * 16 {
            for vector in 0..vectors {
                let column = self.panel * PANEL + 16 * vector;
                let mut taps = [[0.0f32; 16]; 9];
                if k < c_in {
                    for (lane, column) in (column..c_out.min(column + 16)).enumerate() {
                        let at = if self.form.transposed {
                            k * inner + column
                        } else {
                            column * inner + k
                        };
                        let kernel = &self.weight[at * 9..at * 9 + 9];
                        for (tap, &value) in kernel.iter().enumerate() {
                            // The transposed convolution turns the kernel by half a turn.
                            taps[if self.form.transposed { 8 - tap } else { tap }][lane] = value;
                        }
                    }
                }
                // SAFETY: row k of each frequency of this panel lies inside the packed weight.
                unsafe {
                    let width = 16 * vectors;
                    let to = self.out.pointer().add(start + k * width + 16 * vector);
                    let from = taps.as_ptr().cast::<f32>();
                    if self.size == 4 {
                        transform::weight::<V, true>(from, to, depth * width);
                    } else {
                        transform::weight::<V, false>(from, to, depth * width);
                    }
                }
            }
        }
    }
}
