"""Benchmarks of LoRun beside its peers: `pytest benchmarks/`."""

import sys
from pathlib import Path

# After `pip install .` the compiled packages are not in this folder: it must not hide them.
_root = Path(__file__).resolve().parents[1]
sys.path = [path for path in sys.path if Path(path).resolve() != _root] + [str(_root)]
