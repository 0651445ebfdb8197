//! Sorts nodes by how often they must run. Nobody asks for this in a model: what depends on
//! weights alone falls into `prepare`, what depends on the schedule too falls into `table`.

use super::{Graph, Origin, Rate, Region, Slot, TensorId};
use crate::device::TensorType;
use crate::error::{Error, Result};
use crate::ops::Build;
use crate::ops::place_columns::PlaceColumns;
use crate::ops::select_row::SelectRow;
use std::collections::HashMap;

/// Columns of the table start at multiples of this many elements (64 bytes).
const COLUMN_ALIGNMENT: usize = 16;

/// Name of the slot in which `table` leaves its rows.
pub const TABLE: &str = "table";

/// Name of the step state's slot; `select_row` reads the row number from it.
pub const STATE: &str = "state";

/// One description, three rates.
#[derive(Clone, Debug)]
pub struct Hoisted {
    /// Runs when weights change.
    pub prepare: Graph,
    /// Runs once per sampling run, with one row for each step of the schedule.
    pub table: Graph,
    /// Runs at every evaluation.
    pub step: Graph,
}

/// Splits a graph by rate. In `table` the leading dimension of what has the rate [`Rate::Schedule`] is
/// `rows` times that in `graph`, which is 1 where the whole batch shares a row, or the batch where each
/// image has labels of its own.
///
/// # Errors
/// A shape rule that refuses so many rows.
pub fn hoist(graph: &Graph, rows: usize) -> Result<Hoisted> {
    let rates = graph.rates();
    let mut split = Split {
        source: graph,
        rows,
        prepare: Part::default(),
        table: Part::default(),
        step: Part::default(),
    };
    // Each part gets the slots first, in the source's order, so that regions keep their order.
    for slot in &graph.slots {
        // All of them, used or not: they are what a model is saved as.
        if matches!(slot.region, Region::Weights | Region::Buffers) {
            split.step.graph.slot(slot.region, &slot.name, slot.ty.clone(), slot.rate)?;
        }
    }
    split.boundary_of_table(&rates)?;
    for (node, rate) in graph.nodes.iter().zip(&rates) {
        let label = &node.label;
        let part = match rate {
            Rate::Weights => &mut split.prepare,
            Rate::Schedule => &mut split.table,
            Rate::Step => &mut split.step,
        };
        let rows = if *rate == Rate::Schedule { Some(rows) } else { None };
        let inputs = node
            .inputs
            .iter()
            .map(|&input| part.import(graph, &rates, *rate, input, rows))
            .collect::<Result<Vec<_>>>()?;
        let outputs = part.graph.push_labelled(node.op.clone(), &inputs, label)?;
        for (&old, &new) in node.outputs.iter().zip(&outputs) {
            part.map.insert(old, new);
            if let Some(slot) = graph.tensors[old.0].bound {
                let slot = &graph.slots[slot.0];
                let target =
                    part.graph.slot(slot.region, &slot.name, slot.ty.clone(), slot.rate)?;
                part.graph.bind(new, target)?;
            }
        }
        if *rate == Rate::Weights {
            split.keep_prepared(&rates, &node.outputs)?;
        }
    }
    split.fill_table()?;
    Ok(Hoisted { prepare: split.prepare.graph, table: split.table.graph, step: split.step.graph })
}

#[derive(Default)]
struct Part {
    graph: Graph,
    /// From a tensor of the source to its counterpart here.
    map: HashMap<TensorId, TensorId>,
}

impl Part {
    /// The counterpart of a source tensor, made on first use.
    fn import(
        &mut self,
        source: &Graph,
        rates: &[Rate],
        here: Rate,
        tensor: TensorId,
        rows: Option<usize>,
    ) -> Result<TensorId> {
        if let Some(&known) = self.map.get(&tensor) {
            return Ok(known);
        }
        let ty = source.ty(tensor).clone();
        let imported = match source.tensors[tensor.0].origin {
            Origin::Slot(slot) => {
                let Slot { region, name, rate, .. } = &source.slots[slot.0];
                let ty = match (rate, rows) {
                    (Rate::Schedule, Some(rows)) => with_rows(&ty, rows)?,
                    _ => ty,
                };
                self.graph.slot(*region, name, ty, *rate)?
            }
            Origin::Part { of, offset } => {
                let whole = self.import(source, rates, here, of, rows)?;
                let by_row = self.graph.ty(whole) != source.ty(of);
                match (by_row, rows) {
                    (true, Some(rows)) if offset == 0 => {
                        let ty = with_rows(&ty, rows)?;
                        self.graph.reshape(whole, &ty.shape)?
                    }
                    (true, _) => {
                        return Err(Error::operation("hoist", "a part of a row can't be tabled"));
                    }
                    _ => self.graph.part(whole, offset / ty.dtype.size(), &ty.shape)?,
                }
            }
            Origin::Node { node, output } => {
                debug_assert_eq!(rates[node], Rate::Weights, "made by a slower program");
                debug_assert!(rates[node] < here);
                let name = prepared_name(source, node, output);
                self.graph.slot(Region::Prepared, &name, ty, Rate::Weights)?
            }
        };
        self.map.insert(tensor, imported);
        Ok(imported)
    }
}

