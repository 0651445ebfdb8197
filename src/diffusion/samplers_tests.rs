use super::*;
use crate::diffusion::scheduler_config::BetaSchedule;
use crate::diffusion::scheduler_config::Prediction::{Epsilon, Sample, Velocity};
use approx::assert_relative_eq;

fn config() -> SchedulerConfig {
    SchedulerConfig::default()
}

/// Runs a table on stand-ins for network and noise: functions of (t, x) and of the row's number.
fn run(
    table: &SamplerTable,
    mut x: Vec<f32>,
    model: impl Fn(usize, usize, f32) -> f32,
    noise: impl Fn(usize, usize) -> f32,
) -> Vec<f32> {
    // Whatever the history holds at first must not matter.
    let mut last_x0 = vec![f32::NAN; x.len()];
    for (row, &t) in table.times.iter().enumerate() {
        let t = t as usize;
        let m: Vec<f32> = x.iter().enumerate().map(|(i, &x)| model(t, i, x)).collect();
        let z: Vec<f32> = (0..x.len()).map(|i| noise(row, i)).collect();
        apply(&table.rows[row], &mut x, &m, &mut last_x0, &z);
    }
    x
}

/// The run of diffusers' scheduler tests: 768 evenly spaced values, network `x·t/(t+1)`.
/// Returns sum and mean of the absolute values.
fn golden(config: &SchedulerConfig, sampler: Sampler, clip: Option<f32>) -> (f64, f64) {
    let table = table(config, sampler, 10, 0.0, clip).unwrap();
    let x = (0..768).map(|i| i as f32 / 768.0).collect();
    let x = run(&table, x, |t, _, x| x * t as f32 / (t + 1) as f32, |_, _| f32::NAN);
    let sum: f64 = x.iter().map(|&x| f64::from(x.abs())).sum();
    (sum, sum / 768.0)
}

// tests/schedulers/test_scheduler_{ddim,dpm_multi}.py of diffusers 58eb52c.
#[test]
fn diffusers_own_scheduler_tests_pass() {
    let (sum, mean) = golden(&config(), Sampler::Ddim, Some(1.0));
    assert_relative_eq!(sum, 172.0067, epsilon = 1e-3);
    assert_relative_eq!(mean, 0.223967, epsilon = 1e-6);
    let velocity = SchedulerConfig { prediction_type: Velocity, ..config() };
    assert_relative_eq!(golden(&velocity, Sampler::Ddim, Some(1.0)).0, 52.5302, epsilon = 1e-3);
    let (_, mean) = golden(&config(), Sampler::DpmSolverPp2m, None);
    assert_relative_eq!(mean, 0.24090, epsilon = 1e-4);
    let ends_above = SchedulerConfig {
        final_sigmas_type: FinalSigma::SigmaMin,
        lower_order_final: false,
        ..config()
    };
    let (_, mean) = golden(&ends_above, Sampler::DpmSolverPp2m, None);
    assert_relative_eq!(mean, 0.3301, epsilon = 1e-4);
}

struct Case {
    sampler: Sampler,
    config: SchedulerConfig,
    eta: f64,
    clip: Option<f32>,
    timesteps: &'static [usize],
    /// Sum of absolute values of the result, and its elements 0, 1, 50 and 95.
    sum: f64,
    values: [f64; 4],
}

