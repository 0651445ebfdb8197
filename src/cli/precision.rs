//! The option `--precision`.

use crate::device::Precision;

/// Element type of activations and of the weights that products read.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Wanted {
    Fp32,
    Fp16,
}

impl Wanted {
    /// As the user writes it.
    pub fn name(self) -> &'static str {
        match self {
            Wanted::Fp32 => "fp32",
            Wanted::Fp16 => "fp16",
        }
    }
}

impl From<Wanted> for Precision {
    fn from(wanted: Wanted) -> Precision {
        match wanted {
            Wanted::Fp32 => Precision::Fp32,
            Wanted::Fp16 => Precision::Fp16,
        }
    }
}
