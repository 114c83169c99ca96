"""Compile the Triton kernels of the layers before they are timed.

    python -m benchmarks.harness.warm_up PART PARTS

runs one in PARTS of the layers' cases once on Triton, which puts the kernels into Triton's cache. Several
processes can do so beside the GPU tests: a hundred kernels would not fit into the benchmark's own time.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

import torch

from benchmarks.cases.lora_layer import BARE, FORWARD, TRAINING
from benchmarks.harness.case import OURS
from benchmarks.table import entry


def main(part: int, parts: int, device: str = "cuda") -> None:
    """Run the cases `part`, `part` + `parts`, ... of the layers."""
    entries = [entry(group) for group in (FORWARD, TRAINING, BARE)]
    work = [(one, arguments) for one in entries for arguments in one.arguments(device, full=False)]
    for one, arguments in work[part::parts]:
        case = one.build(device=device, **arguments)
        with nullcontext() if case.grad else torch.no_grad():
            case.candidates[f"{OURS}, triton"].call(0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