/// What diffusers 0.42 gives for x_i = 1.5·sin(0.7i), i < 96, network
/// 0.5·(sin(1.3i + t/100) + 0.1) + 0.4·x and noise cos(2.1i + 0.9·row), all rounded to float32.
fn cases() -> Vec<Case> {
    let cosine = SchedulerConfig { beta_schedule: BetaSchedule::Cosine, ..config() };
    let trailing = SchedulerConfig { timestep_spacing: Some(Spacing::Trailing), ..config() };
    let linspace = SchedulerConfig { timestep_spacing: Some(Spacing::Linspace), ..config() };
    let case = |sampler, config, eta, clip, timesteps, sum, values| Case {
        sampler,
        config,
        eta,
        clip,
        timesteps,
        sum,
        values,
    };
    vec![
        case(
            Sampler::Ddpm,
            config(),
            0.0,
            Some(1.0),
            &[852, 710, 568, 426, 284, 142, 0],
            62.07789788581431,
            [-0.6151440143585205, -0.4688008427619934, 0.8905540704727173, 0.9508259892463684],
        ),
        case(
            Sampler::Ddpm,
            SchedulerConfig {
                variance_type: Some(VarianceType::FixedLarge),
                prediction_type: Velocity,
                timestep_spacing: Some(Spacing::Linspace),
                ..cosine.clone()
            },
            0.0,
            Some(1.0),
            &[999, 874, 749, 624, 500, 375, 250, 125, 0],
            18.545289121801034,
            [-0.19598621129989624, 0.2719816565513611, -0.2074643075466156, -0.3621329963207245],
        ),
        case(
            Sampler::Ddpm,
            SchedulerConfig {
                prediction_type: Sample,
                beta_schedule: BetaSchedule::ScaledLinear,
                beta_start: 0.0015,
                beta_end: 0.0195,
                ..trailing.clone()
            },
            0.0,
            None,
            &[999, 832, 666, 499, 332, 166],
            31.74382160604,
            [0.2249930202960968, 0.06755837053060532, -0.07349811494350433, 0.09038165211677551],
        ),
        case(
            Sampler::Ddim,
            SchedulerConfig { steps_offset: 1, set_alpha_to_one: false, ..config() },
            0.6,
            Some(1.0),
            &[876, 751, 626, 501, 376, 251, 126, 1],
            40.90898337913677,
            [-0.6772775650024414, 0.16218534111976624, 0.6458222270011902, 0.20242121815681458],
        ),
        case(
            Sampler::Ddim,
            SchedulerConfig { prediction_type: Velocity, ..trailing.clone() },
            1.0,
            Some(0.8),
            &[999, 856, 713, 570, 428, 285, 142],
            32.15307647967711,
            [-0.6239548325538635, 0.496444433927536, 0.012549655511975288, -0.37375500798225403],
        ),
        case(
            Sampler::Ddim,
            SchedulerConfig { prediction_type: Sample, ..linspace },
            0.0,
            None,
            &[999, 916, 832, 749, 666, 583, 500, 416, 333, 250, 166, 83, 0],
            38.7346514435485,
            [0.24746234714984894, 0.8139088153839111, 0.38496866822242737, -0.5990062355995178],
        ),
        case(
            Sampler::DpmSolverPp2m,
            SchedulerConfig { prediction_type: Epsilon, ..config() },
            0.0,
            None,
            &[999, 908, 817, 727, 636, 545, 454, 363, 272, 182, 91],
            1506.0477701723576,
            [-3.5733604431152344, 19.63788414001465, -5.479836463928223, -17.378135681152344],
        ),
        case(
            Sampler::DpmSolverPp2m,
            SchedulerConfig {
                prediction_type: Velocity,
                timestep_spacing: Some(Spacing::Leading),
                lower_order_final: false,
                ..config()
            },
            0.0,
            None,
            &[
                940, 893, 846, 799, 752, 705, 658, 611, 564, 517, 470, 423, 376, 329, 282, 235,
                188, 141, 94, 47,
            ],
            49.7742077074945,
            [-0.2513401508331299, 0.36616846919059753, -0.33420345187187195, -0.31685158610343933],
        ),
        case(
            Sampler::DpmSolverPp2m,
            SchedulerConfig {
                prediction_type: Sample,
                timestep_spacing: Some(Spacing::Trailing),
                final_sigmas_type: FinalSigma::SigmaMin,
                ..cosine
            },
            0.0,
            None,
            &[999, 916, 832, 749, 666, 582, 499, 416, 332, 249, 166, 82],
            39.419960737228394,
            [0.609840452671051, 0.6593939661979675, -0.09932053089141846, -0.5813326835632324],
        ),
        case(
            Sampler::DpmSolverPp2m,
            SchedulerConfig { solver_order: 1, euler_at_final: true, ..config() },
            0.0,
            None,
            &[999, 799, 599, 400, 200],
            2990.2499434947968,
            [4.275669097900391, 45.8131103515625, -12.964125633239746, -44.103797912597656],
        ),
    ]
}

