//! The two launches of the optimizer over all parameters as one vector, and the loss.

use crate::harness::{Bench, activation, constant, step_state};
use cyanea::ops::adamw::AdamW;
use cyanea::ops::grad_norm::GradNorm;
use cyanea::ops::mse_loss::{MseLoss, MseLossGrad};

/// Parameters: one for the emulator, `ddpm-32`, `ddpm-64`.
const PARAMETERS: [usize; 3] = [4_099, 1_200_000, 35_746_307];

pub fn benches(bench: &mut Bench) {
    let adamw = |ema| AdamW {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        decoupled: true,
        max_norm: Some(1.0),
        zero_non_finite: false,
        ema,
    };
    for parameters in PARAMETERS {
        let vector = || activation([parameters]);
        let squares = || constant([parameters], 0.5);
        bench.time("optimizer", &format!("grad_norm {parameters}"), GradNorm, &[vector()], &[]);
        for ema in [false, true] {
            let average = ema.then(vector);
            let updated = [vector(), vector(), squares()].into_iter().chain(average);
            let updated: Vec<_> = updated.chain([step_state()]).collect();
            let name = format!("adamw {parameters}{}", if ema { " ema" } else { "" });
            bench.time("optimizer", &name, adamw(ema), &[vector(), constant([2], 1.0)], &updated);
        }
    }
    for (batch, size) in [(1, 8), (64, 64)] {
        let image = || activation([batch, size, size, 3]);
        let name = format!("{batch}x{size}x{size} 3");
        bench.time("optimizer", &format!("mse fwd {name}"), MseLoss, &[image(), image()], &[]);
        let inputs = [constant([1], 1.0), image(), image()];
        bench.time("optimizer", &format!("mse dgrad {name}"), MseLossGrad, &inputs, &[]);
    }
}
