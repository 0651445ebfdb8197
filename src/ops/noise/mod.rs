//! Noise as a function of seed, purpose, step, sample and element: it depends neither on device,
//! batch, thread count nor on what was drawn before.
//!
//! The stream of a run has the state's seed as its key, the step `STEP` and the sample `SAMPLE` + b; images that are
//! sampled have their own seed each, the step `ROW` and the sample 0.

pub(in crate::ops) mod cpu;
pub mod normal;
pub mod philox;
