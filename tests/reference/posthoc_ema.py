"""The fixture posthoc_ema.json: power-function averages of drifting weights, tracked at two widths, and a third
width that NVlabs' code reconstructs from their snapshots, beside the same width tracked from the start. All in
float64.

The weights are sums of dyadic fractions, so any program has them exactly: of each weight the state s starts at
its seed, and at every update s becomes s·6364136223846793005 + 1442695040888963407 (mod 2^64) and the weight,
0 before, grows by (⌊s/2^48⌋ − 32768)/65536 + drift. Update u of 1, 2, … comes after u·batch_size images.

Each entry of `reconstructions` uses a snapshot of every tracked width after each `every` updates until `until`,
and gives the reconstruction at the last of them; `coefficients` go with snapshots in order of their time, at each
time in order of `tracked_stds`.
"""

import json

import torch

import nvlabs
from cases import case

SEEDS, DRIFTS = [1, 2, 3, 4], [0.0, 1 / 64, -1 / 32, 3 / 64]
TRACKED, WANTED = [0.05, 0.10], 0.075
BATCH, UPDATES = 16, 1600


def drifting(seed, drift):
    weight = 0.0
    for _ in range(UPDATES):
        seed = (seed * 6364136223846793005 + 1442695040888963407) % 2**64
        weight += ((seed >> 48) - 32768) / 65536 + drift
        yield weight


def reconstruct(phema, averages, every, until):
    """Coefficients and the reconstruction from snapshots of the tracked widths."""
    times = range(every, until + 1, every)
    snapshots = [(update * BATCH, std, averages[update][std]) for update in times for std in TRACKED]
    images, stds, values = zip(*snapshots)
    coefficients = phema.solve_posthoc_coefficients(images, stds, until * BATCH, WANTED)[:, 0]
    return coefficients, sum(c * value for c, value in zip(coefficients, values))


@case("posthoc_ema", needs_nvlabs=True, suffix=".json")
def _(draw, path):
    phema = nvlabs.module("training.phema")
    net = torch.nn.Module()
    net.w = torch.nn.Parameter(torch.zeros(len(SEEDS), dtype=torch.float64))
    ema = phema.PowerFunctionEMA(net, [*TRACKED, WANTED])
    weights = list(zip(*map(drifting, SEEDS, DRIFTS)))
    averages = {}
    for update, now in enumerate(weights, 1):
        net.w.data.copy_(torch.tensor(now, dtype=torch.float64))
        ema.update(cur_nimg=update * BATCH, batch_size=BATCH)
        averages[update] = {std: average.w.detach().numpy().copy() for std, (average, _) in zip(ema.stds, ema.get())}

    entries = []
    for every, until in [(8, UPDATES), (80, UPDATES), (8, 960), (160, 480)]:
        coefficients, made = reconstruct(phema, averages, every, until)
        direct = averages[until][WANTED]
        entries.append({"every": every, "until": until, "reconstructed": list(made), "direct": list(direct)})
        if len(coefficients) < 10:
            entries[-1]["coefficients"] = list(coefficients)
    content = {
        "source": f"NVlabs EDM2 {nvlabs.COMMIT}, training/phema.py",
        "batch_size": BATCH, "updates": UPDATES, "tracked_stds": TRACKED, "std": WANTED,
        "seeds": SEEDS, "drifts": DRIFTS, "first_weights": weights[0], "last_weights": weights[-1],
        "tracked": {str(std): list(averages[UPDATES][std]) for std in TRACKED},
        "reconstructions": entries,
    }  # fmt: skip
    path.write_text(json.dumps(content, indent=1) + "\n")
    made, direct = (torch.tensor(entries[0][key]) for key in ("reconstructed", "direct"))
    return {"reconstructed from 200 snapshots": ((made - direct).abs().max() / (1e-6 * direct.abs().max())).item()}
