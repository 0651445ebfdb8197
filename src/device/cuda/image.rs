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
            let remedy = match code_path {
                // The build script pairs this path with the chips that it is for and with Hopper.
                CodePath::Sm70 if capability >= 80 => {
                    "this path runs on 7.x and, to be checked there, on 9.0".into()
                }
                _ => format!("build again with CYANEA_CUDA_ARCHS=sm_{capability}"),
            };
            let path = if code_path == CodePath::Sm70 { " of the sm_70 path" } else { "" };
            Error::device(format!(
                "this build has kernels{path} for {} and none that run on sm_{capability}; {remedy}",
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

    #[test]
    fn a_chip_without_an_image_is_told_which_there_are() {
        let source = IMAGES.first().map_or("any.cu", |image| image.source);
        let refusal =
            |capability, path| choose(source, capability, path).err().unwrap().to_string();
        if IMAGES.is_empty() {
            assert!(refusal(90, CodePath::Sm80).contains("cuda-toolchain.sh"));
            return;
        }
        for arch in IMAGES.iter().filter(|i| i.code_path == CodePath::Sm80).map(|i| i.arch) {
            let said = refusal(61, CodePath::Sm80);
            assert!(said.contains(&arch.to_string()) && said.contains("sm_61"), "{said}");
        }
        if IMAGES.iter().any(|i| i.code_path == CodePath::Sm70 && i.arch.number == 70) {
            let said = refusal(80, CodePath::Sm70);
            assert!(said.contains("sm_70 path for sm_70") && said.contains("9.0"), "{said}");
        }
    }
}
