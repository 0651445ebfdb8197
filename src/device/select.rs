//! Devices by the names that users give.

use super::cpu::{CpuDevice, Simd};
use super::cuda::Cuda;
use super::emulated::Emulated;
use super::{CodePath, Device, Numerics, Precision, Target};
use crate::error::{Error, Result};

/// What a device's name says.
enum Name {
    Cpu,
    Emulated(Target),
    /// The GPU's number, and a code path other than the GPU's own.
    Cuda(u32, Option<CodePath>),
}

fn parse(name: &str) -> Result<Name> {
    let unknown = || {
        Error::invalid(format!(
            "there is no device `{name}`; known are cpu, emulated, emulated:v100, emulated:a100, \
             emulated:h100 and cuda:N with the number of a GPU"
        ))
    };
    let target = |name: &str| match Target::named(name) {
        Ok(target) if !target.is_cpu() => Ok(target),
        _ => Err(unknown()),
    };
    let number = |number: &str| number.parse().map_err(|_| unknown());
    let parts: Vec<&str> = name.split(':').collect();
    match parts[..] {
        ["cpu"] => Ok(Name::Cpu),
        ["emulated"] => Ok(Name::Emulated(Target::H100)),
        ["emulated", name] => Ok(Name::Emulated(target(name)?)),
        ["cuda"] => Ok(Name::Cuda(0, None)),
        ["cuda", gpu] => Ok(Name::Cuda(number(gpu)?, None)),
        ["cuda", gpu, name] => Ok(Name::Cuda(number(gpu)?, Some(target(name)?.code_path))),
        _ => Err(unknown()),
    }
}

/// Whether a name is that of a device, here or elsewhere; nothing is opened.
///
/// # Errors
/// A name that is none; the message lists those that are.
pub fn check_name(name: &str) -> Result<()> {
    parse(name).map(drop)
}

/// Opens a device by its name, computing in float32; see [`open_by_name_with`].
///
/// # Errors
/// As [`open_by_name_with`].
pub fn open_by_name(name: &str) -> Result<Box<dyn Device>> {
    open_by_name_with(name, Precision::Fp32)
}

/// Opens `cpu`, `emulated`, `emulated:v100|a100|h100` (`emulated` alone is `h100`), `cuda:N`, or
/// `cuda:N:v100`, which runs the kernels' sm_70 path on any newer GPU.
///
/// # Errors
/// A name that is none of these, or a device that can't serve, with the reason in one sentence;
/// float16 on `cpu`, or a `CYANEA_SIMD` that is no level.
pub fn open_by_name_with(name: &str, numerics: impl Into<Numerics>) -> Result<Box<dyn Device>> {
    let numerics = numerics.into();
    match parse(name)? {
        Name::Cpu => {
            Simd::limit()?;
            Target::CPU.with_numerics(numerics)?;
            Ok(Box::new(CpuDevice::new()))
        }
        Name::Emulated(target) => Ok(Box::new(Emulated::new(target.with_numerics(numerics)?)?)),
        Name::Cuda(number, code_path) => Ok(Box::new(Cuda::new(number, code_path, numerics)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_open_devices_and_unknown_ones_are_explained() {
        for (asked, name) in
            [("cpu", "cpu"), ("emulated", "emulated:h100"), ("emulated:v100", "emulated:v100")]
        {
            assert_eq!(open_by_name(asked).unwrap().name(), name);
        }
        for wrong in ["", "gpu", "emulated:", "emulated:cpu", "cuda:x", "cuda:0:cpu", "cpu:1"] {
            let Err(error) = open_by_name(wrong) else { panic!("`{wrong}` opened") };
            assert!(error.to_string().contains("known are"), "{error}");
        }
    }

    #[test]
    fn float16_is_for_kernels() {
        let half = open_by_name_with("emulated:v100", Precision::Fp16).unwrap();
        assert_eq!(half.target().precision, Precision::Fp16);
        let Err(error) = open_by_name_with("cpu", Precision::Fp16) else { panic!("cpu opened") };
        assert!(error.to_string().contains("float32 only"), "{error}");
    }

    #[test]
    fn a_gpu_opens_or_says_why_not_in_one_sentence() {
        match open_by_name("cuda:0") {
            Ok(device) => assert_eq!(device.name(), "cuda:0"),
            Err(Error::Device(why)) => assert!(!why.is_empty() && !why.contains('\n'), "{why}"),
            Err(other) => panic!("{other}"),
        }
    }
}
