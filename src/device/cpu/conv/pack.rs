//! Weights in the order in which the products read them.
//!
//! Direct: for each phase `[panel][ky][kx][C_in][width of the panel]`, one phase for a convolution,
//! stride² phases for a transposed one (see [`super::direct`]). Winograd:
//! `[panel][frequency][C_in padded to 16][width of the panel]`.

use super::super::Cpu;
use super::direct::Phase;
use super::form::{Algorithm, Pack};
use super::{PANEL, panel_vectors, winograd_pack};

/// Packs a canonical weight.
///
/// # Panics
/// When a slice has not the length that `form` says.
pub fn pack(cpu: &Cpu, form: &Pack, weight: &[f32], packed: &mut [f32]) {
    let [out, inner, kh, kw] = form.dims;
    assert_eq!(weight.len(), out * inner * kh * kw, "length of the weight");
    assert_eq!(packed.len(), form.len(), "length of the packed weight");
    match form.algorithm {
        Algorithm::Direct => {}
        Algorithm::Winograd2 => return winograd_pack::pack(cpu, form, 2, weight, packed),
        Algorithm::Winograd4 => return winograd_pack::pack(cpu, form, 4, weight, packed),
    }
    let (c_in, c_out) = form.channels();
    let conv = form.conv();
    let mut rest = packed;
    for index in 0..conv.phases() {
        let phase = conv.phase(index);
        let [th, tw] = phase.taps;
        let whole = th * tw * c_in;
        let (this, next) = rest.split_at_mut(whole * c_out.next_multiple_of(16));
        rest = next;
        if this.is_empty() {
            continue;
        }
        cpu.chunks_mut(this, whole * PANEL, &|panel, this| {
            let width = 16 * panel_vectors(c_out, panel);
            let columns = (c_out - panel * PANEL).min(width);
            for (k, row) in this.chunks_exact_mut(width).enumerate() {
                let (tap, channel) = (k / c_in, k % c_in);
                let [ky, kx] = kernel_tap(form, &phase, [tap / tw, tap % tw]);
                for (j, value) in row.iter_mut().enumerate() {
                    let column = panel * PANEL + j;
                    *value = if j >= columns {
                        0.0
                    } else if form.transposed {
                        weight[((channel * inner + column) * kh + ky) * kw + kx]
                    } else {
                        weight[((column * inner + channel) * kh + ky) * kw + kx]
                    };
                }
            }
        });
    }
}

/// The element of the canonical kernel that a tap of a phase reads.
fn kernel_tap(form: &Pack, phase: &Phase, [ty, tx]: [usize; 2]) -> [usize; 2] {
    if !form.transposed {
        return [ty, tx];
    }
    let [th, tw] = phase.taps;
    [
        phase.residue[0] + form.stride[0] * (th - 1 - ty),
        phase.residue[1] + form.stride[1] * (tw - 1 - tx),
    ]
}
