"""What the fixture scripts share: a registry of cases, seeded tensors, and where files go."""

import sys
import zlib
from pathlib import Path
from typing import Callable, NamedTuple

import torch

import nvlabs
from export_case import allowed_shares, export_case, write_case

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"

# PyTorch's own float32 run must stay below this share of the bounds, or a case says little.
OWN_SHARE = 1 / 3

REGISTRY = {}


def case(name, needs_nvlabs=False, suffix=".safetensors"):
    """Register a function `make(draw, path)` that writes the fixture `name`.

    It returns the shares of `allowed_shares`. `draw(*shape)` gives standard normal deviates
    from a generator seeded by the name, so that a fixture doesn't change when others come or go.
    `needs_nvlabs`: it is made by NVlabs' code, see `nvlabs.py`.
    """

    def register(make):
        if name in REGISTRY:
            raise ValueError(f"two cases are named {name}")
        REGISTRY[name] = Case(make, needs_nvlabs, FIXTURES / f"{name}{suffix}")
        return make

    return register


class Case(NamedTuple):
    make: Callable
    needs_nvlabs: bool
    path: Path


class Draw:
    """Seeded random tensors."""

    def __init__(self, name):
        self.seed = zlib.crc32(name.encode())
        self.generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def integers(self, high, *shape):
        return torch.randint(high, shape, generator=self.generator)

    def affine(self, channels):
        """Weight and bias of a norm: near one and near zero, none of them exactly."""
        return 1 + 0.3 * self(channels), 0.3 * self(channels)

    def weight(self, *shape, fan_in=None):
        """A weight scaled by 1/sqrt(fan_in), so that results are about as large as inputs."""
        fan_in = fan_in or max(1, torch.Size(shape[1:]).numel())
        return self(*shape) / fan_in**0.5


def generate(names):
    """Write the named cases, all of them by default, and report how well conditioned they are."""
    unknown = set(names) - set(REGISTRY)
    if unknown:
        sys.exit(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(REGISTRY)}")
    FIXTURES.mkdir(exist_ok=True)
    worst, left_out = 0.0, []
    for name in names or REGISTRY:
        made = REGISTRY[name]
        if made.needs_nvlabs and not nvlabs.available():
            left_out.append(name)
            continue
        shares = made.make(Draw(name), made.path)
        tensor, share = max(shares.items(), key=lambda item: item[1])
        remark = "" if share <= OWN_SHARE else "   ILL CONDITIONED"
        size = made.path.stat().st_size / 1024
        print(f"{name:44} {size:7.1f} KiB   share {share:.3f} ({tensor}){remark}", flush=True)
        worst = max(worst, share)
    if left_out:
        message = f"left out, as they need NVlabs' code (--edm2 CHECKOUT): {', '.join(left_out)}"
        sys.exit(message) if names else print(message)
    if not worst <= OWN_SHARE:
        sys.exit(f"a case is too ill conditioned: PyTorch's float32 run takes more than {OWN_SHARE:.2f} of the bounds")


__all__ = ["Draw", "FIXTURES", "allowed_shares", "case", "export_case", "generate", "write_case"]
