"""Benchmarks of LoRun beside its peers: `pytest benchmarks/`."""

import sys
from pathlib import Path

# After `pip install .` the packages beside this one are not compiled: they must not hide what is installed.
_root = Path(__file__).resolve().parents[1]
sys.path = [path for path in sys.path if Path(path).resolve() != _root] + [str(_root)]
