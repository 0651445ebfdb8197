//! Each kind of fault is reported with the line that `kernels/host/faults.cu` marks, and what is in
//! order passes.

use super::*;

const SOURCE: &str = include_str!("../../../kernels/host/faults.cu");

unsafe extern "C" {
    fn cyanea_faults_in_static(params: *const c_void);
    fn cyanea_faults_in_dynamic(params: *const c_void);
    fn cyanea_faults_in_global(params: *const c_void);
    fn cyanea_faults_none(params: *const c_void);
}

#[repr(C, align(16))]
struct Aligned([f32; 192]);

/// Runs one block of 64 lanes that reads the first and writes the second of three times 64 floats.
fn run(entry: HostEntry, mode: i32, behind: i32, seed: u64) -> Result<Vec<f32>, String> {
    let mut memory = Aligned([0.5; 192]);
    let base = memory.0.as_mut_ptr().expose_provenance();
    let params = [
        base as u128 | ((base + 512) as u128) << 64,
        u128::from(mode.cast_unsigned()) | u128::from(behind.cast_unsigned()) << 32,
    ];
    let region = |first: usize, written, name: &str| Region {
        bytes: base + first..base + first + 256,
        written,
        name: name.into(),
    };
    let grid = Grid {
        entry,
        params: &params,
        grid: [1, 1, 1],
        block: [64, 1, 1],
        dynamic_shared: 256,
        shared_limit: 48 << 10,
        regions: vec![region(0, false, "the input"), region(512, true, "the output")],
    };
    let mut worker = Worker::new();
    // SAFETY: the parameters are a `Faults`; what lies outside of the regions is not reached.
    unsafe { worker.run(&grid, [0; 3], seed)? };
    Ok(memory.0[128..].to_vec())
}

/// `kernels/host/faults.cu:LINE` of the marked line.
fn marked(name: &str) -> String {
    let mark = format!("// fault: {name}");
    let line = SOURCE.lines().position(|line| line.ends_with(&mark));
    format!("kernels/host/faults.cu:{}", line.unwrap_or_else(|| panic!("no {mark}")) + 1)
}

/// The fault comes, in every order of lanes, with the marked line and the given words.
fn caught(entry: HostEntry, mode: i32, behind: i32, name: &str, words: &[&str]) {
    for seed in 0..12 {
        let place = marked(name);
        let fault = run(entry, mode, behind, seed).expect_err(name);
        assert!(fault.contains(&place), "{name}, seed {seed}: no {place} in `{fault}`");
        for word in words {
            assert!(fault.contains(word), "{name}, seed {seed}: no {word} in `{fault}`");
        }
    }
}

#[test]
fn races_in_shared_memory() {
    caught(cyanea_faults_in_static, 2, 0, "write after read", &["race", "which lane"]);
    caught(cyanea_faults_in_static, 6, 0, "two writers", &["race", "wrote without"]);
    let shuffle = "a shuffle orders no memory";
    caught(cyanea_faults_in_dynamic, 2, 0, shuffle, &["race", "without a warp barrier"]);
}

/// Of two lanes without a barrier the reader may come first: then it reads what nobody wrote.
#[test]
fn missing_barriers() {
    caught(cyanea_faults_in_static, 0, 0, "race between warps", &["shared memory"]);
    caught(cyanea_faults_in_static, 1, 0, "race inside a warp", &["shared memory"]);
}

#[test]
fn asynchronous_copies() {
    let without = "a copy without a wait";
    caught(cyanea_faults_in_dynamic, 3, 0, without, &["to which a copy is under way"]);
    let barrier = "a wait without a barrier";
    caught(cyanea_faults_in_dynamic, 4, 0, barrier, &["shared memory"]);
    caught(cyanea_faults_in_dynamic, 5, 0, "misaligned copy", &["at a misaligned address"]);
}

#[test]
fn shared_memory_that_nobody_wrote() {
    caught(cyanea_faults_in_static, 3, 0, "never written", &["no lane has written"]);
}

#[test]
fn accesses_outside_of_shared_arrays() {
    let array = "index of a static array";
    caught(cyanea_faults_in_static, 4, 5, array, &["of a shorter array"]);
    caught(cyanea_faults_in_static, 4, -1, array, &["index -1 of"]);
    let behind = "behind a static array";
    caught(cyanea_faults_in_static, 5, 1, behind, &["0 bytes behind the end of the shared array"]);
    let dynamic = "behind dynamic shared memory";
    caught(
        cyanea_faults_in_dynamic,
        0,
        2,
        dynamic,
        &["behind the end of the 256 bytes of dynamic"],
    );
}

#[test]
fn accesses_outside_of_the_views() {
    caught(cyanea_faults_in_global, 0, 1, "read behind a view", &["byte 256 of the input"]);
    caught(cyanea_faults_in_global, 1, 1, "write behind a view", &["byte 256 of the output"]);
    caught(
        cyanea_faults_in_global,
        4,
        0,
        "write before a view",
        &["outside of the launch's views"],
    );
    let reader = "write to what is read";
    caught(cyanea_faults_in_global, 2, 0, reader, &["the input, which the launch only reads"]);
}

#[test]
fn atomics_outside_of_the_views() {
    let line = SOURCE.lines().position(|line| line.ends_with("// atomic")).unwrap() + 1;
    let fault = run(cyanea_faults_in_global, 5, 3, 1).unwrap_err();
    assert!(fault.contains(&format!("kernels/host/faults.cu:{line}")), "{fault}");
    assert!(fault.contains("updates 4 bytes at byte"), "{fault}");
}

#[test]
fn misaligned_vectors() {
    let misaligned = "misaligned";
    caught(cyanea_faults_in_dynamic, 1, 3, "misaligned shared", &[misaligned, "shared memory"]);
    caught(cyanea_faults_in_global, 3, 2, "misaligned global", &[misaligned, "multiple of 16"]);
    // The same vectors at multiples of 16 bytes pass.
    for seed in 0..4 {
        run(cyanea_faults_in_dynamic, 1, 8, seed).unwrap();
        run(cyanea_faults_in_global, 3, 8, seed).unwrap();
    }
}

#[test]
fn what_is_in_order_passes_in_every_order_of_lanes() {
    let first = run(cyanea_faults_none, 0, 0, 0).unwrap();
    assert!(first.iter().all(|value| value.is_finite()), "{first:?}");
    for seed in 1..50 {
        assert_eq!(run(cyanea_faults_none, 0, 0, seed).unwrap(), first);
    }
}
