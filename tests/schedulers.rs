//! Noise schedules and sampler tables against what diffusers got, without any device.

use cyanea::diffusion::samplers::{Sampler, SamplerTable, apply, table};
use cyanea::diffusion::{NoiseSchedule, SchedulerConfig};
use cyanea::formats::reference_case::ReferenceCase;
use cyanea::formats::verdict::{Precision, judge};
use std::collections::BTreeMap;
use std::path::Path;

/// Replays every fixture of an operation, of which there must be at least `least`.
fn replay(op: &str, least: usize, run: impl Fn(&ReferenceCase, &SchedulerConfig) -> Vec<f32>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut replayed = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.starts_with(op) || !name.ends_with(".safetensors") {
            continue;
        }
        let case = ReferenceCase::read(&path).unwrap();
        let mut settings = case.attributes.clone();
        for ours in ["steps", "eta"] {
            settings.remove(ours);
        }
        let config = SchedulerConfig::from_json(&settings).unwrap();
        let output = case.wanted().next().unwrap().name.to_string();
        let got = BTreeMap::from([(output, run(&case, &config))]);
        let verdict = judge(&case, &got, Precision::Fp32).unwrap();
        assert!(verdict.pass, "{name}: {:?}", verdict.tensors);
        replayed += 1;
    }
    assert!(replayed >= least, "only {replayed} fixtures of {op}");
}

fn steps(case: &ReferenceCase) -> usize {
    case.attributes["steps"].as_u64().unwrap() as usize
}

/// Runs a whole table on given network outputs.
fn sample(case: &ReferenceCase, table: &SamplerTable) -> Vec<f32> {
    let timesteps = case.input_i64("timesteps").unwrap().1;
    assert!(table.times.iter().map(|&t| t as i64).eq(timesteps.iter().copied()));
    let mut x = case.input_f32("x_T").unwrap().1.to_vec();
    let mut last_x0 = vec![f32::NAN; x.len()];
    let epsilons = case.input_f32("epsilons").unwrap().1.chunks_exact(x.len());
    // Fresh noise of every step, where the sampler adds any.
    let noise = if table.takes_noise() { case.input_f32("noise").unwrap().1 } else { &[] };
    for (step, (row, epsilon)) in table.rows.iter().zip(epsilons).enumerate() {
        let fresh =
            if noise.is_empty() { &[] } else { &noise[step * x.len()..(step + 1) * x.len()] };
        apply(row, &mut x, epsilon, &mut last_x0, fresh);
    }
    x
}

#[test]
fn noise_is_added_as_by_diffusers() {
    replay("add_noise", 3, |case, config| {
        let schedule = NoiseSchedule::new(config).unwrap();
        let (shape, x0) = case.input_f32("x0").unwrap();
        let noise = case.input_f32("noise").unwrap().1;
        let timesteps = case.input_i64("timesteps").unwrap().1;
        let image = x0.len() / shape[0];
        (0..x0.len())
            .map(|i| {
                let (of_image, of_noise) = schedule.shares(timesteps[i / image] as usize).unwrap();
                of_image * x0[i] + of_noise * noise[i]
            })
            .collect()
    });
}

#[test]
fn single_ddpm_steps_are_those_of_diffusers() {
    replay("ddpm_step", 6, |case, config| {
        let all = config.num_train_timesteps;
        let table = table(config, Sampler::Ddpm, all, 0.0, config.clip()).unwrap();
        let (shape, x) = case.input_f32("x_t").unwrap();
        let model = case.input_f32("epsilon").unwrap().1;
        let noise = case.input_f32("noise").unwrap().1;
        let timesteps = case.input_i64("timesteps").unwrap().1;
        let (mut x, image) = (x.to_vec(), x.len() / shape[0]);
        let mut x0 = vec![0.0; image];
        for (index, &t) in timesteps.iter().enumerate() {
            let part = index * image..(index + 1) * image;
            let row = &table.rows[all - 1 - t as usize];
            apply(row, &mut x[part.clone()], &model[part.clone()], &mut x0, &noise[part]);
        }
        x
    });
}

#[test]
fn ddim_runs_are_those_of_diffusers() {
    replay("ddim", 6, |case, config| {
        let eta = case.attributes.get("eta").map_or(0.0, |eta| eta.as_f64().unwrap());
        let table = table(config, Sampler::Ddim, steps(case), eta, config.clip()).unwrap();
        sample(case, &table)
    });
}

#[test]
fn dpm_solver_runs_are_those_of_diffusers() {
    replay("dpm_solver_pp_2m", 8, |case, config| {
        let table = table(config, Sampler::DpmSolverPp2m, steps(case), 0.0, None).unwrap();
        sample(case, &table)
    });
}
