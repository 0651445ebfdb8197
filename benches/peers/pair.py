"""Times cyanea and PyTorch in turn on one machine and writes both with the ratio of their medians.

    cargo build --release
    python benches/peers/pair.py --threads 2 --out benches/results/cpu.json [--simd avx2]

For each case: cyanea, PyTorch, cyanea, PyTorch, … Seconds drift on a shared machine; the ratio of
neighbours holds. `ratio` is the median over the rounds of cyanea's p50 divided by PyTorch's.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CASES = [
    ("step", "ddpm-32", 1),
    ("step", "ddpm-32", 16),
    ("step", "ddpm-64", 1),
    ("train", "ddpm-32", 16),
]


def run(command, environment):
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
    return json.loads(out)


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--simd", choices=["avx2"], help="hold both sides to AVX2")
    parser.add_argument("--binary", default=str(ROOT / "target/release/cyanea"))
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()

    environment = dict(os.environ, RAYON_NUM_THREADS=str(arguments.threads))
    if arguments.simd == "avx2":
        # Ours, PyTorch's own kernels, and those of oneDNN behind it.
        environment |= {
            "CYANEA_SIMD": "avx2",
            "ATEN_CPU_CAPABILITY": "avx2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
        }
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    results = []
    for what, preset, batch in CASES:
        ours = [arguments.binary, "bench", what, "--preset", preset, "--batch", str(batch), "--json"]
        peer = [sys.executable, str(HERE / f"{what}.py"), "--preset", preset, "--batch", str(batch)]
        peer += ["--threads", str(arguments.threads), "--json"]
        rounds = []
        for _ in range(arguments.rounds):
            load = os.getloadavg()[0]
            rounds.append({
                "load": load, "cyanea": run(ours, environment), "peer": run(peer, environment)
            })
        ratio = statistics.median(r["cyanea"]["p50_ms"] / r["peer"]["p50_ms"] for r in rounds)
        results.append({
            "bench": what, "preset": preset, "batch": batch, "ratio": ratio, "rounds": rounds
        })
        print(f"{what} {preset} batch {batch}: {ratio:.3f} of PyTorch's time", file=sys.stderr)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({
        "processor": processor(),
        "threads": arguments.threads,
        "simd": arguments.simd or "best",
        "commit": commit,
        "results": results,
    }, indent=1) + "\n")


if __name__ == "__main__":
    main()
