//! Rows of a table: that of the current network evaluation of a sampling run, or those of given
//! numbers.

mod cpu;
mod launch;

use super::{LaunchArgs, Op, shape, state};
use crate::device::{KernelWork, TensorType};
use crate::error::{Error, Result};

/// From a `table` `[N, …]`; rows must be below N.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectRow {
    /// (`table`, `state`) → `[1, …]`: row `ROW` of the state.
    Current,
    /// (`table`, `rows` `[B]`, whole numbers) → `[B, …]`.
    Each,
}

impl Op for SelectRow {
    fn name(&self) -> &'static str {
        "select_row"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::arity(self.name(), inputs, 2..=2)?;
        shape::float(self.name(), inputs[0])?;
        let refuse = |what: String| Err(Error::operation(self.name(), what));
        let count = match self {
            SelectRow::Current => {
                shape::expect(self.name(), "state", inputs[1], &state::ty())?;
                1
            }
            SelectRow::Each => {
                shape::float(self.name(), inputs[1])?;
                let [count] = inputs[1].shape[..] else {
                    return refuse(format!("the rows must be [B], not {:?}", inputs[1]));
                };
                count
            }
        };
        if inputs[0].shape.len() < 2 {
            return refuse(format!("the table must be [N, …], not {:?}", inputs[0]));
        }
        let mut rows = inputs[0].clone();
        rows.shape[0] = count;
        Ok(vec![rows])
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
            let got = run(&SelectRow::Current, &[&table, &Host::bits(&[16], &state.words)]);
            assert_eq!(got[0].ty.shape, [1, 5]);
            assert_eq!(got[0].data, table.samples(row..row + 1).data);
        }
        let rows = Host::new(&[4], vec![2.0, 0.0, 2.0, 1.0]);
        let got = run(&SelectRow::Each, &[&table, &rows]);
        assert_eq!(got[0].ty.shape, [4, 5]);
        for (place, row) in [2, 0, 2, 1].into_iter().enumerate() {
            let got = got[0].samples(place..place + 1);
            assert_eq!(got.data, table.samples(row..row + 1).data);
        }
    }

    #[test]
    fn other_shapes_are_refused() {
        let (table, rows) = (TensorType::f32([3, 5]), TensorType::f32([2]));
        assert!(SelectRow::Current.infer(&[&table, &rows]).is_err());
        assert!(SelectRow::Each.infer(&[&table, &table]).is_err());
        assert!(SelectRow::Each.infer(&[&rows, &rows]).is_err());
    }
}
