//! How weights start: PyTorch's defaults, which diffusers keeps.

use crate::data::counter::{Stream, hash};
use std::collections::HashMap;

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
