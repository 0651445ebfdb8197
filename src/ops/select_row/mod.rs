//! The row of a table that belongs to the current network evaluation of a sampling run.

mod cpu;
mod launch;

use super::{LaunchArgs, Op, shape, state};
use crate::device::{KernelWork, TensorType};
use crate::error::{Error, Result};

/// (`table` `[N, …]`, `state`) → `row` `[1, …]`: row `ROW` of the state, which must be below N.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelectRow;

impl Op for SelectRow {
    fn name(&self) -> &'static str {
        "select_row"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::arity(self.name(), inputs, 2..=2)?;
        shape::float(self.name(), inputs[0])?;
        shape::expect(self.name(), "state", inputs[1], &state::ty())?;
        if inputs[0].shape.len() < 2 {
            return Err(Error::operation(
                self.name(),
                format!("the table must be [N, …], not {:?}", inputs[0]),
            ));
        }
        let mut row = inputs[0].clone();
        row.shape[0] = 1;
        Ok(vec![row])
    }

    fn bytes(&self, _: &[&TensorType], outputs: &[&TensorType]) -> u64 {
        outputs.iter().map(|row| 2 * row.bytes() as u64).sum()
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::state::{ROW, StepState};
    use crate::ops::testing::{Host, run};

    #[test]
    fn rows() {
        let table = Host::random(&[3, 5], 1);
        for row in 0..3 {
            let mut state = StepState::new(0);
            state.words[ROW] = row as u32;
            let got = run(&SelectRow, &[&table, &Host::bits(&[16], &state.words)]);
            assert_eq!(got[0].ty.shape, [1, 5]);
            assert_eq!(got[0].data, table.samples(row..row + 1).data);
        }
    }
}
