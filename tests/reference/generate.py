"""Write the fixtures into tests/fixtures: all of them, or those named on the command line."""

import argparse

import torch

import edm2  # noqa: F401  (these fill the registry)
import magnitude  # noqa: F401
import networks  # noqa: F401
import nvlabs
import operations  # noqa: F401
import pipeline  # noqa: F401
import posthoc_ema  # noqa: F401
import procedures  # noqa: F401
from cases import generate

if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("names", nargs="*", metavar="NAME")
    arguments.add_argument("--edm2", metavar="CHECKOUT", help="NVlabs' code, for the fixtures that it makes; see nvlabs.py")
    arguments = arguments.parse_args()
    if arguments.edm2:
        nvlabs.use(arguments.edm2)
    torch.set_num_threads(1)
    generate(arguments.names)
