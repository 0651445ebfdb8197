//! Compiles each `.cu` file with the host's C++ compiler, once for each code path, into a static
//! library that the `emulated` device calls.

use crate::CODE_PATHS;
use crate::cache::{self, Cache};
use crate::manifest::Sources;
use std::path::{Path, PathBuf};
use std::process::Command;

/// No contraction: a kernel says `fmaf` where it means it, so that every device rounds alike. No
/// exceptions and no run-time types, so that no C++ library is linked.
const FLAGS: [&str; 16] = [
    "-x",
    "c++",
    "-std=c++17",
    "-O2",
    "-g1",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-strict-aliasing",
    "-fno-exceptions",
    "-fno-rtti",
    "-ftls-model=initial-exec",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-Wno-unused-function",
];

/// Added for the feature `checked`: the compiler announces each access to memory to the functions
/// of kernels/host/checked.cpp. Equal calls at different lines stay apart, so that reports name the
/// right one. It warns of fences, which these functions need not see.
const CHECKED_FLAGS: [&str; 5] = [
    "-DCYANEA_CHECKED",
    "-fsanitize=thread,bounds-strict,alignment",
    "-Wno-tsan",
    "-fno-crossjumping",
    "-fno-tree-tail-merge",
];

struct Unit {
    /// For messages.
    name: String,
    text: String,
}

pub fn build(sources: &Sources, cache: &Cache, out: &Path) -> Result<(), String> {
    let compiler = compiler()?;
    let version = version(&compiler)?;
    let target = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let checked = std::env::var_os("CARGO_FEATURE_CHECKED").is_some();
    if checked && version.contains("clang") {
        return Err(format!("the feature `checked` needs g++; {compiler} is clang; set CXX=g++"));
    }
    let mut flags: Vec<&str> = FLAGS.to_vec();
    if target == "x86_64" {
        // `fmaf` becomes an instruction; the device checks for it when it is opened.
        flags.extend(["-mavx2", "-mfma", "-mf16c"]);
    }

    // The tests of the emulator itself lie in the library too; only tests pull them in.
    let mut units: Vec<Unit> = ["host/runtime.cpp", "host/selftest.cpp", "host/selftest_mma.cpp"]
        .into_iter()
        .map(|name| Unit { name: name.into(), text: format!("#include \"{name}\"\n") })
        .collect();
    for path in CODE_PATHS {
        units.push(Unit {
            name: format!("host/selftest_tile.cpp for sm_{path}"),
            text: format!("#define CYANEA_CODE_PATH {path}\n#include \"host/selftest_tile.cpp\"\n"),
        });
    }
    if checked {
        units.extend([
            Unit {
                name: CHECKS.into(),
                text: format!("#define CYANEA_CHECKED\n#include \"{CHECKS}\"\n"),
            },
            Unit { name: "host/faults.cu".into(), text: faults() },
        ]);
    }
    for (index, file) in sources.files.iter().enumerate() {
        for path in CODE_PATHS {
            units.push(Unit {
                name: format!("{} for sm_{path}", file.source),
                text: wrapper(sources, index, path),
            });
        }
    }
    let mut checked_flags = flags.clone();
    checked_flags.extend(CHECKED_FLAGS);
    // Which flags a unit is built with: what checks must not be checked itself.
    let flags = |unit: &Unit| {
        if checked && unit.name != CHECKS { checked_flags.as_slice() } else { flags.as_slice() }
    };
    let objects = units.iter().map(|unit| {
        let key = [&version, &flags(unit).join(" "), &sources.expanded(&unit.text)?];
        Ok(cache.file(&key.map(String::as_str), "o"))
    });
    let objects: Vec<PathBuf> = objects.collect::<Result<_, String>>()?;
    cache::parallel(units.len(), |index| {
        if objects[index].exists() {
            return Ok(());
        }
        let unit = &units[index];
        compile(&compiler, flags(unit), &sources.folder, unit, &objects[index])
    })?;

    let library = out.join("libcyanea_kernels.a");
    let _ = std::fs::remove_file(&library);
    let archiver = std::env::var("AR").unwrap_or("ar".into());
    let output = Command::new(&archiver).arg("crs").arg(&library).args(&objects).output();
    match output {
        Ok(output) if output.status.success() => {}
        Ok(output) => return Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => return Err(format!("{archiver}: {error}; install binutils or set AR")),
    }
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static=cyanea_kernels");
    println!("cargo:rustc-link-lib=m");
    Ok(())
}

