//! Compiles the lab's probes (`benches/probes/`), which are no part of the library: only the bench of
//! that name includes what comes out.

use crate::cache::{self, Cache};
use crate::nvrtc::{Nvrtc, Unit};
use std::path::Path;

/// File, architectures (the last one of `schedule.cu` as PTX too: whether the driver completes machine
/// code that sets a graph's condition is one of the questions), and more options.
const PROBES: [(&str, &[&str], &[&str]); 3] = [
    ("schedule.cu", &["sm_70", "sm_80", "sm_90", "compute_90"], &[]),
    ("product.cu", &["sm_80"], &[]),
    ("product.cu", &["sm_90a"], &["-DCYANEA_WGMMA"]),
];

/// Writes `probes.rs` with the list of images, empty where there is no compiler.
pub fn build(root: &Path, cache: &Cache, out: &Path) -> Result<(), String> {
    let folder = root.join("benches/probes");
    println!("cargo:rerun-if-changed=benches/probes");
    let mut text = String::from("&[\n");
    if let Some(nvrtc) = Nvrtc::find(root)? {
        for (file, archs, more) in PROBES {
            let source = cache::read(&folder.join(file))?;
            let source = String::from_utf8_lossy(&source).into_owned();
            for arch in archs {
                let ptx = arch.starts_with("compute");
                let more = more.iter().map(|option| option.to_string()).collect::<Vec<_>>();
                let options = nvrtc.options(arch, &folder, &more);
                let extension = if ptx { "ptx" } else { "cubin" };
                let cached = cache.file(&[&nvrtc.version, &options.join(" "), &source], extension);
                let unit = Unit { name: file, text: source.clone(), expressions: &[] };
                nvrtc
                    .compile(&unit, ptx, &options, &cached)
                    .map_err(|e| format!("benches/probes/{file} for {arch}: {e}"))?;
                let copy = out.join(format!("probe-{file}-{arch}.{extension}"));
                cache::write(&copy, &cache::read(&cached)?)?;
                text += &format!("    ({file:?}, {arch:?}, include_bytes!({copy:?}) as &[u8]),\n");
            }
        }
    }
    text += "]\n";
    cache::write(&out.join("probes.rs"), text.as_bytes())
}
