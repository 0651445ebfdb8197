"""NVlabs' own EDM2, run from a local checkout: the source of the fixtures of its network, sampler, training and
averages.

    git clone https://github.com/NVlabs/edm2
    git -C edm2 checkout 4bf8162f601bcc09472ce8a32dd0cbe8889dc8fc
    python tests/reference/generate.py --edm2 edm2

Nothing of that code is in this repository (its licence is CC BY-NC-SA 4.0); the fixtures are numbers that it
computed from random weights of ours. It is run as it is: what the scripts need otherwise (float64, given noise)
they get by standing in for the name `torch` in its modules.
"""

import contextlib
import importlib
import subprocess
import sys
from pathlib import Path

import torch

COMMIT = "4bf8162f601bcc09472ce8a32dd0cbe8889dc8fc"

_checkout = None


def use(folder):
    """Take NVlabs' code from this checkout, which must be the commit above without changes."""
    global _checkout
    folder = Path(folder).resolve()
    git = lambda *words: subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True)
    if not (folder / "training" / "networks_edm2.py").is_file():
        sys.exit(f"{folder} is no checkout of NVlabs' EDM2: git clone https://github.com/NVlabs/edm2")
    if git("rev-parse", "HEAD").stdout.strip() != COMMIT or git("status", "--porcelain", "-uno").stdout:
        sys.exit(f"{folder} is not as committed in {COMMIT}: git -C {folder} checkout -f {COMMIT}")
    sys.path.insert(0, str(folder))
    _checkout = folder


def available():
    return _checkout is not None


def module(name):
    """A module of the checkout, such as `training.phema`."""
    if _checkout is None:
        sys.exit("this needs NVlabs' code: give --edm2 CHECKOUT")
    return importlib.import_module(name)


def networks():
    return module("training.networks_edm2")


@contextlib.contextmanager
def arithmetic(dtype):
    """Makes NVlabs' networks compute in float64 where they are asked to: they cast to `torch.float32` everywhere."""
    if dtype != torch.float64:
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        with torch_with(networks(), float32=dtype):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


class _Torch:
    """`torch`, but for a few names."""

    def __init__(self, **names):
        self.__dict__.update(names)

    def __getattr__(self, name):
        return getattr(torch, name)


@contextlib.contextmanager
def torch_with(owner, **names):
    """While it lasts, the module `owner` of the checkout sees these things in place of PyTorch's."""
    original = owner.torch
    owner.torch = _Torch(**names)
    try:
        yield
    finally:
        owner.torch = original
