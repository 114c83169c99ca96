"""Every case of benchmarks/table.py: its candidates checked against each other, and timed in turn.

No clock is asserted. What is measured goes into `extra_info`: benchmarks/report.py makes tables and plots of
it, benchmarks/compare.py compares two runs.
"""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.case import Case
from benchmarks.gpu_timing import FORWARD_CYCLES, peak_bytes
from benchmarks.limits import measure_limits
from benchmarks.measure import Wrong, measure
from benchmarks.memory import peak_in_fresh_process
from benchmarks.table import TABLE
from benchmarks.timing import Mode, cpu_clock, gpu_clock
from benchmarks.watch import Probe, Watch


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


@pytest.fixture(scope="session")
def probe() -> Probe:
    return Probe()


@pytest.fixture
def watch(probe, device, mode: Mode) -> Watch | None:
    """Of a CPU; nothing takes part of a GPU."""
    return None if device == "cuda" else Watch(probe.disturbed, patience=mode.seconds / 2)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fastest_of_cudnn(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)


def _peak(device: str, group: str, arguments: dict, case: Case, name: str) -> int | None:
    if device != "cuda":
        return peak_in_fresh_process(group, arguments, name)
    with torch.set_grad_enabled(case.grad):
        return peak_bytes(case.candidates[name].call, 0)


@pytest.mark.benchmark(group="limits")
def test_limits(benchmark, keep, device):
    clock, dtype = cpu_clock, torch.float32
    if device == "cuda":
        clock, dtype = gpu_clock(FORWARD_CYCLES), torch.bfloat16
    record = measure_limits(device, clock, dtype)
    keep({"group": "limits", **record})
    benchmark.pedantic(lambda: None)
    assert record["flops_per_s"] > 0


def test_case(benchmark, keep, device, mode, watch, entry, arguments):
    case = entry.build(device=device, **arguments)
    failures = None
    try:
        record = measure(case, mode, device, watch)
    except Wrong as wrong:  # what is right stays in the results
        record, failures = wrong.record, wrong
    keep({"kind": "case", "group": entry.group, "device": device, "arguments": arguments, **record})
    for name in case.candidates if case.peak else ():
        record["candidates"][name]["peak_bytes"] = _peak(device, entry.group, arguments, case, name)
    benchmark.pedantic(lambda: None)
    if failures:
        raise failures