#[test]
fn every_sampler_follows_diffusers() {
    for (number, case) in cases().into_iter().enumerate() {
        let steps = case.timesteps.len();
        let table = table(&case.config, case.sampler, steps, case.eta, case.clip).unwrap();
        let times: Vec<usize> = table.times.iter().map(|&t| t as usize).collect();
        assert_eq!(times, case.timesteps, "case {number}");
        let f = |value: f64| value as f32;
        let x = (0..96).map(|i| f((f64::from(i) * 0.7).sin() * 1.5)).collect();
        let x = run(
            &table,
            x,
            |t, i, x| f((i as f64 * 1.3 + 0.01 * t as f64).sin() + 0.1) * 0.5 + 0.4 * x,
            |row, i| f((i as f64 * 2.1 + 0.9 * row as f64).cos()),
        );
        let sum: f64 = x.iter().map(|&x| f64::from(x.abs())).sum();
        let error = (sum - case.sum).abs() / case.sum;
        assert!(error <= 1e-5, "case {number}: sum {sum}, want {}, off by {error:e}", case.sum);
        let scale = case.sum / 96.0;
        for (index, want) in [0, 1, 50, 95].into_iter().zip(case.values) {
            let error = (f64::from(x[index]) - want).abs();
            assert!(error <= 1e-5 * (want.abs() + scale), "case {number}: {} {want}", x[index]);
        }
    }
}

#[test]
fn timesteps_are_spread_as_by_numpy() {
    let list = |trained, steps, sampler, spacing| {
        let config = SchedulerConfig {
            num_train_timesteps: trained,
            timestep_spacing: Some(spacing),
            ..config()
        };
        timesteps(&config, sampler, steps).unwrap()
    };
    use {Sampler as A, Spacing as S};
    assert_eq!(list(1000, 3, A::Ddim, S::Linspace), [999, 500, 0]);
    assert_eq!(list(1000, 3, A::DpmSolverPp2m, S::Leading), [750, 500, 250]);
    assert_eq!(list(1000, 3, A::Ddpm, S::Trailing), [999, 666, 332]);
    assert_eq!(list(1000, 1, A::Ddim, S::Linspace), [0]);
    assert_eq!(list(1000, 1, A::DpmSolverPp2m, S::Linspace), [999]);
    assert_eq!(list(50, 7, A::Ddim, S::Linspace), [49, 41, 33, 24, 16, 8, 0]);
    for (steps, spacing, sampler, sum) in [
        (32, S::Leading, A::Ddim, 15376),
        (32, S::Linspace, A::Ddim, 15984),
        (32, S::Trailing, A::Ddim, 16468),
        (32, S::Leading, A::DpmSolverPp2m, 15840),
        (32, S::Linspace, A::DpmSolverPp2m, 16484),
        (999, S::Trailing, A::Ddim, 499001),
        (999, S::Linspace, A::Ddim, 499001),
    ] {
        let list = list(1000, steps, sampler, spacing);
        assert_eq!((list.len(), list.iter().sum::<usize>()), (steps, sum), "{steps} {spacing:?}");
    }
}

