#!/usr/bin/env python3
"""Runs what scripts/gpu-pack.sh packed, on a machine with an NVIDIA GPU; plain Python, nothing else.

    python3 run.py --out results                    # all parts, the most valuable first
    python3 run.py --out results --part cases       # one part; --list names them
    python3 run.py --out results --minutes 9        # stops in time; run again to go on

Parts: `cases` replays every reference case in float32 and float16, on the GPU's own code path and on
that of Volta; `sanitizer` runs small cases under compute-sanitizer; `probes` measures what decides
the next design; `benches` times steps, training and kernels beside PyTorch; `profile` lets Nsight
Compute time each launch of a step. Each ends within eight minutes, and `benches` goes on in the next call. What was
done stands in OUT, one JSON file a part and `state.json`, and is not done again.
`--device emulated` rehearses everything on a machine without a GPU.
"""

import argparse
import fnmatch
import glob
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time

from gpu_readings import METRICS, GpuLog, criterion_samples, machine, profiled_launches, read_json, write_json

PART_SECONDS = 8 * 60
# A replay takes seconds; a kernel that never ends must not take the part with it.
REPLAY_SECONDS = 60
ALONE_SECONDS = 20
# Less time than this is not worth starting something in.
LEAST_SECONDS = 5
CHUNK = 16
# PyTorch as it comes, and in the two ways and the layout in which it is fastest.
PEERS = {
    "eager": ["--mode", "eager"],
    "graphs": ["--mode", "graphs", "--channels-last"],
    "compile": ["--mode", "compile", "--channels-last"],
}
# Of the kernel benches.
FAMILIES = ("conv2d", "attention", "group_norm", "pointwise", "optimizer", "diffusion", "row_linear", "magnitude")


class OutOfTime(Exception):
    """The part's or the call's time is up; what is left waits for the next call."""


def unpack(pack):
    """What lies compressed in the pack, beside it, once."""
    try:
        import lzma
    except ImportError:
        sys.exit("error: this Python has no lzma, which unpacks the binaries; take another one, or install liblzma for it")
    for path in glob.glob(os.path.join(pack, "bin", "*.xz")):
        binary = path.removesuffix(".xz")
        if not os.path.exists(binary):
            with lzma.open(path) as packed, open(f"{binary}.part", "wb") as file:
                shutil.copyfileobj(packed, file)
            os.chmod(f"{binary}.part", 0o755)
            os.replace(f"{binary}.part", binary)
    packages = os.path.join(pack, "python.tar.gz")
    if os.path.exists(packages) and not os.path.exists(os.path.join(pack, "python")):
        with tempfile.TemporaryDirectory(dir=pack) as folder, tarfile.open(packages) as file:
            file.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
            os.replace(os.path.join(folder, "python"), os.path.join(pack, "python"))


class Runner:
    def __init__(self, options):
        self.options = options
        self.pack = os.path.abspath(options.pack)
        unpack(self.pack)
        self.cyanea = self.inside("bin", "cyanea")
        self.emulated = options.device.startswith("emulated")
        self.deadline = time.monotonic() + 60 * options.minutes if options.minutes else None
        self.part_deadline = None
        with open(self.inside("pack.json")) as file:
            self.packed = json.load(file)
        self.machine = machine(self.emulated)

    def inside(self, *names):
        return os.path.join(self.pack, *names)

    def left(self):
        """Seconds until this part or this call must end."""
        now = time.monotonic()
        ends = [end for end in (self.deadline, self.part_deadline) if end is not None]
        return min(ends) - now if ends else PART_SECONDS

    def command(self, command, environment=None, limit=PART_SECONDS):
        """Runs a command within the time that is left; what it said, and how long it took."""
        seconds = min(limit, self.left())
        if seconds < LEAST_SECONDS:
            raise OutOfTime
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.pack,
            env=dict(os.environ, **(environment or {})), start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=seconds)
            code = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            if seconds < limit:
                raise OutOfTime from None
            code = None
        return {
            "command": " ".join([os.path.basename(command[0]), *command[1:]]),
            "exit_code": code, "seconds": round(time.monotonic() - started, 3), "stdout": out,
            "stderr": err[-4000:],
        }


