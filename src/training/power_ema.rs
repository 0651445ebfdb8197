//! Power-function averages of weights (Karras et al. 2024, arXiv:2312.02696, section 3.1): an average
//! whose decay follows the length of the training, so that its width is a share of it.

use crate::error::{Error, Result};

/// Widths that have an exponent: the relative standard deviation falls from 1/√12 at γ = 0.
const WIDEST: f64 = 0.288_675_134_594_812_9;

/// The exponent γ of an average whose standard deviation is the share `std` of the training
/// (the same paper, eq. 126 and algorithm 2): the largest real root of
/// γ³ + 7γ² + (16 − std⁻²)γ + 12 − std⁻² = 0.
///
/// # Errors
/// A width that no γ ≥ 0 has.
pub fn exponent(std: f64) -> Result<f64> {
    if !(std > 0.0 && std < WIDEST) {
        return Err(Error::invalid(format!(
            "an average of width {std} can't be; a share of the training above 0 and below \
             {WIDEST:.4} is needed"
        )));
    }
    // The width falls with γ; bisection leaves no doubt about which root it is.
    let width = |gamma: f64| ((gamma + 1.0) / ((gamma + 2.0).powi(2) * (gamma + 3.0))).sqrt();
    let (mut low, mut high) = (0.0, 1.0 / std);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if width(middle) > std {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(0.5 * (low + high))
}

/// What is kept of the average at an update after which `seen` images have been seen, `batch` of
/// them since the update before (the same paper, eq. 127).
pub fn decay(gamma: f64, batch: f64, seen: f64) -> f64 {
    (1.0 - batch / seen).powf(gamma + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_of_the_papers_widths() {
        assert!((exponent(0.05).unwrap() - 16.9722).abs() <= 1e-4);
        assert!((exponent(0.10).unwrap() - 6.9372).abs() <= 1e-4);
        for std in [0.001, 0.02, 0.2, 0.28] {
            let gamma = exponent(std).unwrap();
            let root = gamma.powi(3) + 7.0 * gamma.powi(2) + (16.0 - std.powi(-2)) * gamma + 12.0
                - std.powi(-2);
            assert!(root.abs() <= 1e-6 * std.powi(-2) * (1.0 + gamma), "{std}: {root}");
        }
    }

    #[test]
    fn widths_out_of_reach_are_refused() {
        for std in [0.0, -0.1, 0.29, f64::NAN] {
            let said = exponent(std).unwrap_err().to_string();
            assert!(said.contains("0.2887"), "{said}");
        }
    }

    #[test]
    fn the_first_update_takes_everything() {
        assert_eq!(decay(6.9, 16.0, 16.0), 0.0);
        assert!((decay(1.0, 1.0, 4.0) - 0.5625).abs() <= 1e-12);
    }
}