const CHECKS: &str = "host/checked.cpp";

/// The kernels that the tests of checked mode break its rules with.
fn faults() -> String {
    let mut text = String::from("#define CYANEA_CODE_PATH 80\n#include \"host/emulated.h\"\n");
    text += "namespace {\n#include \"host/faults.cu\"\n}\n";
    for kernel in ["static", "dynamic", "global"].map(|place| format!("faults_in_{place}")) {
        text += &entry(&format!("cyanea_{kernel}"), &kernel, "Faults");
    }
    text + &entry("cyanea_faults_none", "faults_none", "Faults")
}

/// The exported function that runs one lane of a kernel.
fn entry(symbol: &str, expression: &str, params: &str) -> String {
    format!(
        "extern \"C\" void {symbol}(const void* params) {{\n    {expression}(*static_cast<const {params}*>(params));\n}}\n"
    )
}

/// A unit that includes the file in a namespace without a name, so that the two code paths never
/// share a symbol, and gives each kernel one exported entry.
fn wrapper(sources: &Sources, file: usize, path: u32) -> String {
    let mut text = format!("#define CYANEA_CODE_PATH {path}\n#include \"host/emulated.h\"\n");
    text += &format!("namespace {{\n{}}}\n", sources.unit(file));
    for kernel in &sources.files[file].kernels {
        let symbol = format!("cyanea_sm{path}_{}", kernel.name);
        text += &entry(&symbol, kernel.expression(), &kernel.params);
    }
    text
}

fn compile(
    compiler: &str,
    flags: &[&str],
    kernels: &Path,
    unit: &Unit,
    object: &Path,
) -> Result<(), String> {
    // Another build may compile the same unit at this time.
    let [source, temporary] =
        ["cpp", "part"].map(|kind| object.with_extension(format!("{}.{kind}", std::process::id())));
    cache::write(&source, unit.text.as_bytes())?;
    // Messages and debug information say `kernels/…`, wherever the project lies, so that equal
    // sources give equal objects.
    let map = |from: &Path, to: &str| format!("-ffile-prefix-map={}={to}", from.display());
    let output = Command::new(compiler)
        .args(flags)
        .arg(map(kernels, "kernels"))
        .arg(map(&source, "kernels/unit.cpp"))
        .arg("-I")
        .arg(kernels)
        .arg("-c")
        .arg(&source)
        .arg("-o")
        .arg(&temporary)
        .output()
        .map_err(|e| format!("{compiler}: {e}"));
    let _ = std::fs::remove_file(&source);
    let output = output?;
    if !output.status.success() {
        let _ = std::fs::remove_file(&temporary);
        return Err(format!(
            "{} does not compile:\n{}",
            unit.name,
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        println!("cargo:warning={line}");
    }
    std::fs::rename(&temporary, object).map_err(|e| format!("{}: {e}", object.display()))
}

/// `CXX`, or the first of the usual names that runs.
fn compiler() -> Result<String, String> {
    for variable in ["CXX", "AR"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let asked = std::env::var("CXX").ok().filter(|name| !name.is_empty());
    let names = match &asked {
        Some(name) => vec![name.as_str()],
        None => vec!["g++", "clang++", "c++"],
    };
    names
        .iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok())
        .map(|name| name.to_string())
        .ok_or("no C++ compiler found; install g++ or name one in the variable CXX".into())
}

fn version(compiler: &str) -> Result<String, String> {
    let output = Command::new(compiler).arg("--version").output();
    let output = output.map_err(|e| format!("{compiler}: {e}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
