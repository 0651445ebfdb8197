//! Programs on a device: what a sampler and a trainer hold.

use super::{Graph, Layout, Region, compile, lower};
use crate::device::{Device, Loaded, Program, Session, Target, View};
use crate::error::{Error, Result};
use std::sync::Arc;

/// A set of programs that share their persistent memory, compiled but not on any device: what
/// `cyanea plan` prints.
#[derive(Clone, Debug)]
pub struct Plan {
    pub layout: Layout,
    pub programs: Vec<Arc<Program>>,
}

impl Plan {
    /// Compiles named graphs for a target.
    ///
    /// # Errors
    /// Shapes that the target can't take, or graphs that disagree on a slot.
    pub fn new(graphs: &[(&str, &Graph)], target: &Target) -> Result<Plan> {
        let tickets = graphs.iter().map(|(_, graph)| compile::tickets(graph, target)).max();
        let layout = Layout::new(&graphs.iter().map(|(_, graph)| *graph).collect::<Vec<_>>())?
            .with_tickets(tickets.unwrap_or(0));
        let programs = graphs
            .iter()
            .map(|(name, graph)| compile(graph, &layout, target, name).map(Arc::new))
            .collect::<Result<Vec<_>>>()?;
        Ok(Plan { layout, programs })
    }

    /// One arena serves all programs: the largest that any of them needs, in bytes.
    pub fn arena_bytes(&self) -> usize {
        self.programs.iter().map(|program| program.arena_bytes).max().unwrap_or(0)
    }

    pub fn program(&self, name: &str) -> Option<&Arc<Program>> {
        self.programs.iter().find(|program| program.name == name)
    }
}

/// A plan on a device.
pub struct Engine {
    plan: Plan,
    session: Box<dyn Session>,
    loaded: Vec<Loaded>,
}

impl Engine {
    /// Allocates the plan's memory on the device, zeroed, and loads its programs.
    ///
    /// # Errors
    /// When the device lacks the memory or a kernel.
    pub fn new(plan: Plan, device: &dyn Device) -> Result<Engine> {
        let mut session = device.open(plan.layout.bytes(), plan.arena_bytes())?;
        let loaded = plan
            .programs
            .iter()
            .map(|program| session.load(program.clone()))
            .collect::<Result<Vec<_>>>()?;
        Ok(Engine { plan, session, loaded })
    }

    /// Lowers, plans and loads in one go.
    ///
    /// # Errors
    /// As [`Plan::new`] and [`Engine::new`].
    pub fn open(graphs: &[(&str, &Graph)], device: &dyn Device) -> Result<Engine> {
        Engine::new(Plan::new(graphs, device.target())?, device)
    }

    /// Runs one graph from beginning to end, all its nodes in one program: for single evaluations
    /// whose weights are used once.
    ///
    /// # Errors
    /// As [`Plan::new`] and [`Engine::new`].
    pub fn single(mut graph: Graph, device: &dyn Device) -> Result<Engine> {
        lower::lower(&mut graph, device.target())?;
        graph.prune(&[]);
        Engine::open(&[("run", &graph)], device)
    }

    /// The same without fusing anything: what fused graphs are compared with.
    ///
    /// # Errors
    /// As [`Plan::new`] and [`Engine::new`].
    pub fn unfused(mut graph: Graph, device: &dyn Device) -> Result<Engine> {
        lower::lower_each(&mut graph, device.target())?;
        graph.prune(&[]);
        Engine::open(&[("run", &graph)], device)
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn session(&self) -> &dyn Session {
        self.session.as_ref()
    }

    /// Runs a program of the plan.
    ///
    /// # Errors
    /// A name that the plan lacks, or a fault of the device.
    pub fn run(&mut self, program: &str) -> Result<()> {
        let index = self.plan.programs.iter().position(|p| p.name == program);
        let index = index.ok_or_else(|| {
            Error::operation("run", format!("the plan has no program `{program}`"))
        })?;
        self.session.run(self.loaded[index])
    }

    /// Writes a whole slot.
    ///
    /// # Errors
    /// When the slot is unknown or has another size.
    pub fn write<T: bytemuck::NoUninit>(
        &mut self,
        region: Region,
        name: &str,
        values: &[T],
    ) -> Result<()> {
        let view = self.view_for(region, name, std::mem::size_of_val(values))?;
        self.session.write(view.offset, bytemuck::cast_slice(values))
    }

    /// Reads a whole slot.
    ///
    /// # Errors
    /// When the slot is unknown.
    pub fn read<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
        &mut self,
        region: Region,
        name: &str,
    ) -> Result<Vec<T>> {
        let view = self.plan.layout.get(region, name)?;
        let mut values = vec![T::zeroed(); view.ty.bytes() / std::mem::size_of::<T>()];
        self.session.read(view.offset, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Whether the plan has such a slot.
    pub fn has(&self, region: Region, name: &str) -> bool {
        self.plan.layout.find(region, name).is_some()
    }

    fn view_for(&self, region: Region, name: &str, bytes: usize) -> Result<View> {
        let view = self.plan.layout.get(region, name)?;
        if view.ty.bytes() != bytes {
            return Err(Error::operation(
                name,
                format!("is {:?}, {} bytes, and was given {bytes}", view.ty, view.ty.bytes()),
            ));
        }
        Ok(view)
    }
}
