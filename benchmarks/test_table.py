"""Every case of benchmarks/table.py: its candidates checked against each other, and timed in turn.

No clock is asserted. What is measured goes into `extra_info`: benchmarks/report.py makes tables and plots of
it, benchmarks/compare.py compares two runs.
"""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.gpu_timing import BACKWARD_CYCLES, FORWARD_CYCLES, peak_bytes
from benchmarks.limits import measure_limits
from benchmarks.measure import measure
from benchmarks.memory import peak_in_fresh_process
from benchmarks.table import TABLE
from benchmarks.timing import Clock, cpu_clock, gpu_clock


def pytest_generate_tests(metafunc) -> None:
    if "arguments" not in metafunc.fixturenames:
        return
    options = metafunc.config.getoption
    cases = [
        pytest.param(
            entry, arguments, marks=pytest.mark.benchmark(group=entry.group), id=_name(entry, arguments)
        )
        for entry in TABLE
        for arguments in entry.arguments(options("--device"), options("--full"))
    ]
    metafunc.parametrize("entry, arguments", cases)


def _name(entry, arguments: dict) -> str:
    """Such as "cassi-hqs-step-size-256", which -k can take."""
    words = " ".join([entry.group, *(f"{name} {value}" for name, value in arguments.items())])
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def _clock(device: str, cycles: int) -> Clock:
    return gpu_clock(cycles) if device == "cuda" else cpu_clock


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fastest_of_cudnn(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)


@pytest.mark.benchmark(group="limits")
def test_limits(benchmark, keep, device):
    record = measure_limits(
        device, _clock(device, FORWARD_CYCLES), torch.bfloat16 if device == "cuda" else torch.float32
    )
    keep({"group": "limits", **record})
    benchmark.pedantic(lambda: None)
    assert record["flops_per_s"] > 0


def test_case(benchmark, keep, device, mode, entry, arguments):
    case = entry.build(device=device, **arguments)
    record = measure(case, mode, _clock(device, BACKWARD_CYCLES if case.grad else FORWARD_CYCLES))
    for name, candidate in case.candidates.items() if case.peak else ():
        found = record["candidates"][name]
        if device == "cuda":
            with torch.set_grad_enabled(case.grad):
                found["peak_bytes"] = peak_bytes(candidate.call, 0)
        else:
            found["peak_bytes"] = peak_in_fresh_process(entry.group, arguments, name)
    keep({"kind": "case", "group": entry.group, "device": device, "arguments": arguments, **record})
    benchmark.pedantic(case.candidates[case.ours[0]].call, args=(0,))
