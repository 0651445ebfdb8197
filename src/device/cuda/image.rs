//! Which of the built-in images a GPU runs.

use crate::device::CodePath;
use crate::device::kernels::{Arch, IMAGES, Image};
use crate::error::{Error, Result};

/// The image of a file for a compute capability (70 for 7.0): the newest machine code of the same
/// major version that is not newer than the GPU, else PTX.
///
/// # Errors
/// None fits; says what the build has and how to make one.
pub(super) fn choose(source: &str, capability: u32, code_path: CodePath) -> Result<&'static Image> {
    if IMAGES.is_empty() {
        return Err(Error::device(
            "this build has no GPU kernels; run scripts/cuda-toolchain.sh and build again",
        ));
    }
    let candidates = || IMAGES.iter().filter(|i| i.source == source && i.code_path == code_path);
    best(candidates().map(|image| image.arch), capability)
        .and_then(|arch| candidates().find(|image| image.arch == arch))
        .ok_or_else(|| {
            let mut archs = Vec::new();
            for image in candidates() {
                archs.push(image.arch.to_string());
            }
            Error::device(format!(
                "this build has kernels for {} and none that run on sm_{capability}; build again \
                 with CYANEA_CUDA_ARCHS=sm_{capability}",
                archs.join(", ")
            ))
        })
}

fn best(archs: impl Iterator<Item = Arch> + Clone, capability: u32) -> Option<Arch> {
    let runs = |arch: &Arch| {
        arch.number <= capability && (arch.ptx || arch.number / 10 == capability / 10)
    };
    archs.filter(runs).max_by_key(|arch| (!arch.ptx, arch.number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_code_of_the_same_major_version_wins_over_ptx() {
        let archs = [(70, false), (80, false), (90, false), (90, true)]
            .map(|(number, ptx)| Arch { number, ptx });
        let chosen = |capability| best(archs.iter().copied(), capability).map(|a| a.to_string());
        assert_eq!(chosen(70).as_deref(), Some("sm_70"));
        assert_eq!(chosen(75).as_deref(), Some("sm_70"));
        assert_eq!(chosen(86).as_deref(), Some("sm_80"));
        assert_eq!(chosen(90).as_deref(), Some("sm_90"));
        assert_eq!(chosen(100).as_deref(), Some("compute_90"));
        assert_eq!(chosen(61), None);
    }
}
