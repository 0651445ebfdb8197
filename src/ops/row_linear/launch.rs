//! Launches of the kernels in kernels/row_linear.cu.

use super::{Extents, MOST_LAYERS, RowLinear};
use crate::device::kernels::{
    self, Kernel, ROW_LINEAR_DGRAD_NHWC_F16, ROW_LINEAR_DGRAD_NHWC_F32, ROW_LINEAR_FWD_NHWC_F16,
    ROW_LINEAR_FWD_NHWC_F32, ROW_LINEAR_WGRAD_NHWC_F16, ROW_LINEAR_WGRAD_NHWC_F32, UNSET,
    dimension,
};
use crate::device::{KernelWork, Precision, TensorType, View};
use crate::error::{Error, Result};
use crate::ops::{LaunchArgs, Op};

/// `RowLayer`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Layer {
    weight: u64,
    bias: u64,
    y: u64,
}

kernels::params! {
    /// `RowLinears`.
    struct Params for ROW_LINEAR_FWD_NHWC_F32, ROW_LINEAR_DGRAD_NHWC_F32, ROW_LINEAR_WGRAD_NHWC_F32,
        ROW_LINEAR_FWD_NHWC_F16, ROW_LINEAR_DGRAD_NHWC_F16, ROW_LINEAR_WGRAD_NHWC_F16
    {
        x: u64, partials: u64, tickets: u64, each: [Layer; 32],
        channels: [i32; 32], first_tile: [i32; 32],
        batch: i32, width: i32, count: i32, wide: i32,
    }
}

/// Rows and columns of a block's results.
const TILE: usize = 64;

// Where the pointers lie.
const PARTIALS: usize = 8;
const TICKETS: usize = 16;
const fn weight(layer: usize) -> usize {
    24 + 24 * layer
}
const fn bias(layer: usize) -> usize {
    weight(layer) + 8
}
const fn result(layer: usize) -> usize {
    weight(layer) + 16
}

impl RowLinear {
    /// Tickets and elements of partial sums: the gradient of x adds up layers, where there are several.
    pub(super) fn partials(&self, inputs: &[&TensorType]) -> [usize; 2] {
        let Ok(Extents { rows, width, channels }) = self.extents(inputs) else { return [0; 2] };
        if *self != RowLinear::Dgrad || channels.len() == 1 {
            return [0; 2];
        }
        let tiles = rows.div_ceil(TILE) * width.div_ceil(TILE);
        [tiles, tiles * channels.len() * TILE * TILE]
    }

    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let types: Vec<&TensorType> = args.inputs.iter().map(|view| &view.ty).collect();
        let Extents { rows, width, channels } = self.extents(&types)?;
        let layers = channels.len();
        let int = |size| dimension(self.name(), size);
        let aligned = args.inputs.iter().all(|view| view.offset.is_multiple_of(16));
        let mut params = Params {
            x: UNSET,
            partials: UNSET,
            tickets: UNSET,
            each: [Layer { weight: UNSET, bias: UNSET, y: UNSET }; MOST_LAYERS],
            channels: [0; MOST_LAYERS],
            first_tile: [0; MOST_LAYERS],
            batch: int(rows)?,
            width: int(width)?,
            count: int(layers)?,
            wide: i32::from(aligned),
        };
        let mut tiles = 0;
        for (layer, &channels) in channels.iter().enumerate() {
            params.channels[layer] = int(channels)?;
            params.first_tile[layer] = int(tiles)?;
            tiles += channels.div_ceil(TILE);
        }
        let (row_tiles, column_tiles) = (rows.div_ceil(TILE), width.div_ceil(TILE));
        let each = |views: &[View], place: fn(usize) -> usize| -> Vec<(usize, View)> {
            views.iter().enumerate().map(|(layer, view)| (place(layer), view.clone())).collect()
        };
        let x = |view: &View| vec![(0, view.clone())];
        // Rows stay float32 in memory; on such a target tensor cores multiply them.
        let in_half = args.target.precision == Precision::Fp16;
        let of = |f32: &'static Kernel, f16: &'static Kernel| if in_half { f16 } else { f32 };
        let (inputs, outputs) = (args.inputs, args.outputs);
        let (kernel, grid, read, written): (&Kernel, _, _, Vec<_>) = match self {
            RowLinear::Forward => (
                of(&ROW_LINEAR_FWD_NHWC_F32, &ROW_LINEAR_FWD_NHWC_F16),
                [tiles, row_tiles, 1],
                [
                    x(&inputs[0]),
                    each(&inputs[1..=layers], weight),
                    each(&inputs[1 + layers..], bias),
                ]
                .concat(),
                each(outputs, result),
            ),
            RowLinear::Dgrad => {
                let shared = [(PARTIALS, args.scratch), (TICKETS, args.tickets)];
                let shared = shared.into_iter().filter_map(|(at, view)| Some((at, view?.clone())));
                (
                    of(&ROW_LINEAR_DGRAD_NHWC_F32, &ROW_LINEAR_DGRAD_NHWC_F16),
                    [column_tiles, row_tiles, layers],
                    [each(&inputs[..layers], result), each(&inputs[layers..], weight)].concat(),
                    x(&outputs[0]).into_iter().chain(shared).collect(),
                )
            }
            RowLinear::Wgrad => (
                of(&ROW_LINEAR_WGRAD_NHWC_F32, &ROW_LINEAR_WGRAD_NHWC_F16),
                [tiles, column_tiles, 1],
                [x(&inputs[0]), each(&inputs[1..], result)].concat(),
                [each(&outputs[..layers], weight), each(&outputs[layers..], bias)].concat(),
            ),
        };
        if grid[1] > 65_535 {
            return Err(Error::operation(self.name(), format!("{rows} × {width} is too much")));
        }
        Ok(vec![KernelWork {
            kernel: kernel.name,
            grid: [int(grid[0])? as u32, grid[1] as u32, grid[2] as u32],
            block: [kernel.threads, 1, 1],
            shared_bytes: 0,
            params: bytemuck::bytes_of(&params).to_vec(),
            written: written.len(),
            // For gradients of weights neighbouring lanes read neighbours, one each, whatever the sizes.
            general: match self {
                RowLinear::Forward => !aligned || !width.is_multiple_of(4),
                RowLinear::Dgrad => !aligned || channels.iter().any(|c| !c.is_multiple_of(4)),
                RowLinear::Wgrad => false,
            },
            pointers: read.into_iter().chain(written).collect(),
        }])
    }
}
