//! The step state: everything that changes from step to step, in 16 words of device memory, so that
//! no launch argument does. Type `u32[16]`; on the CPU a tensor of bit patterns.
//!
//! The host writes it before a step (64 bytes); [`SamplerUpdate`](super::sampler_update::SamplerUpdate)
//! counts rows on the device, where steps follow one another without the host. Words not listed are reserved
//! and 0.

use crate::device::TensorType;

/// Words of the state.
pub const WORDS: usize = 16;

/// u32: optimizer steps begun before this one; counter of training noise.
pub const STEP: usize = 0;
/// u32: row of the tables of a sampling run: network evaluations done.
pub const ROW: usize = 1;
/// f32: learning rate of this step.
pub const LEARNING_RATE: usize = 2;
/// f32: 1 − β₁ᵗ, t the optimizer steps taken including this one (skipped ones not counted).
pub const BIAS1: usize = 3;
/// f32: 1 − β₂ᵗ.
pub const BIAS2: usize = 4;
/// f32: factor that the loss was multiplied by; gradients are divided by it.
pub const LOSS_SCALE: usize = 5;
/// u32: lower half of the run's seed.
pub const SEED_LOW: usize = 6;
/// u32: upper half of the run's seed.
pub const SEED_HIGH: usize = 7;
/// u32: number of the micro-batch's first sample within the step; counter of training noise.
pub const SAMPLE: usize = 8;
/// f32: decay of the moving average in this step, or of the first of several.
pub const EMA_DECAY: usize = 9;
/// u32: optimizer steps skipped because a gradient wasn't finite. Written by the optimizer.
pub const SKIPPED: usize = 10;
/// u32: 0, or 1 + the first step whose gradients weren't finite. Written by the optimizer.
pub const FIRST_BAD: usize = 11;
/// f32: decays of up to so many averages.
pub const EMA_DECAYS: [usize; 4] = [EMA_DECAY, 12, 13, 14];

/// The type of the state.
pub fn ty() -> TensorType {
    TensorType::u32([WORDS])
}

/// An unsigned word of the state.
pub fn word(state: &[f32], index: usize) -> u32 {
    state[index].to_bits()
}

/// A word of the state that holds a float.
pub fn float(state: &[f32], index: usize) -> f32 {
    state[index]
}

/// The run's seed as a Philox key.
pub fn seed(state: &[f32]) -> [u32; 2] {
    [word(state, SEED_LOW), word(state, SEED_HIGH)]
}

/// The state as the host makes and reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepState {
    pub words: [u32; WORDS],
}

impl StepState {
    /// Zeros, but for a loss scale and bias corrections of 1.
    pub fn new(seed: u64) -> StepState {
        let mut state = StepState { words: [0; WORDS] };
        state.words[SEED_LOW] = seed as u32;
        state.words[SEED_HIGH] = (seed >> 32) as u32;
        for word in [BIAS1, BIAS2, LOSS_SCALE] {
            state.set_float(word, 1.0);
        }
        state
    }

    pub fn set_float(&mut self, word: usize, value: f32) {
        self.words[word] = value.to_bits();
    }

    pub fn float(&self, word: usize) -> f32 {
        f32::from_bits(self.words[word])
    }

    /// As it lies in device memory.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::bytes_of(&self.words)
    }

    /// For reading it back.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::bytes_of_mut(&mut self.words)
    }
}
