"""The CUDA library: it compiles for every GPU that is served, no kernel spills registers, products run on
tensor cores, and its ops are registered through torch's stable ABI alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[2] / "csrc/cuda").glob("*/*.cu"))
ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]

KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<architecture>\S+)'\n.*\n"
    r".* (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers"
)

# Python's import binds lazily, which a CPU torch needs: it has no function for the current CUDA stream. The
# import fails, but after the library has registered its ops.
REGISTER = """
import importlib.machinery, importlib.util, json, os, sys
import torch
sys.setdlopenflags(os.RTLD_LAZY)
loader = importlib.machinery.ExtensionFileLoader("_C_cuda", sys.argv[1])
try:
    importlib.util.module_from_spec(importlib.util.spec_from_loader("_C_cuda", loader))
except ImportError:
    pass
names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("lorun_cuda::")]
print(json.dumps([n for n in names if torch._C._dispatch_has_kernel_for_dispatch_key(n, "CUDA")]))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, to compile the CUDA kernels"),
]


@dataclass(frozen=True)
class Built:
    wheel: Path
    objects: Path
    reports: dict[str, str]

    @property
    def library(self) -> Path:
        return self.wheel / "lorun_kernels/_C_cuda.so"

    def ptx(self, file: str) -> list[str]:
        """That of each kernel of a file: it is text in the file's object."""
        content = (self.objects / f"{file}.o").read_bytes()
        return [entry.partition(b"\0")[0].decode() for entry in content.split(b".entry ")[1:]]


def reports_of(printed: str) -> dict[str, str]:
    """What the compiler says about each file, which follows the command in one piece."""
    reports, file = {}, None
    for line in printed.splitlines(keepends=True):
        command = re.search(r" -c -o \S*/cuda/(\S+)\.o ", line)
        file = command[1] if command else file
        reports[file] = reports.get(file, "") + line
    return reports


@pytest.fixture(scope="module")
def built(source_in, build_wheel, tmp_path_factory) -> Built:
    """One build for all tests here, with PTX that is not compressed."""
    source = source_in(tmp_path_factory.mktemp("library"))
    wheel, printed = build_wheel(
        source,
        LORUN_CUDA="1",
        TORCH_CUDA_ARCH_LIST="8.0+PTX;9.0;10.0",
        NVCC_APPEND_FLAGS="-Xptxas=-v -no-compress",
    )
    (objects,) = source.glob("build/temp*/cuda/csrc/cuda")
    return Built(wheel, objects, reports_of(printed))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_no_kernel_spills(built, file, architecture):
    report = built.reports[f"{file.parent.name}/{file.name}"]
    kernels = [kernel for kernel in KERNEL.finditer(report) if kernel["architecture"] == architecture]
    compiled = re.findall(rf"Compiling entry function '\S+' for '{architecture}'", report)
    assert len(kernels) == len(compiled) > 0
    for kernel in kernels:
        print(f"{kernel['registers']:>4} registers  {kernel['name']}")
    spilling = [kernel["name"] for kernel in kernels if kernel["stores"] != "0" or kernel["loads"] != "0"]
    assert not spilling


MMA = {
    "bfloat16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "float16": "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    "tf32": "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
}


# On the host the tile interface is plain loops, so that no other test would see tensor cores go.
def test_the_convolution_multiplies_on_tensor_cores(built):
    kernels = built.ptx("lora/conv.cu")
    for name, instruction in MMA.items():
        users = [kernel for kernel in kernels if instruction in kernel]
        assert len(users) == 3, f"{name}: a kernel for each width of a slice"
        assert all("ldmatrix.sync" in kernel and "cp.async.cg" in kernel for kernel in users)
    exact = [kernel for kernel in kernels if "mma.sync" not in kernel]
    assert len(exact) == 3 and all("fma.rn.f32" in kernel for kernel in exact)


def test_the_adapter_gradient_multiplies_on_tensor_cores(built):
    kernels = [kernel for kernel in built.ptx("lora/conv_adapter.cu") if "adapter_kernel" in kernel]
    for name, instruction in MMA.items():
        (user,) = [kernel for kernel in kernels if instruction in kernel]
        assert "cp.async.cg" in user and "atom.global.add.f32" in user
        # Eight rows of 16 bits turn into columns on their way; floats are read one by one.
        assert ("ldmatrix.sync.aligned.m8n8.x4.trans" in user) == (name != "tf32")
    (exact,) = [kernel for kernel in kernels if "mma.sync" not in kernel]
    assert "fma.rn.f32" in exact


def test_it_needs_only_the_stable_abi_and_registers_its_ops(built):
    record = json.loads((built.wheel / "lorun_kernels/_build.json").read_text())
    assert record["cuda_architectures"] == ["sm_80", "compute_80", "sm_90", "sm_100"]
    assert record["cuda_version"]
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", "-C", built.library], capture_output=True, text=True, check=True
    ).stdout
    assert "aoti_torch_get_current_cuda_stream" in listed
    for namespace in ("c10::", "at::", "torch::", "lorun::"):
        assert f" {namespace}" not in listed
    done = subprocess.run(
        [sys.executable, "-c", REGISTER, built.library], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    cassi = ("forward", "adjoint", "mask_grad", "step", "step_backward")
    lora = ("conv2d", "conv2d_grad_input", "conv2d_grad_adapter", "merge")
    lora += ("merge_stage", "merge_stage_backward")
    ops = [*(f"cassi_{op}" for op in cassi), *(f"lora_{op}" for op in lora)]
    assert sorted(json.loads(done.stdout)) == sorted(f"lorun_cuda::{op}" for op in ops)
