"""Options of `pytest benchmarks/`, what a results file says about the machine, and the tables at the end."""

from __future__ import annotations

import os
import time

import pytest

from benchmarks.harness.machine import describe
from benchmarks.harness.timing import FULL, GPU, QUICK, Mode
from benchmarks.report.page import terminal_lines
from benchmarks.report.run import Run

# Seconds after which no further benchmark starts, so that a run with a time limit still writes its results.
_SECONDS = float(os.environ.get("LORUN_BENCHMARK_SECONDS", "inf"))
_started = time.monotonic()
_records: list[dict] = []
_out_of_time: list[str] = []
# By node id; after an interrupt, the interrupted benchmark and the later ones are left in it.
_unfinished: dict[str, str] = {}


def pytest_addoption(parser) -> None:
    group = parser.getgroup("lorun", "LoRun's benchmarks")
    group.addoption("--full", action="store_true", help="every case and many rounds; about half an hour")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where the table's cases run")


def pytest_configure(config) -> None:
    # pytest-benchmark's own table shows only one candidate of each comparison.
    config.option.benchmark_quiet = True


@pytest.fixture
def device(request) -> str:
    return request.config.getoption("--device")


@pytest.fixture
def mode(request, device) -> Mode:
    if device == "cuda":
        return GPU
    return FULL if request.config.getoption("--full") else QUICK


@pytest.fixture
def keep(benchmark):
    """keep(record) puts a record into the results file and into the tables at the end."""

    def add(record: dict) -> None:
        benchmark.extra_info.update(record)
        _records.append(record)

    return add


def pytest_benchmark_update_machine_info(config, machine_info) -> None:
    machine_info.clear()
    machine_info.update(describe())


def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    output_json["out_of_time"] = _not_run()


def pytest_collection_finish(session) -> None:
    _unfinished.update({item.nodeid: item.name for item in session.items if "benchmark" in item.fixturenames})


def pytest_runtest_logfinish(nodeid) -> None:
    _unfinished.pop(nodeid, None)


def _not_run() -> list[str]:
    return [*_out_of_time, *_unfinished.values()]


def pytest_runtest_setup(item) -> None:
    if time.monotonic() - _started > _SECONDS:
        _out_of_time.append(item.name)
        pytest.skip(f"out of time: LORUN_BENCHMARK_SECONDS is {_SECONDS:.0f}")


def pytest_terminal_summary(terminalreporter) -> None:
    if _records:
        terminalreporter.section("LoRun against its peers")
        for line in terminal_lines(Run(describe(), "this one", "today", _records, _not_run())):
            terminalreporter.line(line)
