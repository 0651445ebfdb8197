//! How weights start: PyTorch's defaults, which diffusers keeps; of networks that normalise their
//! weights, standard normal (Karras et al. 2024, arXiv:2312.02696, appendix B.3).

use crate::data::counter::{Stream, hash};
use crate::error::Result;
use crate::models::{self, Network, Weights};
use crate::ops::noise::{normal, philox};
use std::collections::HashMap;
use std::f32::consts::TAU;

/// Stream of a network's normal weights.
const INITIAL: u32 = philox::purpose("training.initial");

/// Weights and buffers that a run begins with.
///
/// # Errors
/// Sizes that the network can't take.
pub fn initial(network: &dyn Network, size: [usize; 2], seed: u64) -> Result<Weights> {
    let shapes = models::saved(network, size)?;
    let values = match network.unit_weights() {
        true => shapes.iter().map(|(name, shape)| unit_weight(name, shape, seed)).collect(),
        false => initial_weights(&shapes, seed),
    };
    let tensors = shapes.into_iter().zip(values);
    Ok(Weights { tensors: tensors.map(|((name, shape), v)| (name, shape, v)).collect() })
}

/// Weights N(0, 1), gains (scalars) 0; buffers of Fourier features: frequencies 2π·N(0, 1), phases
/// 2π·U(0, 1).
fn unit_weight(name: &str, shape: &[usize], seed: u64) -> Vec<f32> {
    let elements: usize = shape.iter().product();
    if shape.is_empty() {
        return vec![0.0; elements];
    }
    if name.ends_with("phases") {
        let mut stream = Stream::new(&[seed, name_hash(name)]);
        return (0..elements).map(|_| stream.range(0.0, TAU)).collect();
    }
    let key = hash(&[seed, name_hash(name)]);
    let key = [key as u32, (key >> 32) as u32];
    let stream = normal::Stream { key, purpose: INITIAL, step: 0, sample: 0 };
    let scale = if name.ends_with("freqs") { TAU } else { 1.0 };
    let quads = (0..elements.div_ceil(4) as u32).flat_map(|quad| stream.quad(quad));
    quads.take(elements).map(|value| scale * value).collect()
}

/// Initial values of a network's parameters, in the given order.
///
/// Convolutions and linear layers: weight and bias uniform in ±1/√fan_in (PyTorch's
/// `kaiming_uniform_` with a = √5). Normalisations: weight 1, bias 0. Each tensor has a stream of
/// its own, made from the seed and its name, so that a tensor's values do not depend on what else
/// the network has.
pub fn initial_weights(parameters: &[(String, Vec<usize>)], seed: u64) -> Vec<Vec<f32>> {
    let shapes: HashMap<&str, &[usize]> =
        parameters.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    parameters
        .iter()
        .map(|(name, shape)| {
            let elements = shape.iter().product();
            let weight = match name.strip_suffix("bias") {
                Some(module) => shapes.get(format!("{module}weight").as_str()).copied(),
                None => Some(shape.as_slice()),
            };
            match weight {
                Some([_, rest @ ..]) if !rest.is_empty() => {
                    let bound = 1.0 / (rest.iter().product::<usize>() as f32).sqrt();
                    let mut stream = Stream::new(&[seed, name_hash(name)]);
                    (0..elements).map(|_| stream.range(-bound, bound)).collect()
                }
                _ if name.ends_with("bias") => vec![0.0; elements],
                _ => vec![1.0; elements],
            }
        })
        .collect()
}

fn name_hash(name: &str) -> u64 {
    hash(&name.bytes().map(u64::from).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalised_weights_start_standard_normal_and_gains_at_zero() {
        let weight = unit_weight("unet.emb_noise.weight", &[40, 25], 1);
        let mean = weight.iter().sum::<f32>() / 1000.0;
        let variance = weight.iter().map(|w| w * w).sum::<f32>() / 1000.0;
        assert!(mean.abs() <= 0.1 && (variance - 1.0).abs() <= 0.15, "{mean} {variance}");
        assert_eq!(unit_weight("unet.out_gain", &[], 1), [0.0]);
        let phases = unit_weight("unet.emb_fourier.phases", &[64], 1);
        assert!(phases.iter().all(|p| (0.0..TAU).contains(p)));
        let freqs = unit_weight("unet.emb_fourier.freqs", &[1000], 1);
        let variance = freqs.iter().map(|f| f * f).sum::<f32>() / 1000.0 / (TAU * TAU);
        assert!((variance - 1.0).abs() <= 0.15, "{variance}");
        assert_eq!(weight, unit_weight("unet.emb_noise.weight", &[40, 25], 1));
        assert_ne!(weight, unit_weight("unet.emb_noise.weight", &[40, 25], 2));
    }

    #[test]
    fn layers_and_norms_start_as_in_pytorch() {
        let parameters = vec![
            ("conv.weight".to_string(), vec![8, 4, 3, 3]),
            ("conv.bias".to_string(), vec![8]),
            ("norm.weight".to_string(), vec![8]),
            ("norm.bias".to_string(), vec![8]),
        ];
        let values = initial_weights(&parameters, 1);
        let bound = 1.0 / 6.0;
        assert!(values[0].iter().chain(&values[1]).all(|v| v.abs() <= bound));
        let spread: f32 = values[0].iter().map(|v| v * v).sum::<f32>() / values[0].len() as f32;
        assert!((spread - bound * bound / 3.0).abs() <= 0.15 * bound * bound / 3.0);
        assert!(values[2].iter().all(|&v| v == 1.0) && values[3].iter().all(|&v| v == 0.0));
        assert_eq!(values, initial_weights(&parameters, 1));
        assert_ne!(values, initial_weights(&parameters, 2));
    }
}
