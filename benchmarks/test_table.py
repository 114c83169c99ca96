"""Every case of benchmarks/table.py: its candidates are checked against each other, then timed in turn.

No time is asserted. What is measured goes into `extra_info`: benchmarks/report/ makes tables and plots of it,
and benchmarks/compare.py compares two runs.
"""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.harness.case import Case
from benchmarks.harness.gpu import kernel_names, peak_bytes
from benchmarks.harness.limits import measure_limits
from benchmarks.harness.measure import Wrong, measure
from benchmarks.harness.memory import peak_in_fresh_process
from benchmarks.harness.timing import Mode, cpu_clock, gpu_clock
from benchmarks.harness.watch import Probe, Watch
from benchmarks.table import TABLE

# These keep a GPU busy while a copy or a product is launched.
HIDING_CYCLES = 500_000


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
    """For a CPU only: nobody else uses the GPU."""
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


def _kernels(device: str, case: Case, name: str) -> list[str] | None:
    if device != "cuda":
        return None
    with torch.set_grad_enabled(case.grad):
        return kernel_names(case.candidates[name].call, 0)


@pytest.mark.benchmark(group="limits")
def test_limits(benchmark, keep, device):
    clock, dtype = cpu_clock, torch.float32
    if device == "cuda":
        clock, dtype = gpu_clock(HIDING_CYCLES), torch.bfloat16
    record = measure_limits(device, clock, dtype)
    keep({"group": "limits", **record})
    benchmark.pedantic(lambda: None)
    assert record["flops_per_s"] > 0


def test_case(benchmark, keep, device, mode, watch, entry, arguments):
    case = entry.build(device=device, **arguments)
    failures = None
    try:
        record = measure(case, mode, device, watch)
    except Wrong as wrong:  # the right results are kept
        record, failures = wrong.record, wrong
    keep({"kind": "case", "group": entry.group, "device": device, "arguments": arguments, **record})
    for name in case.candidates if case.peak else ():
        record["candidates"][name]["peak_bytes"] = _peak(device, entry.group, arguments, case, name)
    for name in case.candidates if case.kernels else ():
        record["candidates"][name]["kernels"] = _kernels(device, case, name)
    benchmark.pedantic(lambda: None)
    if failures:
        raise failures
