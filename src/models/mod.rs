//! Networks: their settings, and the graphs they become.

pub mod ddpm_unet;
pub mod edm2_config;
mod edm2_ddpm;
pub mod edm2_unet;
mod guided;
pub mod json_config;
pub mod layers;
mod network_config;
pub mod unet_config;

pub use ddpm_unet::DdpmUnet;
pub use edm2_config::Edm2Config;
pub use edm2_unet::Edm2Unet;
pub use guided::Guided;
pub use network_config::{NetworkConfig, NoiseInput, Timestep};
pub use unet_config::UnetConfig;

use crate::device::TensorType;
use crate::error::{Error, Result};
use crate::graph::{Engine, Graph, Rate, Region, TensorId};

/// What a network is told beside the noisy image.
#[derive(Clone, Copy, Debug)]
pub struct Given {
    /// Timesteps or noise levels σ: [B], or [1] for all samples alike.
    pub times: TensorId,
    /// [B, classes], or [1, classes]: one-hot rows, or zeros for no class.
    pub labels: Option<TensorId>,
    /// Whether activations are dropped at random, as in training.
    pub training: bool,
}

impl Given {
    /// In use, without labels.
    pub fn times(times: TensorId) -> Given {
        Given { times, labels: None, training: false }
    }
}

/// A network that predicts noise (or x₀, or v) from a noisy input and how noisy it is.
pub trait Network: Send + Sync {
    /// Channels of input and output.
    fn channels(&self) -> [usize; 2];

    /// Whether the network takes inputs of this height and width.
    ///
    /// # Errors
    /// Says which sizes it takes.
    fn check_size(&self, height: usize, width: usize) -> Result<()>;

    /// Appends the network: `x` [B, H, W, C_in]; gives [B, H, W, C_out].
    ///
    /// # Errors
    /// Shapes that the network can't take, or labels where it knows no classes.
    fn build(&self, g: &mut Graph, x: TensorId, given: Given) -> Result<TensorId>;

    /// Classes that labels can name; 0: the network takes none.
    fn classes(&self) -> usize {
        0
    }

    /// Slots of [`Region::State`] that the network reads, with values that every run writes before
    /// it begins.
    fn tables(&self) -> Vec<(&'static str, Vec<f32>)> {
        Vec::new()
    }

    /// Whether weights are normalised in use: they start standard normal, and training forces their
    /// rows back to unit magnitude at each step.
    fn unit_weights(&self) -> bool {
        false
    }
}

/// Labels as a network takes them, [B, classes]: one row for each, zeros where there is none.
pub fn one_hot(labels: &[Option<usize>], classes: usize) -> Vec<f32> {
    let mut rows = vec![0.0; labels.len() * classes];
    for (row, label) in rows.chunks_mut(classes.max(1)).zip(labels) {
        if let Some(place) = label.and_then(|label| row.get_mut(label)) {
            *place = 1.0;
        }
    }
    rows
}

/// Writes what a network reads beside its weights.
///
/// # Errors
/// When the engine was made for another network.
pub fn write_tables(network: &dyn Network, engine: &mut Engine) -> Result<()> {
    for (name, values) in network.tables() {
        engine.write(Region::State, name, &values)?;
    }
    Ok(())
}

/// Whether a U-Net of so many levels takes inputs of a size.
///
/// # Errors
/// A size that is 0 or can't be halved from level to level.
fn check_size(levels: usize, height: usize, width: usize) -> Result<()> {
    let halvings = levels.saturating_sub(1);
    let multiple = 1usize << halvings;
    if [height, width].iter().all(|&side| side > 0 && side.is_multiple_of(multiple)) {
        return Ok(());
    }
    let fitting = |size: usize| size.div_ceil(multiple).max(1).saturating_mul(multiple);
    Err(Error::invalid(format!(
        "a U-Net of {levels} levels halves its input {halvings} times, so height and width must be \
         multiples of {multiple}, but the size is {height}×{width}; {}×{} would do, or fewer levels",
        fitting(height),
        fitting(width)
    )))
}

