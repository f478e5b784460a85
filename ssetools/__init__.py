"""ssetools: make a language model better at one language by training only the neurons that fire for it.

Text -> activation counts -> neuron sets -> a small delta -> numbers and pictures, each step one folder.

The public names are listed in `__init__.pyi` and imported when they are first used, so that `ssetools --help` does not
wait for PyTorch.
"""

import os
from importlib.metadata import PackageNotFoundError, version

import lazy_loader

# OpenMP reads it once, when PyTorch loads. On a machine with other work, threads that spin while they wait take the time
# of the thread that they wait for (benchmarks/busy.py).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

try:
    __version__ = version("ssetools")
except PackageNotFoundError:  # imported from a folder that was never installed
    __version__ = "0+unknown"
