"""Compiles the bindings of the CUDA kernels for CPU tensors: see cuda_bindings_on_cpu.h."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

NEEDS = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, for the headers of CUDA"),
    pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="needs LoRun's source folder"),
]


def load(source: Path, folder: Path) -> ctypes.CDLL:
    path = folder / f"{source.stem}.so"
    torch_folder = Path(torch.__file__).parent
    command = ["nvcc", "-std=c++20", "-shared", "-cudart=none", "-Xcompiler=-fPIC"]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{ROOT}/csrc", f"-I{torch_folder}/include"]
    # -Bsymbolic: the stand-ins for torch's functions are called, not torch's.
    command += [f"-L{torch_folder}/lib", "-Xlinker=-Bsymbolic,--no-as-needed", "-ltorch"]
    subprocess.run([*command, str(source), "-o", str(path)], check=True, timeout=120)
    torch.ops.load_library(path)
    library = ctypes.CDLL(str(path))
    library.last_call.restype = ctypes.c_char_p
    return library
