//! Averages of weights after the fact, beside those that NVlabs' code makes from the same snapshots
//! (tests/reference/posthoc_ema.py says how the weights drift).

use cyanea::training::power_ema::{Profile, decay, exponent, reconstruction};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    batch_size: f64,
    updates: usize,
    tracked_stds: Vec<f64>,
    std: f64,
    seeds: Vec<u64>,
    drifts: Vec<f64>,
    last_weights: Vec<f64>,
    reconstructions: Vec<Reconstruction>,
}

#[derive(Deserialize)]
struct Reconstruction {
    every: usize,
    until: usize,
    reconstructed: Vec<f64>,
    direct: Vec<f64>,
    coefficients: Option<Vec<f64>>,
}

/// The weights at each update.
fn drifting(mut state: u64, drift: f64, updates: usize) -> Vec<f64> {
    let mut weight = 0.0;
    let next = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        weight += ((state >> 48) as f64 - 32768.0) / 65536.0 + drift;
        weight
    };
    (0..updates).map(next).collect()
}

/// The average of a width at each update.
fn tracked(weights: &[f64], batch: f64, std: f64) -> Vec<f64> {
    let gamma = exponent(std).unwrap();
    let mut average = weights[0];
    let follow = |(update, weight): (usize, &f64)| {
        let kept = decay(gamma, batch, (update + 1) as f64 * batch);
        average += (1.0 - kept) * (weight - average);
        average
    };
    weights.iter().enumerate().map(follow).collect()
}

#[test]
fn a_width_that_was_not_tracked_comes_as_close_as_by_the_reference() {
    let text = std::fs::read_to_string("tests/fixtures/posthoc_ema.json").unwrap();
    let fixture: Fixture = serde_json::from_str(&text).unwrap();
    let batch = fixture.batch_size;
    let weights: Vec<Vec<f64>> = fixture
        .seeds
        .iter()
        .zip(&fixture.drifts)
        .map(|(&seed, &drift)| drifting(seed, drift, fixture.updates))
        .collect();
    let last: Vec<f64> = weights.iter().map(|path| path[fixture.updates - 1]).collect();
    assert_eq!(last, fixture.last_weights);
    assert!(fixture.reconstructions.iter().any(|r| r.until / r.every == 200));
    for Reconstruction { every, until, reconstructed, direct, coefficients } in
        &fixture.reconstructions
    {
        let times = || (*every..=*until).step_by(*every);
        let profile = |std: f64, update: usize| Profile {
            gamma: exponent(std).unwrap(),
            images: update as f64 * batch,
        };
        let stds = &fixture.tracked_stds;
        let profiles: Vec<Profile> =
            times().flat_map(|update| stds.iter().map(move |&std| profile(std, update))).collect();
        let shares = reconstruction(&profiles, profile(fixture.std, *until)).unwrap();
        if let Some(wanted) = coefficients {
            for (got, want) in shares.iter().zip(wanted) {
                assert!((got - want).abs() <= 1e-9, "{got} is not {want}");
            }
        }
        for (path, (theirs, direct)) in weights.iter().zip(reconstructed.iter().zip(direct)) {
            let averages: Vec<Vec<f64>> =
                stds.iter().map(|&std| tracked(path, batch, std)).collect();
            let own = tracked(path, batch, fixture.std)[*until - 1];
            assert!((own - direct).abs() <= 1e-12 * direct.abs(), "{own} is not {direct}");
            let snapshots =
                times().flat_map(|update| averages.iter().map(move |average| average[update - 1]));
            let made: f64 = shares.iter().zip(snapshots).map(|(share, value)| share * value).sum();
            // As close to the directly tracked one as the reference comes, but for rounding.
            let (error, of_theirs) = ((made - direct).abs(), (theirs - direct).abs());
            let rounding = 1e-9 * direct.abs();
            assert!(error <= of_theirs + rounding, "{every}/{until}: {error} over {of_theirs}");
        }
    }
}
