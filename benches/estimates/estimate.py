"""Cycles of a step's launches, estimated from their machine code with sass-cycles; no GPU, and no measurement.

    cargo bench --bench estimates -- OUT --target v100 --batch 1
    SASS/.venv/bin/python benches/estimates/estimate.py OUT --sass-cycles SASS [--only REGEX] [--json FILE]

SASS is the folder of sass-cycles after its `setup.sh`. Each different launch is simulated for one wave of blocks on
one multiprocessor; the whole grid is waves added up. The tool's fake memory decides who draws the last ticket where
blocks join their sums: with `--tickets joined`, the default, every block does (an upper bound, but for gradients of
convolutions' weights, which join in groups: there none does); with `free` none. In a forward convolution one block of
as many as there are slices reads the parts of others, which then come as many times faster than L2 serves all.
"""

import argparse
import json
import multiprocessing
import os
import re
import struct
import sys

ONE = 0x3F800000  # in float32
NEVER = 0x7FFFFFFF  # a ticket that is not the last


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="what `cargo bench --bench estimates` wrote")
    parser.add_argument("--sass-cycles", required=True, metavar="FOLDER")
    parser.add_argument("--only", default="", metavar="REGEX", help="of `step program operation label kernel`")
    parser.add_argument("--tickets", choices=("joined", "free"), default="joined")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--json", metavar="FILE", help="also write all figures of the tool")
    return parser.parse_args()


def loaded(folder):
    """sass-cycles, and its kernels read so far."""
    sys.path.insert(0, folder)
    from sass_cycles import disassembly, estimate, issue, launch, machine, toolchain

    return disassembly, estimate, issue, launch, machine, toolchain


def one_block_reads_parts(issue, slices):
    """What passes by the first cache is what other blocks stored; of `slices` blocks one reads it."""
    memory = getattr(issue.Sm, "memory_of_all", issue.Sm.memory)

    def of_one(sm, instruction, touched, now):
        rate = sm.l2_rate
        if touched and touched[0] == "load_l2":
            sm.l2_rate = min(sm.m.l2_port, slices * rate)
        try:
            return memory(sm, instruction, touched, now)
        finally:
            sm.l2_rate = rate

    issue.Sm.memory_of_all, issue.Sm.memory = memory, of_one


def add_pieces(buffers, pieces):
    """The address of a fake buffer of several (bytes, fill), side by side."""
    start = buffers.add(*pieces[0])
    for size, fill in pieces[1:]:
        begin = buffers.ends[-1]
        buffers.starts.append(begin)
        buffers.ends.append(begin + size)
        buffers.fills.append(fill)
    return start


def is_forward(row):
    return row["kernel"].startswith("conv2d_") and "wgrad" not in row["kernel"]


def tickets(row, size, batch, joined):
    """(bytes, fill) of a buffer of tickets: what is drawn is the number of blocks that came before."""
    if not joined:
        return [(size, NEVER)]
    x, y, z = row["grid"]
    if is_forward(row):
        # Of split input channels a ticket a tile, then one for each sample's moments and tile of channels.
        slices = z if z > 1 else 1
        of_slices = 4 * x * y if slices > 1 else 0
        of_slices = min(of_slices, size)
        pieces = [(of_slices, slices - 1), (size - of_slices, x // batch - 1)]
        return [piece for piece in pieces if piece[0]]
    counts = {
        "group_norm_stats": y,
        "group_norm": batch,
        "row_linear": z,
        "sampler_update": x,
        "grad_norm": x * y,
        "mse_loss": x * y,
        "edm_loss": x * y,
    }
    for family, blocks in counts.items():
        if row["kernel"].startswith(family):
            return [(size, blocks - 1)]
    return [(size, NEVER)]


def estimated(job):
    options, batch, row = job
    disassembly, estimate, issue, launch, machine, toolchain = loaded(options.sass_cycles)
    one_block_reads_parts(issue, row["grid"][2] if is_forward(row) else 1)
    path = os.path.join(options.folder, row["cubin"])
    kernel = disassembly.from_cubin(path, toolchain.nvdisasm(), row["symbol"])
    buffers = launch.Buffers()
    params = bytearray.fromhex(row["params"])
    for pointer in row["pointers"]:
        size = max(16, pointer["bytes"])
        # Step counters and tickets are the integers that kernels read; a norm of one is finite.
        if pointer["dtype"] == "U32" and pointer["written"]:
            pieces = tickets(row, size, batch, options.tickets == "joined")
        else:
            pieces = [(size, {"U32": 0, "F32": ONE}.get(pointer["dtype"], launch.DEFAULT_FILL))]
        struct.pack_into("<Q", params, pointer["field"], add_pieces(buffers, pieces))
    target = machine.TARGETS[options.target]
    launched = launch.Launch(kernel, tuple(row["grid"]), tuple(row["block"]), bytes(params), row["shared_bytes"], buffers)
    try:
        return estimate.estimate(launched, target, limit=20_000_000)
    except (ValueError, RuntimeError, KeyError) as why:
        return {"error": str(why)}


def show(row, result):
    name = f"{row['program']} {row['label'] or row['operation']}"
    blocks = row["grid"][0] * row["grid"][1] * row["grid"][2]
    if "error" in result:
        return f"{name:44.44} {row['kernel']:40.40} {row['count']:3} {blocks:6}  {result['error']}"
    limit = 3 * max(row["flops_floor_us"], row["bytes_floor_us"]) + 2
    floor = max(row["flops_floor_us"], row["bytes_floor_us"])
    pipe = result["bottleneck"]
    return (
        f"{name:44.44} {row['kernel']:40.40} {row['count']:3} {blocks:6} {result['cycles'] / 1e3:10.1f} "
        f"{result['microseconds']:9.2f} {floor:8.2f} {limit:8.2f}  {pipe} {100 * result['busy'][pipe]:.0f} %"
    )


def main():
    options = arguments()
    with open(os.path.join(options.folder, "launches.json")) as file:
        step = json.load(file)
    options.target = step["target"]
    asked = re.compile(options.only)
    keys = ("step", "program", "operation", "label", "kernel")
    rows = [row for row in step["launches"] if asked.search(" ".join(row[key] for key in keys))]
    print(f"{step['preset']}, batch {step['batch']}, {step['target']}, {step['precision']}: {len(rows)} launches")
    print(
        f"{'launch':44} {'kernel':40} {'n':>3} {'blocks':>6} {'kilocycles':>10} {'us':>9} {'floor':>8} {'limit':>8}  busiest"
    )
    results = []
    with multiprocessing.Pool(options.jobs) as pool:
        for row, result in zip(rows, pool.imap(estimated, [(options, step["batch"], row) for row in rows])):
            print(show(row, result), flush=True)
            results.append({**row, "estimate": result})
    if options.json:
        with open(options.json, "w") as file:
            json.dump({**step, "tickets": options.tickets, "launches": results}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
