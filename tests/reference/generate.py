"""Write the fixtures into tests/fixtures: all of them, or those named on the command line."""

import sys

import torch

import edm2  # noqa: F401  (these fill the registry)
import magnitude  # noqa: F401
import networks  # noqa: F401
import operations  # noqa: F401
import pipeline  # noqa: F401
import procedures  # noqa: F401
from cases import generate

if __name__ == "__main__":
    torch.set_num_threads(1)
    generate(sys.argv[1:])
