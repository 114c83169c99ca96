"""The machine that a run was made on."""

from __future__ import annotations

import os
import platform
import subprocess

import torch

import lorun_kernels as lk


def describe() -> dict:
    """Processor, threads, compiler, packages, GPU and clocks; nothing that identifies the owner."""
    build = lk.build_info()
    return {
        "cpu": cpu_name(),
        "cpu_mhz": _cpu_mhz(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiler": build["compiler"],
        "cxx_flags": build["cxx_flags"],
        "gpu": _gpu(),
    }


def cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpu_mhz() -> float | None:
    value = _cpuinfo("cpu MHz")
    return float(value) if value else None


def _cpuinfo(key: str) -> str | None:
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.split(":")[1].strip() for line in file if line.startswith(key)), None)
    except OSError:
        return None


def _gpu() -> dict | None:
    if not torch.cuda.is_available():
        return None
    clocks = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit", "driver_version")
    command = ["nvidia-smi", f"--query-gpu={','.join(clocks)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        values = [value.strip() for value in answer.splitlines()[0].split(",")]
    except (OSError, subprocess.CalledProcessError, IndexError):
        values = [None] * len(clocks)
    gpu = torch.cuda.get_device_properties(0)
    return {"name": gpu.name, "memory_bytes": gpu.total_memory, "cuda": torch.version.cuda} | dict(
        zip(clocks, values, strict=True)
    )
