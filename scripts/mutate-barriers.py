#!/usr/bin/env python3
"""Leaves out each barrier (and wait for copies) of kernels/ in turn and says whether the checked tests notice.

One test binary is built with the feature `checked`; its emulator leaves out the barrier that the
variable CYANEA_WITHOUT_BARRIER names (`kernels/group_norm.cu:103`). So no barrier needs a build of its
own, and every other instruction stays as it was. The comparisons of every kernel with the CPU in checked
mode, those that .ci/run makes and a few more, run once with every barrier and say which they come by.
Then for each barrier those that come by it run again without it, the quickest first, as many barriers at a
time as there are processors:

  caught    a test fails; its first report follows, and the others need not run
  missed    all tests pass without it: say in the kernel why it stays, or remove it
  unreached no test comes by it: a case is missing

Fences (device_fence, __threadfence and its relatives) order what other blocks see. The emulator has one order of
memory for all blocks, so it can't judge them: they are listed and never left out.

usage: scripts/mutate-barriers.py [FILE ...] [--json PATH]
FILE is below kernels/, e.g. group_norm.cu common/reduce.cuh; all files without any. The exit status is
1 where a barrier is unreached, or missed and not explained by a comment "Stays:" on its line or the
line above.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BARRIER = re.compile(r"\b(__syncthreads|__syncwarp|copy_wait)\s*[(<]")
FENCE = re.compile(r"\b(__threadfence\w*|device_fence)\s*\(")
LONGEST = 1800  # seconds that a comparison may take
REACHED = re.compile(r"barrier reached: (\S+)")
REPORT = re.compile(r"(race: .*|.*copy is under way.*|.*no lane has written.*|.*deadlock: .*|.*depends on the order.*)")


def sites(names):
    """(file, line, function, whether it is a fence) of each barrier and fence."""
    folder = ROOT / "kernels"
    found = []
    for path in sorted(folder.rglob("*.cu*")):
        name = path.relative_to(folder).as_posix()
        if name.startswith("host/") or (names and name not in names):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = line.split("//")[0]
            if "#define" in code or "__device__" in code:
                continue
            for pattern in (BARRIER, FENCE):
                for match in pattern.finditer(code):
                    found.append((name, number, match[1], pattern is FENCE))
    return found


def explained(name, number):
    lines = (ROOT / "kernels" / name).read_text().splitlines()
    return any("Stays:" in line for line in lines[max(0, number - 2) : number])


def build():
    """Path of the test binary of the library."""
    command = ["cargo", "test", "--release", "--features", "checked", "--lib", "--no-run"]
    command += ["--message-format", "json-render-diagnostics"]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    for line in output.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message.get("profile", {}).get("test"):
            return message["executable"]
    sys.exit("cargo named no test binary")


def tests_of(binary):
    """Names of the comparisons."""
    # As in .ci/run, but with what is left out there for its time, other than cases of convolutions that aren't small.
    command = [binary, "kernel_parity", "--skip", "kernel_parity::convolution"]
    command += ["--skip", "every_kernel_is_compared", "--list"]
    listed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [line.removesuffix(": test") for line in listed.splitlines() if line.endswith(": test")]


def run(binary, test, without):
    """Whether a comparison passes, how many seconds it took, and what it printed."""
    # In twice as many orders as in .ci/run.
    environment = os.environ | {"RUST_BACKTRACE": "0", "CYANEA_ORDERS": "4"}
    environment["CYANEA_WITHOUT_BARRIER"] = without
    started = time.monotonic()
    try:
        done = subprocess.run(
            [binary, "--exact", test, "--nocapture"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=LONGEST,
        )
    except subprocess.TimeoutExpired:
        sys.exit(f"{test} without {without or 'none'}: not finished after {LONGEST} s")
    # What the test harness ends with when a test fails; anything else, as want of memory, says nothing.
    if done.returncode not in (0, 101):
        sys.exit(f"{done.stdout}\n{test} without {without or 'none'} ended with {done.returncode}")
    return done.returncode == 0, time.monotonic() - started, done.stdout


def judge(binary, tests, name, line):
    """The verdict on a barrier, given the tests that come by it, and the report of the one that fails."""
    for test in tests:
        passes, _, printed = run(binary, test, f"kernels/{name}:{line}")
        if not passes:
            report = REPORT.search(printed)
            return "caught", f"{test}: {report[0].strip() if report else 'a comparison fails'}"
    if not tests:
        return "unreached", ""
    return "missed, explained" if explained(name, line) else "missed", ""


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    found = sites(set(arguments.files))
    unknown = set(arguments.files) - {p.relative_to(ROOT / "kernels").as_posix()
                                      for p in (ROOT / "kernels").rglob("*.cu*")}
    if unknown:
        sys.exit(f"no such file below kernels/: {', '.join(sorted(unknown))}")

    binary = build()
    tests = tests_of(binary)
    seconds, reached = {}, {}
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        all_in_place = pool.map(lambda test: run(binary, test, ""), tests)
        for test, (passes, took, printed) in zip(tests, all_in_place):
            if not passes:
                sys.exit(f"{printed}\n{test} fails with every barrier in place; mend that first")
            seconds[test], reached[test] = took, set(REACHED.findall(printed))
            print(f"{took:6.1f} s {test}", flush=True)

        def verdict(site):
            name, line, _, fence = site
            if fence:
                return "fence, not judged", ""
            here = [test for test in tests if f"kernels/{name}:{line}" in reached[test]]
            return judge(binary, sorted(here, key=seconds.get), name, line)

        rows = []
        for (name, line, function, _), (outcome, report) in zip(found, pool.map(verdict, found)):
            place = f"kernels/{name}:{line}"
            rows.append({"place": place, "function": function, "verdict": outcome, "report": report})
            print(f"{outcome:18} {place} {function}" + (f"\n{'':18} {report}" if report else ""), flush=True)
    finally:
        pool.shutdown(cancel_futures=True)

    caught = sum(row["verdict"] == "caught" for row in rows)
    barriers = sum(not row["verdict"].startswith("fence") for row in rows)
    print(f"{caught} of {barriers} barriers caught, {len(rows) - barriers} fences not judged")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(any(row["verdict"] in ("missed", "unreached") for row in rows))


if __name__ == "__main__":
    main()
