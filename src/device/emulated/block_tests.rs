use super::*;

unsafe extern "C" {
    fn cyanea_selftest_sum_of_block(params: *const c_void);
    fn cyanea_selftest_warp_functions(params: *const c_void);
    #[cfg(not(feature = "checked"))]
    fn cyanea_selftest_unwritten_shared(params: *const c_void);
    fn cyanea_selftest_faulty(params: *const c_void);
}

/// Runs `blocks` blocks of `threads` lanes one after another and returns what they wrote.
fn run(
    worker: &mut Worker,
    entry: HostEntry,
    mode: i32,
    blocks: u32,
    threads: u32,
    seed: u64,
) -> Result<Vec<f32>, String> {
    let mut out = vec![0.0f32; (blocks * threads) as usize];
    let address = out.as_mut_ptr().expose_provenance() as u128;
    let params = [address | (mode as u128) << 64];
    let grid = Grid {
        entry,
        params: &params,
        grid: [blocks, 1, 1],
        block: [threads, 1, 1],
        dynamic_shared: 1024,
        shared_limit: 64 << 10,
        #[cfg(feature = "checked")]
        regions: vec![Region::output(&out)],
    };
    for block in 0..blocks {
        // SAFETY: `out` has an element for each lane; the parameters are a `Selftest`.
        unsafe { worker.run(&grid, [block, 0, 0], seed + u64::from(block))? };
    }
    Ok(out)
}

#[test]
fn barriers_and_shuffles_reduce_a_block() {
    let mut worker = Worker::new();
    for seed in 0..20 {
        let out = run(&mut worker, cyanea_selftest_sum_of_block, 0, 3, 160, seed).unwrap();
        assert!(out.iter().all(|&sum| sum == 160.0 * 161.0 / 2.0), "{out:?}");
    }
}

#[test]
fn warp_functions_follow_the_programming_guide() {
    let expected: [fn(usize) -> f32; 6] = [
        |lane| if lane < 3 { lane as f32 } else { lane as f32 - 3.0 },
        |lane| if lane + 3 > 31 { lane as f32 } else { lane as f32 + 3.0 },
        |_| 7.0,
        |_| 31.0,
        |_| 1.0,
        |lane| (lane ^ if lane < 16 { 1 } else { 2 }) as f32,
    ];
    let mut worker = Worker::new();
    for (mode, expected) in expected.iter().enumerate() {
        let out = run(&mut worker, cyanea_selftest_warp_functions, mode as i32, 1, 64, 7).unwrap();
        for (thread, &value) in out.iter().enumerate() {
            assert_eq!(value, expected(thread % 32), "mode {mode}, thread {thread}");
        }
    }
}

// Checked mode refuses to read it.
#[cfg(not(feature = "checked"))]
#[test]
fn shared_memory_starts_as_nan_in_every_block() {
    let mut worker = Worker::new();
    for mode in [0, 1] {
        let out = run(&mut worker, cyanea_selftest_unwritten_shared, mode, 4, 64, 1).unwrap();
        assert!(out.iter().all(|value| value.is_nan()), "{out:?}");
    }
}

#[test]
fn faults_come_back_with_file_and_line_and_the_worker_survives() {
    let expected = [
        "divergent barrier: lanes wait at kernels/host/selftest.cpp:",
        "deadlock: 63 of 64 lanes wait at the barrier at kernels/host/selftest.cpp:",
        "deadlock: lanes 0xfffffdff of warp 0 wait at kernels/host/selftest.cpp:",
        "a lane that its own mask 0x00000001 lacks",
        "bytes of shared memory; a block has 65536",
    ];
    let mut worker = Worker::new();
    for (mode, expected) in expected.iter().enumerate() {
        let fault = run(&mut worker, cyanea_selftest_faulty, mode as i32, 1, 64, 3).unwrap_err();
        assert!(
            fault.contains(expected) || (mode == 3 && fault.contains("divergent warp")),
            "mode {mode}: {fault}"
        );
        let out = run(&mut worker, cyanea_selftest_sum_of_block, 0, 1, 64, 3).unwrap();
        assert!(out.iter().all(|&sum| sum == 2080.0));
    }
}