/// Names and shapes of a network's trained parameters, in order of use.
///
/// # Errors
/// What [`Network::build`] refuses.
pub fn parameters(network: &dyn Network, size: [usize; 2]) -> Result<Vec<(String, Vec<usize>)>> {
    Ok(in_region(&graph(network, size)?, Region::Weights))
}

/// Names and shapes of what a model file holds: the trained parameters, then the network's buffers.
///
/// # Errors
/// What [`Network::build`] refuses.
pub fn saved(network: &dyn Network, size: [usize; 2]) -> Result<Vec<(String, Vec<usize>)>> {
    Ok(declared(&graph(network, size)?))
}

/// Names and shapes of the trained parameters, then of the buffers, that a graph declares.
pub fn declared(g: &Graph) -> Vec<(String, Vec<usize>)> {
    [Region::Weights, Region::Buffers].iter().flat_map(|&region| in_region(g, region)).collect()
}

/// Names and shapes of a graph's slots in a region, in order of use.
fn in_region(g: &Graph, region: Region) -> Vec<(String, Vec<usize>)> {
    let slots = g.slots.iter().filter(|slot| slot.region == region);
    slots.map(|slot| (slot.name.clone(), slot.ty.shape.clone())).collect()
}

fn graph(network: &dyn Network, size: [usize; 2]) -> Result<Graph> {
    let mut g = Graph::new();
    let shape = [1, size[0], size[1], network.channels()[0]];
    let x = g.input("x", TensorType::f32(shape))?;
    let timesteps = g.slot(Region::State, "timesteps", TensorType::f32([1]), Rate::Schedule)?;
    network.build(&mut g, x, Given::times(timesteps))?;
    Ok(g)
}

/// A network's weights, then its buffers: names, shapes and values in PyTorch's layout, in order of
/// use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    pub tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl Weights {
    /// Writes all weights and buffers into an engine's slots.
    ///
    /// # Errors
    /// A name or size that the engine's network does not have.
    pub fn write(&self, engine: &mut Engine) -> Result<()> {
        let slots = |region| engine.plan().layout.region(region).len();
        let wanted = slots(Region::Weights) + slots(Region::Buffers);
        if wanted != self.tensors.len() {
            return Err(Error::operation(
                "weights",
                format!("the network has {wanted} parameters, {} were given", self.tensors.len()),
            ));
        }
        self.write_to(engine, Region::Weights)
    }

    /// Writes weights into a region that mirrors them, and buffers where they belong.
    ///
    /// # Errors
    /// As [`Weights::write`].
    pub fn write_to(&self, engine: &mut Engine, region: Region) -> Result<()> {
        for (name, _, values) in &self.tensors {
            let buffer = engine.has(Region::Buffers, name);
            engine.write(if buffer { Region::Buffers } else { region }, name, values)?;
        }
        Ok(())
    }

    /// Reads one value for each weight from a region that mirrors the weights; of the weights
    /// themselves and of their average, also the buffers.
    ///
    /// # Errors
    /// When the engine has no such region.
    pub fn read(engine: &mut Engine, region: Region) -> Result<Weights> {
        let slots = |engine: &Engine, of: Region, from: Region| -> Vec<_> {
            let slots = engine.plan().layout.region(of).into_iter();
            slots.map(|(name, view)| (from, name.to_string(), view.ty.shape.clone())).collect()
        };
        let mut wanted = slots(engine, Region::Weights, region);
        if matches!(region, Region::Weights | Region::Ema(_)) {
            wanted.extend(slots(engine, Region::Buffers, Region::Buffers));
        }
        let tensors = wanted
            .into_iter()
            .map(|(region, name, shape)| {
                let values = engine.read(region, &name)?;
                Ok((name, shape, values))
            })
            .collect::<Result<_>>()?;
        Ok(Weights { tensors })
    }
}
