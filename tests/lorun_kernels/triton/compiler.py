"""Compiles the kernels that a launcher would start on a GPU that is not here, and reads what they need."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction


@dataclass(frozen=True)
class Usage:
    """Registers and bytes of spill per thread, bytes of shared memory per block, instructions of the PTX."""

    kernel: str
    warps: int
    registers: int
    spills: int
    shared: int
    instructions: frozenset[str]


class _AbsentGPU:
    """Answers what a Triton launch asks of the active driver before it compiles."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    # Triton caches its compiled kernels by device: one device per architecture keeps these apart.
    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def _usage(compiled: CompiledKernel) -> Usage:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack, local = (
        int(re.search(rf"{field}:(\d+)", report)[1]) for field in ("REG", "STACK", "LOCAL")
    )
    instructions = frozenset(
        re.findall(r"^\s*(?:@\S+\s+)?([a-z][\w.:]+)\s", compiled.asm["ptx"], re.MULTILINE)
    )
    meta = compiled.metadata
    return Usage(meta.name, meta.num_warps, registers, stack + local, meta.shared, instructions)


def compile_launches(launch: Callable[[], None], arch: int) -> list[Usage]:
    """What each kernel that `launch` starts needs on sm_`arch`; nothing runs, so meta tensors suffice."""
    run = JITFunction.run
    compiled = []

    def compile_only(kernel, *args, warmup, **options):
        compiled.append(run(kernel, *args, warmup=True, **options))

    absent_gpu = mock.patch.object(driver, "_active", _AbsentGPU(arch))
    with absent_gpu, mock.patch.object(JITFunction, "run", compile_only):
        launch()
    return [_usage(kernel) for kernel in compiled]
