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

/// How far the profile of a reconstruction may be from the wanted one. Beyond, shares of either sign are
/// large, and what they add up to is another average than was asked for.
const FARTHEST: f64 = 0.25;

/// What is kept of the average at an update after which `seen` images have been seen, `batch` of
/// them since the update before (the same paper, eq. 127).
pub fn decay(gamma: f64, batch: f64, seen: f64) -> f64 {
    (1.0 - batch / seen).powf(gamma + 1.0)
}

/// The weight that an average gives to what was seen: (γ + 1)/T·(t/T)^γ up to the T-th image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    pub gamma: f64,
    /// Images seen at its end, T.
    pub images: f64,
}

impl Profile {
    /// ∫ of the product of two profiles (the same paper, eq. 151), which is what a sum of squares of
    /// differences is made of.
    fn overlap(self, other: Profile) -> f64 {
        let (a, b) = (self.gamma, other.gamma);
        let ratio = self.images / other.images;
        let power = if ratio < 1.0 { b } else { -a };
        (a + 1.0) * (b + 1.0) * ratio.powf(power) / ((a + b + 1.0) * self.images.max(other.images))
    }
}

/// Shares of the profiles whose sum comes closest to `wanted` by least squares, scaled so that they add
/// up to 1 (the same paper, algorithm 3).
///
/// # Errors
/// No profiles, those of which one is a sum of others, such as the same one twice, and those that no sum
/// of comes near what is wanted.
pub fn reconstruction(profiles: &[Profile], wanted: Profile) -> Result<Vec<f64>> {
    let count = profiles.len();
    let mut rows: Vec<Vec<f64>> = profiles
        .iter()
        .map(|a| profiles.iter().chain([&wanted]).map(|b| a.overlap(*b)).collect())
        .collect();
    // Gaussian elimination with partial pivoting; the last column is the right-hand side.
    for column in 0..count {
        let size = |row: &usize| rows[*row][column].abs();
        let pivot = (column..count).max_by(|a, b| size(a).total_cmp(&size(b))).unwrap_or(column);
        rows.swap(column, pivot);
        let (above, below) = rows.split_at_mut(column + 1);
        let first = &above[column];
        for row in below {
            let factor = row[column] / first[column];
            for (value, of_first) in row.iter_mut().zip(first).skip(column) {
                *value -= factor * of_first;
            }
        }
    }
    let mut shares = vec![0.0; count];
    for row in (0..count).rev() {
        let known: f64 = (row + 1..count).map(|k| rows[row][k] * shares[k]).sum();
        shares[row] = (rows[row][count] - known) / rows[row][row];
    }
    let sum: f64 = shares.iter().sum();
    if !(sum.is_finite() && sum != 0.0) {
        return Err(Error::invalid(
            "the snapshots can't be told apart, so no average can be made from them; are some of them \
             copies of others?",
        ));
    }
    shares.iter_mut().for_each(|share| *share /= sum);
    let error = distance(profiles, &shares, wanted);
    if error.is_nan() || error > FARTHEST {
        return Err(Error::invalid(format!(
            "such an average is out of reach of these snapshots: what comes closest to its profile is \
             {:.0} % off; take a width nearer to those that were tracked, or more snapshots",
            100.0 * error
        )));
    }
    Ok(shares)
}

/// How far a sum of profiles is from the wanted one, as a share of that: root of the ratio of squares.
fn distance(profiles: &[Profile], shares: &[f64], wanted: Profile) -> f64 {
    let all = || profiles.iter().zip(shares);
    let crossed: f64 = all().map(|(p, s)| s * p.overlap(wanted)).sum();
    let squared: f64 =
        all().flat_map(|(a, s)| all().map(move |(b, t)| s * t * a.overlap(*b))).sum();
    let whole = wanted.overlap(wanted);
    // Rounding can take the square of what is nearly 0 below it.
    ((squared - 2.0 * crossed + whole) / whole).max(0.0).sqrt()
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

    /// What is tracked is among what can be made, and a width between two tracked ones is nearly so.
    #[test]
    fn reconstructions_come_from_what_was_tracked() {
        let snapshots: Vec<Profile> = (1..=20)
            .flat_map(|t| [0.05, 0.10].map(|std| (exponent(std).unwrap(), f64::from(t) * 500.0)))
            .map(|(gamma, images)| Profile { gamma, images })
            .collect();
        let shares = reconstruction(&snapshots, snapshots[39]).unwrap();
        for (index, share) in shares.iter().enumerate() {
            let want = if index == 39 { 1.0 } else { 0.0 };
            assert!((share - want).abs() <= 1e-6, "{index}: {share}");
        }
        let between = Profile { gamma: exponent(0.075).unwrap(), images: 1e4 };
        let shares = reconstruction(&snapshots, between).unwrap();
        let error = distance(&snapshots, &shares, between);
        assert!(error <= 1e-2, "{error}");
        let narrow = Profile { gamma: exponent(0.01).unwrap(), images: 1e4 };
        let said = reconstruction(&snapshots, narrow).unwrap_err().to_string();
        assert!(said.contains("out of reach") && said.contains("30 % off"), "{said}");
        let twice = [between, between];
        let said = reconstruction(&twice, between).unwrap_err().to_string();
        assert!(said.contains("copies"), "{said}");
        assert!(reconstruction(&[], between).is_err());
    }

    #[test]
    fn the_first_update_takes_everything() {
        assert_eq!(decay(6.9, 16.0, 16.0), 0.0);
        assert!((decay(1.0, 1.0, 4.0) - 0.5625).abs() <= 1e-12);
    }
}
