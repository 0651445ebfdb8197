"""What scripts/gpu-run.py reads of a GPU and of the tools that measure one."""

import csv
import glob
import json
import os
import shutil
import statistics
import subprocess
import threading

GPU_FIELDS = (
    "timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu,"
    "clocks_throttle_reasons.active"
)
METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__bytes.sum": "dram_bytes",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": "tensor_pipe_percent",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy_percent",
}


def machine(emulated):
    """What GPU, driver and CUDA there are, as nvidia-smi says."""
    facts = {"gpu": None, "driver": None, "cuda": None, "nvidia_smi": None}
    if emulated or shutil.which("nvidia-smi") is None:
        return facts
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    said = subprocess.run(query, stdout=subprocess.PIPE, text=True).stdout.strip()
    if "," in said:
        facts["gpu"], facts["driver"] = (word.strip() for word in said.splitlines()[0].split(","))
    said = subprocess.run(["nvidia-smi"], stdout=subprocess.PIPE, text=True).stdout
    if "CUDA Version:" in said:
        facts["cuda"] = said.split("CUDA Version:")[1].split()[0]
    facts["nvidia_smi"] = subprocess.run(
        ["nvidia-smi", "-q", "-d", "CLOCK,POWER,TEMPERATURE,PERFORMANCE"],
        stdout=subprocess.PIPE, text=True,
    ).stdout
    return facts


class GpuLog:
    """Clocks, power and temperature while something is measured: a line every half second."""

    def __enter__(self):
        self.lines = []
        self.process = None
        if shutil.which("nvidia-smi"):
            self.process = subprocess.Popen(
                ["nvidia-smi", f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader,nounits", "-lms", "500"],
                stdout=subprocess.PIPE, text=True,
            )
            self.thread = threading.Thread(target=self.read)
            self.thread.start()
        return self

    def read(self):
        self.lines.extend(line.strip() for line in self.process.stdout)

    def __exit__(self, *_):
        if self.process:
            self.process.terminate()
            self.thread.join()
            self.process.wait()


def write_json(path, value):
    """Whole or not at all: the run may be ended at any time."""
    temporary = f"{path}.tmp"
    with open(temporary, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
    os.replace(temporary, path)


def read_json(path, default):
    try:
        with open(path) as file:
            return json.load(file)
    except FileNotFoundError:
        return default


def criterion_samples(home):
    """Nanoseconds an iteration of each sample, by the name of the bench."""
    found = {}
    for path in glob.glob(os.path.join(home, "**", "new", "sample.json"), recursive=True):
        folder = os.path.dirname(path)
        sample, about = read_json(path, {}), read_json(os.path.join(folder, "benchmark.json"), {})
        samples = [t / n for t, n in zip(sample["times"], sample["iters"])]
        found[about["full_id"]] = {
            "median_ns": statistics.median(samples), "samples_ns": samples,
            "throughput": about["throughput"],
        }
    return found


def profiled_launches(path):
    """Nsight Compute's table, a row a launch and metric, as one object a launch."""
    with open(path) as file:
        lines = [line for line in file if line.startswith('"')]
    launches = {}
    for row in csv.DictReader(lines):
        grid = [int(word) for word in row["Grid Size"].strip("()").split(",")]
        launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"].split("(")[0], "grid": grid})
        if row["Metric Name"] in METRICS:
            try:
                launch[METRICS[row["Metric Name"]]] = float(row["Metric Value"].replace(",", ""))
            except ValueError:
                pass
    return list(launches.values())