#[test]
fn noise_is_taken_where_the_sampler_has_some() {
    let noise = |sampler, eta| table(&config(), sampler, 10, eta, Some(1.0)).unwrap().takes_noise();
    assert!(noise(Sampler::Ddpm, 0.0) && noise(Sampler::Ddim, 0.5));
    assert!(!noise(Sampler::Ddim, 0.0) && !noise(Sampler::DpmSolverPp2m, 0.0));
    let ddpm = table(&config(), Sampler::Ddpm, 1000, 0.0, Some(1.0)).unwrap();
    assert_eq!(ddpm.rows.last().unwrap().sigma, 0.0, "no noise at timestep 0");
    assert!(ddpm.rows[998].sigma > 0.0);
    assert_eq!((ddpm.len(), ddpm.is_empty()), (1000, false));
    let solver = table(&config(), Sampler::DpmSolverPp2m, 10, 0.0, None).unwrap();
    assert!(solver.takes_history() && !ddpm.takes_history());
    assert_eq!(solver.rows[0].history, 0.0, "nothing is known in the first row");
}

#[test]
fn clipping_holds_the_predicted_image_in_its_range() {
    let row = Row {
        x0_from_x: 10.0,
        clip: 0.5,
        x: 1.0,
        eps_from_output: 1.0,
        eps: 2.0,
        x0: 4.0,
        history: 8.0,
        sigma: 16.0,
        next_x0: 1.0,
        ..Row::default()
    };
    let (mut x, mut history) = ([1.0, -1.0, 0.01], [1.0, 2.0, 3.0]);
    apply(&row, &mut x, &[0.25, 0.5, 0.0], &mut history, &[0.5, 0.25, 0.0]);
    assert_relative_eq!(history[..], [0.5, -0.5, 0.1][..], max_relative = 1e-6);
    assert_relative_eq!(
        x[..],
        [1.0 + 0.5 + 2.0 + 8.0 + 8.0, -1.0 + 1.0 - 2.0 + 16.0 + 4.0, 0.01 + 0.4 + 24.0][..],
        max_relative = 1e-6
    );
}

#[test]
fn what_can_not_be_sampled_is_said() {
    let said = |config: &SchedulerConfig, sampler, steps, eta, clip| {
        table(config, sampler, steps, eta, clip).unwrap_err().to_string()
    };
    assert!(said(&config(), Sampler::Ddim, 0, 0.0, None).contains("0 sampling steps"));
    assert!(said(&config(), Sampler::Ddim, 1001, 0.0, None).contains("from 1 to 1000"));
    assert!(said(&config(), Sampler::Ddim, 10, 1.5, None).contains("eta is 1.5"));
    assert!(said(&config(), Sampler::Ddim, 10, f64::NAN, None).contains("eta is NaN"));
    assert!(said(&config(), Sampler::Ddim, 10, 0.0, Some(0.0)).contains("clip range is 0"));
    assert!(said(&config(), Sampler::Ddim, 10, 0.0, Some(f32::NAN)).contains("clip range is NaN"));
    let offset = SchedulerConfig { steps_offset: 1, ..config() };
    let message = said(&offset, Sampler::Ddim, 1000, 0.0, None);
    assert!(message.contains("timestep 1000"), "{message}");
    let message = said(&config(), Sampler::DpmSolverPp2m, 1000, 0.0, None);
    assert!(message.contains("different timesteps"), "{message}");
    let no_noise = SchedulerConfig { beta_start: 1e-12, beta_end: 1e-11, ..config() };
    let message = said(&no_noise, Sampler::Ddpm, 10, 0.0, None);
    assert!(message.contains("ᾱ is 1e0"), "{message}");
    let all_noise = SchedulerConfig { beta_start: 0.9, beta_end: 0.95, ..config() };
    for sampler in [Sampler::Ddpm, Sampler::Ddim, Sampler::DpmSolverPp2m] {
        let message = said(&all_noise, sampler, 10, 0.0, None);
        assert!(message.contains(sampler.name()) && message.contains("ᾱ is 0e0"), "{message}");
    }
    assert!("euler".parse::<Sampler>().unwrap_err().to_string().contains("dpmpp-2m"));
    for name in Sampler::NAMES {
        assert_eq!(name.parse::<Sampler>().unwrap().name(), name);
    }
}
