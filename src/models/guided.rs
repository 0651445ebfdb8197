//! Guidance: a network's prediction, pushed away from that of a weaker one.
//!
//! With D the network's prediction and D₀ the guide's, what is used is D₀ + g·(D − D₀). The guide is the
//! network itself without a label (classifier-free guidance, Ho and Salimans 2022, arXiv:2207.12598), or
//! a second network that is smaller or less trained (Karras et al. 2024, arXiv:2406.02507). Predictions of
//! noise, image and v may all be guided so: at one noise level each is a linear function of the others.

use super::{Given, Network, Weights};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::ops::combine::Combine;

/// Scope of the guide's parameters.
const SCOPE: &str = "guide";

/// See the module.
pub struct Guided {
    network: Box<dyn Network>,
    /// `None`: the network itself, without its label.
    guide: Option<Box<dyn Network>>,
    amount: f32,
}

impl Guided {
    /// # Errors
    /// An amount that is not finite, a guide for other images or another process, and no guide at all
    /// where the network knows no labels.
    pub fn new(
        network: Box<dyn Network>,
        guide: Option<Box<dyn Network>>,
        amount: f64,
    ) -> Result<Guided> {
        if !amount.is_finite() {
            return Err(Error::invalid(format!("guidance is {amount}; a finite number is needed")));
        }
        match &guide {
            None if network.classes() == 0 => {
                return Err(Error::invalid(
                    "guidance needs a model that was trained with labels, or a second model as guide",
                ));
            }
            Some(guide) if guide.channels() != network.channels() => {
                return Err(Error::invalid(format!(
                    "the guide's images have {} channels, the model's {}; a guide for the same images \
                     is needed",
                    guide.channels()[0],
                    network.channels()[0]
                )));
            }
            Some(guide) if ![0, network.classes()].contains(&guide.classes()) => {
                return Err(Error::invalid(format!(
                    "the guide knows {} classes, the model {}; a guide with as many or without labels is \
                     needed",
                    guide.classes(),
                    network.classes()
                )));
            }
            Some(guide) if guide.tables() != network.tables() => {
                return Err(Error::invalid(
                    "the guide is another kind of network or was trained for another process; a guide of \
                     the same kind, timesteps, betas and prediction is needed",
                ));
            }
            _ => {}
        }
        Ok(Guided { network, guide, amount: amount as f32 })
    }

    /// The weights of both, as this network names them.
    pub fn weights(network: Weights, guide: Option<Weights>) -> Weights {
        let named = |(name, shape, values)| (format!("{SCOPE}.{name}"), shape, values);
        let guide = guide.into_iter().flat_map(|weights| weights.tensors).map(named);
        Weights { tensors: network.tensors.into_iter().chain(guide).collect() }
    }
}

impl Network for Guided {
    fn channels(&self) -> [usize; 2] {
        self.network.channels()
    }

    fn check_size(&self, height: usize, width: usize) -> Result<()> {
        self.network.check_size(height, width)?;
        self.guide.as_ref().map_or(Ok(()), |guide| guide.check_size(height, width))
    }

    fn classes(&self) -> usize {
        self.network.classes()
    }

    fn build(&self, g: &mut Graph, x: TensorId, given: Given) -> Result<TensorId> {
        let strong = self.network.build(g, x, given)?;
        let weak = match &self.guide {
            None => self.network.build(g, x, Given { labels: None, ..given })?,
            Some(guide) => {
                let labels = given.labels.filter(|_| guide.classes() > 0);
                g.scoped(SCOPE, |g| guide.build(g, x, Given { labels, ..given }))?
            }
        };
        g.one(Combine::Sum([self.amount, 1.0 - self.amount]), &[strong, weak])
    }

    fn tables(&self) -> Vec<(&'static str, Vec<f32>)> {
        self.network.tables()
    }

    fn unit_weights(&self) -> bool {
        self.network.unit_weights()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{Edm2Config, Edm2Unet};

    #[test]
    fn a_guide_knows_the_same_classes_or_none() {
        let network = |label_dim| {
            let config = Edm2Config { label_dim, ..Edm2Config::default() };
            Box::new(Edm2Unet::new(config).unwrap())
        };
        assert!(Guided::new(network(2), Some(network(2)), 2.0).is_ok());
        assert!(Guided::new(network(2), Some(network(0)), 2.0).is_ok());
        for (own, other) in [(2, 3), (0, 2)] {
            let said = Guided::new(network(own), Some(network(other)), 2.0).err().unwrap();
            assert!(said.to_string().contains(&format!("knows {other} classes")), "{said}");
        }
    }
}
