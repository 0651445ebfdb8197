//! Places everything that outlives a run: one offset for each persistent slot.

use super::{Graph, Region, Slot, WHOLE};
use crate::device::{Space, TensorType, View};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashMap};

/// Alignment of a slot in bytes: GPUs read 256-byte segments, and region vectors need no gaps
/// larger than this.
const ALIGNMENT: usize = 256;

/// Name of the slot in which the blocks of a launch count themselves; see
/// [`Op::tickets`](crate::ops::Op::tickets).
const TICKETS: &str = "tickets";

/// Where each persistent slot lies. Shared by all programs of a session.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    slots: HashMap<(Region, String), View>,
    regions: BTreeMap<Region, std::ops::Range<usize>>,
    bytes: usize,
}

impl Layout {
    /// Places the slots of all graphs, region by region, in order of first appearance; regions
    /// that mirror the weights have the weights' order whatever the order of their use.
    ///
    /// # Errors
    /// When two graphs disagree on a slot's type.
    pub fn new(graphs: &[&Graph]) -> Result<Layout> {
        let mut order: BTreeMap<Region, Vec<(String, TensorType)>> = BTreeMap::new();
        let mut known: HashMap<(Region, String), TensorType> = HashMap::new();
        let slots = || graphs.iter().flat_map(|graph| &graph.slots);
        for Slot { region, name, ty, .. } in slots().filter(|slot| slot.name != WHOLE) {
            match known.get(&(*region, name.clone())) {
                Some(other) if other != ty => {
                    return Err(Error::operation(
                        name,
                        format!("one program has it as {other:?}, another as {ty:?}"),
                    ));
                }
                Some(_) => {}
                None => {
                    known.insert((*region, name.clone()), ty.clone());
                    order.entry(*region).or_default().push((name.clone(), ty.clone()));
                }
            }
        }
        let weights = order.get(&Region::Weights).cloned().unwrap_or_default();
        for Slot { region, .. } in slots() {
            if region.mirrors_weights() {
                order.insert(*region, weights.clone());
            }
        }
        let mut layout = Layout::default();
        for (region, slots) in order {
            let start = layout.bytes;
            for (name, ty) in slots {
                let offset = layout.bytes;
                layout.bytes = (offset + ty.bytes()).next_multiple_of(ALIGNMENT);
                layout.slots.insert((region, name), View { space: Space::Persistent, offset, ty });
            }
            layout.regions.insert(region, start..layout.bytes);
        }
        Ok(layout)
    }

    /// With a slot of `count` tickets at the end of [`Region::State`], the last region. Launches run one
    /// after another and leave their tickets at zero, as the device's memory is at the start, so one
    /// slot of the largest size serves all programs.
    pub(super) fn with_tickets(mut self, count: usize) -> Layout {
        if count > 0 {
            let view =
                View { space: Space::Persistent, offset: self.bytes, ty: TensorType::u32([count]) };
            self.bytes = (view.offset + view.ty.bytes()).next_multiple_of(ALIGNMENT);
            let empty = view.offset..view.offset;
            self.regions.entry(Region::State).or_insert(empty).end = self.bytes;
            self.slots.insert((Region::State, TICKETS.into()), view);
        }
        self
    }

    /// The first `count` tickets; `None` where none are asked for.
    ///
    /// # Errors
    /// When the layout has not that many.
    pub(super) fn tickets(&self, count: usize) -> Result<Option<View>> {
        if count == 0 {
            return Ok(None);
        }
        let view = self.get(Region::State, TICKETS)?;
        if view.ty.elements() < count {
            let what = format!("{count} are needed, the layout has {}", view.ty.elements());
            return Err(Error::operation(TICKETS, what));
        }
        Ok(Some(View { ty: TensorType::u32([count]), ..view }))
    }

    /// Bytes of all regions together.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The slot's place, if any graph declared it.
    pub fn find(&self, region: Region, name: &str) -> Option<View> {
        if name == WHOLE {
            let range = self.regions.get(&region)?;
            let ty = TensorType::f32([range.len() / 4]);
            return Some(View { space: Space::Persistent, offset: range.start, ty });
        }
        self.slots.get(&(region, name.to_string())).cloned()
    }

    /// The slot's place.
    ///
    /// # Errors
    /// When no graph declared it.
    pub fn get(&self, region: Region, name: &str) -> Result<View> {
        self.find(region, name)
            .ok_or_else(|| Error::operation(name, format!("there is no such slot in {region:?}")))
    }

    /// Slots of a region in memory order.
    pub fn region(&self, region: Region) -> Vec<(&str, &View)> {
        let mut slots: Vec<_> = self
            .slots
            .iter()
            .filter(|((of, _), _)| *of == region)
            .map(|((_, name), view)| (name.as_str(), view))
            .collect();
        slots.sort_by_key(|(_, view)| view.offset);
        slots
    }
}
