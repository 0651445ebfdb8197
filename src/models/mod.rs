//! Networks: their settings, and the graphs they become.

pub mod ddpm_unet;
pub mod edm2_config;
pub mod edm2_unet;
pub mod json_config;
pub mod layers;
pub mod unet_config;

pub use ddpm_unet::DdpmUnet;
pub use edm2_config::Edm2Config;
pub use edm2_unet::Edm2Unet;
pub use unet_config::UnetConfig;

use crate::device::TensorType;
use crate::error::{Error, Result};
use crate::graph::{Engine, Graph, Rate, Region, TensorId};

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
    let mut g = Graph::new();
    let shape = [1, size[0], size[1], network.channels()[0]];
    let x = g.input("x", TensorType::f32(shape))?;
    let timesteps = g.slot(Region::State, "timesteps", TensorType::f32([1]), Rate::Schedule)?;
    network.build(&mut g, x, timesteps)?;
    let weights = g.slots.into_iter().filter(|slot| slot.region == Region::Weights);
    Ok(weights.map(|slot| (slot.name, slot.ty.shape)).collect())
}

/// A network's weights: names, shapes and values in PyTorch's layout, in order of use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    pub tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl Weights {
    /// Writes all weights into an engine's slots.
    ///
    /// # Errors
    /// A name or size that the engine's network does not have.
    pub fn write(&self, engine: &mut Engine) -> Result<()> {
        let wanted = engine.plan().layout.region(Region::Weights).len();
        if wanted != self.tensors.len() {
            return Err(Error::operation(
                "weights",
                format!("the network has {wanted} parameters, {} were given", self.tensors.len()),
            ));
        }
        for (name, _, values) in &self.tensors {
            engine.write(Region::Weights, name, values)?;
        }
        Ok(())
    }

    /// Reads one value for each weight from a region that mirrors the weights.
    ///
    /// # Errors
    /// When the engine has no such region.
    pub fn read(engine: &mut Engine, region: Region) -> Result<Weights> {
        let slots: Vec<(String, Vec<usize>)> = engine
            .plan()
            .layout
            .region(Region::Weights)
            .into_iter()
            .map(|(name, view)| (name.to_string(), view.ty.shape.clone()))
            .collect();
        let tensors = slots
            .into_iter()
            .map(|(name, shape)| {
                let values = engine.read(region, &name)?;
                Ok((name, shape, values))
            })
            .collect::<Result<_>>()?;
        Ok(Weights { tensors })
    }
}
