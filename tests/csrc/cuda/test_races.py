"""The kernels have no race: ThreadSanitizer watches them on the emulated device."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .on_host import emulator

PROGRAMS = sorted(emulator.TESTS.glob("*/*races.cpp"))


@pytest.fixture(scope="module", params=PROGRAMS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def program(request, tmp_path_factory) -> Path:
    """Launches the kernels of a family under ThreadSanitizer."""
    where = subprocess.run(
        [emulator.compiler(), "-print-file-name=libtsan.so"], capture_output=True, text=True
    )
    if not Path(where.stdout.strip()).is_absolute():
        pytest.skip("needs ThreadSanitizer (libtsan), which this g++ lacks")
    sources = [*emulator.kernels(request.param.parent.name), request.param]
    return emulator.build(tmp_path_factory.mktemp("races") / "races", sources, "-fsanitize=thread")


def run(program: Path, **environment: str) -> subprocess.CompletedProcess:
    """ThreadSanitizer ends a program with exit code 66 after a report."""
    result = subprocess.run(
        [program], env=os.environ | environment, capture_output=True, text=True, timeout=120
    )
    if "FATAL: ThreadSanitizer" in result.stderr:
        pytest.skip(f"ThreadSanitizer cannot run on this machine: {result.stderr.splitlines()[0]}")
    return result


def test_the_kernels_have_no_race(program):
    result = run(program)
    assert result.returncode == 0, result.stdout + result.stderr


def test_without_barriers_the_race_check_reports(program):
    result = run(program, CUDA_ON_HOST_WITHOUT_BARRIERS="1")
    assert result.returncode == 66
    assert "WARNING: ThreadSanitizer: data race" in result.stderr
