"""Builds the CUDA kernels for the CPU and calls them with tensors between guards.

The emulated device is in cuda_runtime.h and cuda_on_host.cpp. A test reaches the kernels through a
`*launchers.cpp` beside it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
TESTS = HERE.parent
CUDA = HERE.parents[3] / "csrc/cuda"

FLAGS = ["-std=c++20", "-O1", "-g", "-fPIC", "-pthread", "-fno-strict-aliasing", "-Wno-unknown-pragmas"]
INCLUDES = [f"-I{HERE}", f"-I{CUDA.parent}"]
# Tensor-core instructions one by one, which is slow, in place of the plain loops that stand in for them.
DEVICE_FORM = ["-D__CUDA_ARCH__=800", f"-I{HERE / 'ptx'}"]

# Removed when the process ends.
OBJECTS = tempfile.TemporaryDirectory(prefix="cuda_on_host_")

# Elements of NaN on both sides of every buffer.
GUARD = 64
SAME_SIZE_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def compiler() -> str | None:
    return shutil.which("g++")


def kernels(family: str) -> list[Path]:
    """The CUDA files of "cassi" or of "lora"."""
    return sorted((CUDA / family).glob("*.cu"))


@functools.cache
def compiled(source: Path, flags: tuple[str, ...]) -> Path:
    """The object file of a source, which tests share."""
    digest = hashlib.sha256(repr((source, flags)).encode()).hexdigest()[:12]
    target = Path(OBJECTS.name) / f"{source.name}.{digest}.o"
    command = [compiler(), *FLAGS, *flags, *INCLUDES, "-c", "-x", "c++", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def build(target: Path, sources: list[Path], *flags: str) -> Path:
    """Compiles `sources` and the emulated device, two at a time, and links them into `target`."""
    sources = [*sources, HERE / "cuda_on_host.cpp"]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda source: compiled(source, flags), sources))
    link = ["-shared"] if target.suffix == ".so" else []
    subprocess.run([compiler(), *FLAGS, *flags, *link, *map(str, objects), "-o", str(target)], check=True)
    return target


def load(folder: Path, sources: list[Path], *flags: str) -> ctypes.CDLL:
    library = ctypes.CDLL(str(build(folder / "cuda_on_host.so", sources, *flags)))
    library.cuda_on_host_fault.restype = ctypes.c_char_p
    return library


class KernelError(RuntimeError):
    """A launch was refused, or the kernel did something that a GPU may not notice."""


class Guarded:
    """A tensor with the sizes, strides and alignment of `like`, alone between NaN: also between its elements.

    An element read from outside is NaN, and `check` finds one written outside.
    """

    def __init__(self, like: Tensor, copy: bool = True):
        pairs = zip(like.shape, like.stride(), strict=True)
        extent = 1 + sum((size - 1) * stride for size, stride in pairs) if like.numel() else 0
        integer = SAME_SIZE_INTEGER[like.element_size()]
        self._start = GUARD + like.storage_offset() % (16 // like.element_size())
        self._bits = torch.full((self._start + extent + GUARD,), -1, dtype=integer)
        self.tensor = self._view(self._bits.view(like.dtype), like)
        if copy:
            self._distinct(self.tensor).copy_(self._distinct(like))

    def _view(self, flat: Tensor, like: Tensor) -> Tensor:
        return flat.as_strided(like.shape, like.stride(), self._start)

    @staticmethod
    def _distinct(tensor: Tensor) -> Tensor:
        """Without the repetitions along dimensions of stride 0."""
        for dim, stride in enumerate(tensor.stride()):
            if stride == 0 and tensor.shape[dim] > 1:
                tensor = tensor.narrow(dim, 0, 1)
        return tensor

    def check(self) -> None:
        bits = self._bits.clone()
        self._distinct(self._view(bits, self.tensor)).fill_(-1)
        if not bool((bits == -1).all()):
            places = (bits != -1).nonzero().flatten()[:4] - self._start
            raise KernelError(f"a kernel wrote outside of its tensor, at elements {places.tolist()}")


def run(library: ctypes.CDLL, function: Callable, *arguments: object) -> None:
    code = function(*arguments)
    if code:
        fault = library.cuda_on_host_fault().decode()
        raise KernelError(f"{function.__name__} returned cudaError {code}: {fault or 'refused'}")