struct Split<'a> {
    source: &'a Graph,
    rows: usize,
    prepare: Part,
    table: Part,
    step: Part,
}

impl Split<'_> {
    /// Roots made at rate Schedule and read at rate Step, in order.
    fn table_outputs(&self, rates: &[Rate]) -> Vec<TensorId> {
        let mut outputs = Vec::new();
        for (node, _) in self.source.nodes.iter().zip(rates).filter(|(_, r)| **r == Rate::Step) {
            for &input in &node.inputs {
                let (root, _) = self.source.root(input);
                let made_in_table = match self.source.tensors[root.0].origin {
                    Origin::Node { node, .. } => rates[node] == Rate::Schedule,
                    Origin::Slot(slot) => self.source.slots[slot.0].rate == Rate::Schedule,
                    Origin::Part { .. } => false,
                };
                if made_in_table && !outputs.contains(&root) {
                    outputs.push(root);
                }
            }
        }
        outputs
    }

    /// Gives the step its row of the table, as one selection and views into it.
    fn boundary_of_table(&mut self, rates: &[Rate]) -> Result<()> {
        let outputs = self.table_outputs(rates);
        if outputs.is_empty() {
            return Ok(());
        }
        let width = |t: &TensorId| self.source.ty(*t).elements().next_multiple_of(COLUMN_ALIGNMENT);
        let columns: usize = outputs.iter().map(width).sum();
        let table = TensorType::f32([self.rows, columns]);
        let graph = &mut self.step.graph;
        let table = graph.slot(Region::Table, TABLE, table, Rate::Step)?;
        let state = TensorType::u32([crate::ops::state::WORDS]);
        let state = graph.slot(Region::State, STATE, state, Rate::Step)?;
        let row =
            graph.push_labelled(std::sync::Arc::new(SelectRow::Current), &[table, state], TABLE)?
                [0];
        let mut column = 0;
        for tensor in outputs {
            let ty = self.source.ty(tensor).clone();
            let view = self.step.graph.part(row, column, &ty.shape)?;
            self.step.map.insert(tensor, view);
            column += ty.elements().next_multiple_of(COLUMN_ALIGNMENT);
        }
        Ok(())
    }

    /// Lets `prepare` leave an output where the other programs find it.
    fn keep_prepared(&mut self, rates: &[Rate], outputs: &[TensorId]) -> Result<()> {
        for &output in outputs {
            let read_elsewhere = self.source.nodes.iter().zip(rates).any(|(node, rate)| {
                *rate != Rate::Weights
                    && node.inputs.iter().any(|&input| self.source.root(input).0 == output)
            });
            let Origin::Node { node, output: index } = self.source.tensors[output.0].origin else {
                continue;
            };
            if read_elsewhere {
                let name = prepared_name(self.source, node, index);
                let ty = self.source.ty(output).clone();
                let graph = &mut self.prepare.graph;
                let slot = graph.slot(Region::Prepared, &name, ty, Rate::Weights)?;
                graph.bind(self.prepare.map[&output], slot)?;
            }
        }
        Ok(())
    }

    /// Writes what the step reads by row into the columns of the table.
    fn fill_table(&mut self) -> Result<()> {
        let rates = self.source.rates();
        let outputs = self.table_outputs(&rates);
        let columns: usize = outputs
            .iter()
            .map(|&t| self.source.ty(t).elements().next_multiple_of(COLUMN_ALIGNMENT))
            .sum();
        let mut column = 0;
        for tensor in outputs {
            let from =
                self.table.import(self.source, &rates, Rate::Schedule, tensor, Some(self.rows))?;
            let width = self.source.ty(tensor).elements();
            let graph = &mut self.table.graph;
            let from = graph.reshape(from, &[self.rows, width])?;
            let table = TensorType::f32([self.rows, columns]);
            let table = graph.slot(Region::Table, TABLE, table, Rate::Step)?;
            graph.push_into(PlaceColumns { columns, column }, &[from], &[table])?;
            column += width.next_multiple_of(COLUMN_ALIGNMENT);
        }
        Ok(())
    }
}

fn prepared_name(source: &Graph, node: usize, output: usize) -> String {
    let Node { op, label, .. } = &source.nodes[node];
    format!("{label}:{}#{node}.{output}", op.name())
}

use super::Node;

fn with_rows(ty: &TensorType, rows: usize) -> Result<TensorType> {
    match ty.shape.split_first() {
        Some((each, rest)) => {
            let shape =
                std::iter::once(rows * each).chain(rest.iter().copied()).collect::<Vec<_>>();
            Ok(TensorType { shape, dtype: ty.dtype })
        }
        _ => Err(Error::operation(
            "hoist",
            format!("{ty:?} depends on the schedule but has no rows"),
        )),
    }
}
