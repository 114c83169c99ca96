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


def compile_command(architecture: str) -> list[str]:
    return [find_nvcc(), f"-arch={architecture}", "-std=c++20", "-O3", f"-I{SOURCES}"]


def compile_report(file: Path, architecture: str, folder: Path) -> str:
    """What ptxas says about the kernels of a file."""
    cubin = folder / f"{file.stem}.{architecture}.cubin"
    command = [*compile_command(architecture), "-cubin", "-Xptxas=-v", str(file), "-o", str(cubin)]
    result = subprocess.run(command, capture_output=True, text=True)
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


MMA = {
    "bfloat16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "float16": "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    "tf32": "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
}


@pytest.fixture(scope="module")
def kernels_of(tmp_path_factory):
    """From the name of a file to the PTX of each of its kernels."""
    if find_nvcc() is None:
        pytest.skip("needs nvcc, to compile the CUDA kernels")
    folder = tmp_path_factory.mktemp("ptx")

    def compile_file(name: str) -> list[str]:
        target = folder / f"{name}.ptx"
        command = [*compile_command("sm_80"), "-ptx", str(SOURCES / "cuda" / name), "-o", str(target)]
        subprocess.run(command, check=True)
        return target.read_text().split(".entry ")[1:]

    return compile_file


# On the host the tile interface is plain loops, so that no other test would see tensor cores go.
@pytest.mark.slow
def test_the_convolution_multiplies_on_tensor_cores(kernels_of):
    kernels = kernels_of("lora_conv.cu")
    for name, instruction in MMA.items():
        users = [kernel for kernel in kernels if instruction in kernel]
        assert len(users) == 3, f"{name}: a kernel for each width of a slice"
        assert all("ldmatrix.sync" in kernel and "cp.async.cg" in kernel for kernel in users)
    exact = [kernel for kernel in kernels if "mma.sync" not in kernel]
    assert len(exact) == 3 and all("fma.rn.f32" in kernel for kernel in exact)


@pytest.mark.slow
def test_the_adapter_gradient_multiplies_on_tensor_cores(kernels_of):
    kernels = [kernel for kernel in kernels_of("lora_conv_adapter.cu") if "adapter_kernel" in kernel]
    for name, instruction in MMA.items():
        (user,) = [kernel for kernel in kernels if instruction in kernel]
        assert "cp.async.cg" in user and "atom.global.add.f32" in user
        # Eight rows of 16 bits turn into columns on their way; floats are read one by one.
        assert ("ldmatrix.sync.aligned.m8n8.x4.trans" in user) == (name != "tf32")
    (exact,) = [kernel for kernel in kernels if "mma.sync" not in kernel]
    assert "fma.rn.f32" in exact
