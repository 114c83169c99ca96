"""Memory as the framework and the system count it: bytes kept for backward, and the peak of a call.

    python -m benchmarks.harness.memory GROUP ARGUMENTS CANDIDATE

prints by how many bytes one call of a candidate raised the resident size of its process, at the peak.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn


def kept_bytes(forward: Callable[[], object]) -> int:
    """Bytes that autograd keeps from `forward` until backward, without parameters."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        # A view of a parameter, such as a transposed weight, has no memory of its own.
        if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()  # kept alive until here, so that no address is used twice
    del result
    return sum(kept.values())


def peak_in_fresh_process(group: str, arguments: dict, candidate: str) -> int | None:
    """The peak of one call in a process of its own; None if this system does not report it."""
    command = [sys.executable, "-m", "benchmarks.harness.memory", group, json.dumps(arguments), candidate]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {candidate} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_bytes(call: Callable[[], object]) -> int | None:
    """By how much a call raises the resident size of this process at its peak; None except on Linux."""
    call()  # what is set up once does not belong to a call
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the peak
    except (OSError, AttributeError):
        return None
    before = _status("VmRSS")
    result = call()
    peak = _status("VmHWM") - before
    del result
    return peak


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def main() -> None:
    from benchmarks.table import entry  # the table's cases import this file

    group, arguments, name = sys.argv[1:4]
    case = entry(group).build(device="cpu", **json.loads(arguments))
    call = case.candidates[name].call
    with nullcontext() if case.grad else torch.no_grad():
        print(json.dumps(peak_bytes(lambda: call(0))))


if __name__ == "__main__":
    main()
