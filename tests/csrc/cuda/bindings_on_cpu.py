"""Compiles the bindings of the CUDA kernels for CPU tensors: see bindings_on_cpu.h."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"

NEEDS_NVCC = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, for the headers of CUDA")


def load(source: Path, folder: Path) -> ctypes.CDLL:
    target = folder / f"{source.stem}.so"
    torch_folder = Path(torch.__file__).parent
    command = ["nvcc", "-std=c++20", "-shared", "-cudart=none", "-Xcompiler=-fPIC"]
    command += [f"-I{path}" for path in (HERE, CSRC, torch_folder / "include")]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
    # -Bsymbolic: the stand-ins for torch's functions are called, not torch's own.
    command += [f"-L{torch_folder}/lib", "-Xlinker=-Bsymbolic,--no-as-needed", "-ltorch"]
    subprocess.run([*command, str(source), "-o", str(target)], check=True, timeout=120)
    torch.ops.load_library(target)
    library = ctypes.CDLL(str(target))
    library.last_call.restype = ctypes.c_char_p
    return library
