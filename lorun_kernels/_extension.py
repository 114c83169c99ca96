"""Loads the compiled module _C, or says in one sentence what to run."""

import json
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
# In a source folder only an editable build puts _C where this file is.
EDITABLE = "-e " if (FOLDER.parent / "setup.py").exists() else ""
REBUILD = f"run `pip install --force-reinstall --no-deps {EDITABLE}.` in LoRun's source folder"


def _check_torch(record: Path):
    """Refuses a _C built for another torch before it is loaded, since its symbols may not resolve there."""
    if not record.exists():
        raise ImportError(
            f"lorun_kernels has not been compiled (no {record.name} in {record.parent}): {REBUILD}"
        )
    built = json.loads(record.read_text())["torch"]
    # CPU and CUDA wheels of one release share the CPU library that _C links to: the label after + may differ.
    if built.partition("+")[0] != torch.__version__.partition("+")[0]:
        raise ImportError(
            f"lorun_kernels was built with torch {built}, but torch {torch.__version__} is running: {REBUILD}"
        )


_check_torch(FOLDER / "_build.json")

try:
    from lorun_kernels import _C
except ImportError as error:
    raise ImportError(f"lorun_kernels._C cannot be loaded ({error}): {REBUILD}") from error

build_info = _C.build_info