class Part:
    """Named items, each done once, in one JSON file."""

    def __init__(self, runner, name):
        self.runner, self.name = runner, name
        self.path = os.path.join(runner.options.out, f"{name}.json")
        new = {"part": name, "complete": False, "items": {}}
        self.report = read_json(self.path, new)
        self.report |= {
            "device": runner.options.device, "gpu": runner.machine["gpu"],
            "driver": runner.machine["driver"], "cuda": runner.machine["cuda"],
            "commit": runner.packed["commit"],
        }

    def missing(self, names):
        return [name for name in names if name not in self.report["items"]]

    def add(self, name, result):
        self.report["items"][name] = dict(result, at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        self.save()

    def save(self):
        write_json(self.path, self.report)


def variants(runner):
    """Device and precision of each way to run the cases."""
    own = runner.options.device
    volta = "emulated:v100" if runner.emulated else f"{own}:v100"
    return [(device, precision) for device in (own, volta) for precision in ("fp32", "fp16")]


def case_files(runner):
    pattern = runner.inside("cases", runner.options.cases)
    return sorted(glob.glob(pattern))


def case_item(device, precision, path):
    return f"{device} {precision} {os.path.basename(path).removesuffix('.safetensors')}"


def replay(runner, device, precision, files, limit):
    """The reports of `cyanea compare`, by file, and what the command said."""
    said = runner.command(
        [runner.cyanea, "compare", "--json", "--device", device, "--precision", precision, *files],
        limit=PART_SECONDS if runner.emulated else limit,
    )
    try:
        reports = {report["file"]: report for report in json.loads(said["stdout"])}
    except ValueError:
        reports = {}
    return reports, said


def cases(runner, part):
    """Every case on each path in each precision. Many at a time; what fails with others around it, or
    takes the process down, is tried once more alone."""
    for device, precision in variants(runner):
        files = [p for p in case_files(runner) if part.missing([case_item(device, precision, p)])]
        for start in range(0, len(files), CHUNK):
            chunk = files[start : start + CHUNK]
            reports, _ = replay(runner, device, precision, chunk, REPLAY_SECONDS)
            for path in chunk:
                report = reports.get(path)
                said = None
                if report is None:
                    alone, said = replay(runner, device, precision, [path], ALONE_SECONDS)
                    report = alone.get(path)
                if report is None:
                    result = {"status": "failed", "exit_code": said["exit_code"], "why": said["stderr"]}
                else:
                    # Null: there is nothing to judge a tensor by in this precision.
                    judged = any(tensor["pass"] is not None for tensor in report["tensors"])
                    status = "pass" if report["pass"] else "differs" if judged else "not judged"
                    result = {"status": status}
                    result |= {key: report[key] for key in ("op", "kernels", "tensors")}
                part.add(case_item(device, precision, path), result)
    counts = {}
    for item in part.report["items"].values():
        counts[item["status"]] = counts.get(item["status"], 0) + 1
    part.report["counts"] = counts


def operation(path):
    """The operation that a case is of, from the head of its file."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))["__metadata__"]["op"]


def smallest_cases(runner):
    """The smallest of each operation."""
    smallest = {}
    for path in sorted(case_files(runner), key=os.path.getsize):
        smallest.setdefault(operation(path), path)
    return list(smallest.values())


def cuda_tool(runner, part, name, why_not_emulated):
    """Where a tool of the CUDA toolkit lies; None, and the part says why, where it is of no use."""
    tool = shutil.which(name) or f"/usr/local/cuda/bin/{name}"
    if runner.emulated:
        why = why_not_emulated
    elif not os.path.exists(tool):
        why = f"{name} is not installed here"
    else:
        return tool
    part.add(name, {"status": "skipped", "why": why})
    return None


def sanitizer(runner, part):
    tool = cuda_tool(
        runner, part, "compute-sanitizer", "there is no GPU to watch; the checked build of the emulator does this"
    )
    if tool is None:
        return
    own, volta = variants(runner)[:2], variants(runner)[2:]
    files = smallest_cases(runner)
    for check in ("memcheck", "racecheck"):
        for device, precision in [*reversed(own), *reversed(volta)]:
            # The tool takes seconds to start: many cases in one process.
            for start in range(0, len(files), CHUNK):
                chunk = files[start : start + CHUNK]
                name = f"{check} {device} {precision} {start // CHUNK}"
                if not part.missing([name]):
                    continue
                said = runner.command([
                    tool, "--tool", check, "--error-exitcode", "9", "--print-limit", "20",
                    runner.cyanea, "compare", *chunk, "--device", device, "--precision", precision,
                ], limit=120)
                # A case that differs (1) is the business of the part `cases`.
                status = "clean" if said["exit_code"] in (0, 1) else "reported"
                if said["exit_code"] is None:
                    status = "timed out"
                said["stdout"] = said["stdout"][-4000:]
                part.add(name, dict(said, status=status))


def probes(runner, part):
    binary = runner.inside("bin", "probes")
    if not os.path.exists(binary):
        part.add("probes", {"status": "skipped", "why": "the pack has no probes"})
        return
    for name in part.missing(["graph-gaps", "while-iteration", "grid-barrier", "matrix-product"]):
        with GpuLog() as log:
            said = runner.command([binary, name], limit=120)
        result = {"seconds": said["seconds"], "gpu_log": log.lines}
        try:
            result |= {"status": "done", "measured": json.loads(said["stdout"])}
        except ValueError:
            result |= {"status": "refused", "why": said["stderr"], "exit_code": said["exit_code"]}
        part.add(name, result)


def bench_groups(runner):
    """(what, network, batch, precision), the most telling first."""
    if runner.options.config:
        return [(what, None, 1, p) for p in ("fp16", "fp32") for what in ("step", "train")]
    return [
        ("step", "ddpm-64", 1, "fp16"),
        ("step", "ddpm-64", 64, "fp16"),
        ("train", "ddpm-64", 64, "fp16"),
        ("step", "ddpm-64", 1, "fp32"),
        ("train", "ddpm-32", 16, "fp32"),
        ("train", "ddpm-32", 16, "fp16"),
        ("step", "ddpm-32", 1, "fp16"),
    ]


def bench_commands(runner):
    """Name and command of each measurement, cyanea and its peers next to each other."""
    options = runner.options
    repetitions = ["--repetitions", str(options.repetitions)]
    for what, preset, batch, precision in bench_groups(runner):
        network = ["--config", os.path.abspath(options.config)] if options.config else ["--preset", preset]
        about = ["--batch", str(batch), "--precision", precision, "--json", *repetitions]
        name = f"{what} {preset or 'config'} {batch} {precision}"
        yield f"{name} cyanea", [
            runner.cyanea, "bench", what, *network, *about, "--device", options.device
        ]
        if runner.emulated or options.config:
            continue
        for mode, how in PEERS.items():
            yield f"{name} PyTorch {mode}", [
                sys.executable, runner.inside("peers", f"{what}.py"), *network, *about, "--device", "cuda", *how
            ]


def wanted(runner, name):
    """Whether the options ask for this measurement."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in runner.options.only or ["*"])


def measure(runner, part, name, command):
    """Runs a bench that prints its result as JSON, and adds it."""
    with GpuLog() as log:
        said = runner.command(command, {"PYTHONPATH": runner.inside("python")}, limit=180)
    try:
        result = {"status": "done", "measured": json.loads(said["stdout"].splitlines()[-1])}
    except (ValueError, IndexError):
        result = {"status": "failed", "exit_code": said["exit_code"], "why": said["stderr"]}
    part.add(name, dict(result, seconds=said["seconds"], gpu_log=log.lines))


def benches(runner, part):
    for name, command in bench_commands(runner):
        if part.missing([name]) and wanted(runner, name):
            measure(runner, part, name, command)
    kernel_benches(runner, part)


def kernel_benches(runner, part):
    """The Criterion benches of each kernel family, with the raw samples that Criterion keeps, and the same in
    PyTorch, by name; what must be compiled for that comes last."""
    if not os.path.exists(runner.inside("bin", "kernels")):
        part.add("kernels", {"status": "skipped", "why": "the pack has no kernel benches"})
        return
    families = [(family, precision) for family in FAMILIES for precision in ("fp16", "fp32")]
    for family, precision in families:
        kernel_family(runner, part, family, precision)
        for mode in ("eager", "graphs"):
            kernel_peer(runner, part, family, precision, mode)
    for family, precision in families:
        kernel_peer(runner, part, family, precision, "compile")


def kernel_family(runner, part, family, precision):
    name = f"kernels {family} {precision} cyanea"
    if not part.missing([name]) or not wanted(runner, name):
        return
    with tempfile.TemporaryDirectory() as home, GpuLog() as log:
        environment = {
            "CRITERION_HOME": home, "CYANEA_BENCH_DEVICE": runner.options.device,
            "CYANEA_BENCH_PRECISION": precision,
        }
        quick = ["--warm-up-time", "0.2", "--measurement-time", "0.5", "--sample-size", "10"]
        said = runner.command(
            [runner.inside("bin", "kernels"), "--bench", *quick, f"^{family}/"], environment, limit=150
        )
        measured = criterion_samples(home)
    status = "done" if said["exit_code"] == 0 and measured else "failed"
    part.add(name, {
        "status": status, "measured": measured, "seconds": said["seconds"],
        "why": said["stderr"] if status == "failed" else None, "gpu_log": log.lines,
    })


def kernel_peer(runner, part, family, precision, mode):
    """What cyanea's benches of a family named, in PyTorch."""
    name = f"kernels {family} {precision} PyTorch {mode}"
    if runner.emulated or not part.missing([name]) or not wanted(runner, name):
        return
    ours = part.report["items"].get(f"kernels {family} {precision} cyanea", {}).get("measured")
    if not ours:
        part.add(name, {"status": "skipped", "why": "there is nothing of cyanea's to compare with"})
        return
    with tempfile.NamedTemporaryFile("w", suffix=".names") as names, GpuLog() as log:
        names.write("\n".join(ours))
        names.flush()
        said = runner.command([
            sys.executable, runner.inside("peers", "kernels.py"), "--names", names.name, "--device", "cuda",
            "--precision", precision, "--mode", mode, "--json",
        ], {"PYTHONPATH": runner.inside("python")}, limit=180)
    # A line each, whole but perhaps for the last one of a process that took too long.
    lines = [json.loads(line) for line in said["stdout"].splitlines() if line.endswith("}")]
    about = lines[0] if lines else {}
    measured = {line.pop("name"): line for line in lines[1:]}
    failed = said["exit_code"] != 0 or any("error" in line for line in measured.values())
    part.add(name, {
        "status": "incomplete" if failed else "done", **about, "measured": measured, "seconds": said["seconds"],
        "why": said["stderr"] if failed else None, "gpu_log": log.lines,
    })


def profile(runner, part):
    """Each launch of one step, as Nsight Compute times it: kernels apart from each other, at the clock
    that the GPU has, with its caches as the launch before left them."""
    tool = cuda_tool(runner, part, "ncu", "there is no GPU to profile")
    if tool is None:
        return
    for what, preset, batch, precision in bench_groups(runner)[:4]:
        name = f"{what} {preset} {batch} {precision}"
        if not part.missing([name]) or not wanted(runner, name):
            continue
        bench = [
            runner.cyanea, "bench", what, "--preset", preset, "--batch", str(batch), "--precision", precision,
            "--device", runner.options.device, "--json", "--warmup", "1", "--repetitions", "1",
        ]
        with tempfile.TemporaryDirectory() as folder:
            log = os.path.join(folder, "launches.csv")
            said = runner.command([
                tool, "--csv", "--log-file", log, "--print-units", "base", "--clock-control", "none",
                "--cache-control", "none", "--metrics", ",".join(METRICS), *bench,
            ], limit=180)
            launches = profiled_launches(log)
        try:
            launches = launches[-json.loads(said["stdout"].splitlines()[-1])["launches"] :]
            part.add(name, {"status": "done", "seconds": said["seconds"], "launches": launches})
        except (ValueError, IndexError):
            part.add(name, {"status": "failed", "exit_code": said["exit_code"], "why": said["stderr"]})


PARTS = {
    "cases": cases, "sanitizer": sanitizer, "probes": probes, "benches": benches, "profile": profile,
}


def run(options):
    runner = Runner(options)
    os.makedirs(options.out, exist_ok=True)
    state_path = os.path.join(options.out, "state.json")
    state = read_json(state_path, {"parts": {}, "machine": runner.machine, "pack": runner.packed})
    if state["pack"] != runner.packed or state.get("device", options.device) != options.device:
        sys.exit(f"{options.out} has results of another pack or device; choose another --out")
    state["device"] = options.device
    for name in options.part or PARTS:
        if state["parts"].get(name, {}).get("complete"):
            print(f"{name}: complete already")
            continue
        part = Part(runner, name)
        started = time.monotonic()
        runner.part_deadline = started + PART_SECONDS
        try:
            PARTS[name](runner, part)
            part.report["complete"] = True
        except OutOfTime:
            pass
        part.save()
        seconds = state["parts"].get(name, {}).get("seconds", 0) + time.monotonic() - started
        state["parts"][name] = {"complete": part.report["complete"], "seconds": round(seconds, 1)}
        write_json(state_path, state)
        done = "complete" if part.report["complete"] else "out of time, run again to go on"
        print(f"{name}: {len(part.report['items'])} items, {seconds:.0f} s, {done}", flush=True)
    unfinished = [name for name in PARTS if not state["parts"].get(name, {}).get("complete")]
    print(f"to do: {', '.join(unfinished)}" if unfinished else "everything is done")


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", default=here, help="folder that gpu-pack.sh made (default: where this file lies)")
    parser.add_argument("--out", help="folder for the results")
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or emulated for a rehearsal (default cuda:0)")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this part; may be repeated")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes")
    parser.add_argument("--cases", default="*.safetensors", metavar="GLOB", help="only these cases")
    parser.add_argument("--only", action="append", metavar="GLOB",
                        help="of benches and profile only these items; may be repeated")  # fmt: skip
    parser.add_argument("--config", help="steps and training of this configuration in place of the presets, without peers")
    parser.add_argument("--repetitions", type=int, default=50, help="measured steps (default 50)")
    parser.add_argument("--list", action="store_true", help="name the parts in their order and stop")
    options = parser.parse_args()
    if options.list:
        print("\n".join(PARTS))
        return
    if not options.out:
        parser.error("--out is missing")
    run(options)


if __name__ == "__main__":
    main()
