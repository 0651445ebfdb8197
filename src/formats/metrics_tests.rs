use super::*;

const COLUMNS: [&str; 2] = ["loss", "rate"];

fn run() -> (tempfile::TempDir, RunFolder) {
    let place = tempfile::tempdir().unwrap();
    let run = RunFolder::create(place.path(), "").unwrap();
    (place, run)
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn what_is_no_log_is_refused_without_reading_it() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunFolder::create(folder.path().join("run"), "").unwrap();
    std::os::unix::fs::symlink("/dev/zero", run.metrics_jsonl()).unwrap();
    let error = Metrics::open(&run, &["loss"], 0).err().unwrap().to_string();
    assert!(error.contains("metrics.jsonl") && error.contains("no log"), "{error}");
}

#[test]
fn lines_are_written_in_all_three_forms() {
    let (_place, run) = run();
    let mut metrics = Metrics::open(&run, &COLUMNS, 0).unwrap();
    metrics.log(1, &[("loss", 0.5), ("rate", 1e-4)]).unwrap();
    metrics.log(2, &[("rate", f64::NAN)]).unwrap();
    assert_eq!(text(&run.metrics_csv()), "step,loss,rate\n1,0.5,0.0001\n2,,NaN\n");
    assert_eq!(
        text(&run.metrics_jsonl()),
        "{\"step\":1,\"loss\":0.5,\"rate\":0.0001}\n{\"step\":2,\"rate\":null}\n"
    );
    assert_eq!(std::fs::read_dir(run.tensorboard()).unwrap().count(), 1);
    let said = metrics.log(3, &[("lost", 1.0)]).unwrap_err().to_string();
    assert!(said.contains("lost"), "{said}");
}

#[test]
fn a_resumed_run_goes_on_after_its_step() {
    let (_place, run) = run();
    let mut metrics = Metrics::open(&run, &COLUMNS, 0).unwrap();
    for step in 1..=4 {
        metrics.log(step * 10, &[("loss", step as f64)]).unwrap();
    }
    // What a crash leaves: lines without an end.
    metrics.csv.file.write_all(b"1").unwrap();
    metrics.jsonl.file.write_all(b"{\"step\":1").unwrap();
    let mut metrics = Metrics::open(&run, &COLUMNS, 25).unwrap();
    metrics.log(30, &[("loss", 33.0)]).unwrap();
    assert_eq!(text(&run.metrics_csv()), "step,loss,rate\n10,1,\n20,2,\n30,33,\n");
    let steps: Vec<u64> = text(&run.metrics_jsonl())
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [10, 20, 30]);
    // From the start again: only the header stays.
    Metrics::open(&run, &COLUMNS, 0).unwrap();
    assert_eq!(text(&run.metrics_csv()), "step,loss,rate\n");
    assert_eq!(text(&run.metrics_jsonl()), "");
}

#[test]
fn a_file_with_other_columns_is_not_mixed_up() {
    let (_place, run) = run();
    drop(Metrics::open(&run, &COLUMNS, 0).unwrap());
    let said = Metrics::open(&run, &["loss"], 0).err().unwrap().to_string();
    assert!(said.contains("metrics.csv") && said.contains("step,loss"), "{said}");
}

#[test]
fn names_with_commas_are_quoted() {
    assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
    assert_eq!(quoted("held-out loss"), "held-out loss");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_that_names_the_file() {
    // Every write to this device says that there is no space left.
    let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut lines = Lines { path: "metrics.csv".into(), file };
    let said = lines.write("1,2").unwrap_err().to_string();
    assert!(said.contains("metrics.csv") && said.contains("disk is full"), "{said}");
}
