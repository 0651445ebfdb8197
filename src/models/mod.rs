//! Networks: their settings, and the graphs they become.

pub mod json_config;
pub mod unet_config;

pub use unet_config::UnetConfig;

use crate::device::TensorType;
use crate::error::Result;
use crate::graph::{Graph, Rate, Region, TensorId};

/// A network that predicts noise (or x₀, or v) from a noisy input and its timestep.
pub trait Network: Send + Sync {
    /// Channels of input and output.
    fn channels(&self) -> [usize; 2];

    /// Whether the network takes inputs of this height and width.
    ///
    /// # Errors
    /// Says which sizes it takes.
    fn check_size(&self, height: usize, width: usize) -> Result<()>;

    /// Appends the network: `x` [B, H, W, C_in], `timesteps` [B], or [1] for all samples alike;
    /// gives [B, H, W, C_out].
    ///
    /// # Errors
    /// Shapes that the network can't take.
    fn build(&self, g: &mut Graph, x: TensorId, timesteps: TensorId) -> Result<TensorId>;
}

/// Names and shapes of a network's trained parameters, in order of use.
///
/// # Errors
/// What [`Network::build`] refuses.
pub fn parameters(network: &dyn Network, size: [usize; 2]) -> Result<Vec<(String, Vec<usize>)>> {
    let mut g = Graph::new();
    let shape = [1, size[0], size[1], network.channels()[0]];
    let x = g.input("x", TensorType::f32(shape))?;
    let timesteps = g.slot(Region::State, "timesteps", TensorType::f32([1]), Rate::Schedule)?;
    network.build(&mut g, x, timesteps)?;
    let weights = g.slots.into_iter().filter(|slot| slot.region == Region::Weights);
    Ok(weights.map(|slot| (slot.name, slot.ty.shape)).collect())
}
