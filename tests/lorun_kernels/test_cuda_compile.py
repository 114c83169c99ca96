"""Every CUDA file compiles for every GPU that is served, and no kernel spills registers to memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "csrc"
FILES = sorted((SOURCES / "cuda").glob("*.cu"))
ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]

KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '\S+'\n.*\n"
    r".* (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers"
)


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


def compile_report(file: Path, architecture: str, folder: Path) -> str:
    """What ptxas says about the kernels of a file."""
    cubin = folder / f"{file.stem}.{architecture}.cubin"
    command = [
        find_nvcc(),
        "-cubin",
        f"-arch={architecture}",
        "-std=c++20",
        "-O3",
        "-Xptxas=-v",
        f"-I{SOURCES}",
    ]
    result = subprocess.run([*command, str(file), "-o", str(cubin)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """(file, architecture) -> report, compiled two at a time."""
    if find_nvcc() is None:
        pytest.skip("needs nvcc, to compile the CUDA kernels")
    folder = tmp_path_factory.mktemp("cubins")
    pairs = list(product(FILES, ARCHITECTURES))
    with ThreadPoolExecutor(2) as pool:
        texts = pool.map(lambda pair: compile_report(*pair, folder), pairs)
        return dict(zip(pairs, texts, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_kernel_spills(reports, file, architecture):
    report = reports[file, architecture]
    kernels = list(KERNEL.finditer(report))
    assert len(kernels) == report.count("Compiling entry function") > 0
    for kernel in kernels:
        print(f"{kernel['registers']:>4} registers  {kernel['name']}")
    spilling = [kernel["name"] for kernel in kernels if kernel["stores"] != "0" or kernel["loads"] != "0"]
    assert not spilling
