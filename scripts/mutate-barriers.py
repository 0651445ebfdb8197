#!/usr/bin/env python3
"""Leaves out each barrier (and wait for copies) of kernels/ in turn and says whether the checked tests notice.

One test binary is built with the feature `checked`; its emulator leaves out the barrier that the
variable CYANEA_WITHOUT_BARRIER names (`kernels/group_norm.cu:103`). So no barrier needs a build of its
own, and every other instruction stays as it was. For each barrier the comparisons of every kernel
with the CPU in checked mode, those that .ci/run makes and a few more, run again:

  caught    a test fails; the first report follows, and the other tests are not waited for
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
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BARRIER = re.compile(r"\b(__syncthreads|__syncwarp|copy_wait)\s*[(<]")
FENCE = re.compile(r"\b(__threadfence\w*|device_fence)\s*\(")
LONGEST = 1800  # seconds that the comparisons may take
FAILED = re.compile(r"^test .* \.\.\. FAILED")
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


def run(binary, without):
    """Whether the comparisons pass, and what they printed."""
    # Of the convolutions the small cases, and not the test that runs all others once more, as in .ci/run, but in
    # twice as many orders, and with the cases of attention that are about numbers.
    command = [binary, "kernel_parity", "--skip", "kernel_parity::convolution"]
    command += ["--skip", "every_kernel_is_compared", "--nocapture"]
    environment = os.environ | {"RUST_BACKTRACE": "0", "CYANEA_ORDERS": "4"}
    environment.pop("CYANEA_WITHOUT_BARRIER", None)
    if without:
        environment["CYANEA_WITHOUT_BARRIER"] = without
    tests = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    late = threading.Event()
    watchdog = threading.Timer(LONGEST, lambda: (late.set(), tests.kill()))
    watchdog.daemon = True
    watchdog.start()
    printed = ""
    try:
        for line in tests.stdout:
            printed += line
            # One failure is enough: the other comparisons need not end.
            if without and FAILED.search(line):
                tests.kill()
        passes = tests.wait() == 0
    finally:
        tests.kill()
        watchdog.cancel()
    if late.is_set():
        sys.exit(f"{printed}\nwithout {without}: not finished after {LONGEST} s")
    return passes, printed


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
    started = time.monotonic()
    passes, printed = run(binary, None)
    if not passes:
        sys.exit(printed + "\nthe comparisons fail with every barrier in place; mend that first")
    print(f"with every barrier: passes in {time.monotonic() - started:.0f} s", flush=True)

    rows = []
    for name, line, function, fence in found:
        place = f"kernels/{name}:{line}"
        report = ""
        if fence:
            verdict = "fence, not judged"
        else:
            passes, printed = run(binary, place)
            if f"the barrier at {place} is left out" not in printed:
                verdict = "unreached"
            elif passes:
                verdict = "missed, explained" if explained(name, line) else "missed"
            else:
                verdict = "caught"
                first = REPORT.search(printed)
                report = first[0].strip() if first else "a comparison fails"
        rows.append({"place": place, "function": function, "verdict": verdict, "report": report})
        print(f"{verdict:18} {place} {function}" + (f"\n{'':18} {report}" if report else ""), flush=True)

    caught = sum(row["verdict"] == "caught" for row in rows)
    barriers = sum(not row["verdict"].startswith("fence") for row in rows)
    print(f"{caught} of {barriers} barriers caught, {len(rows) - barriers} fences not judged")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(any(row["verdict"] in ("missed", "unreached") for row in rows))


if __name__ == "__main__":
    main()
