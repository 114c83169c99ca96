"""The build: what it reports, what it ships, and what it says when it cannot be done."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch

from lorun_kernels import _extension

ROOT = Path(__file__).parent.parent
PACKED = ("build_backend", "csrc", "lorun", "lorun_kernels", "tests", "benchmarks", "examples", "docs")
TORCH = torch.__version__.partition("+")[0]

HIDE_TORCH = """
import importlib.metadata, sys
version = importlib.metadata.version
def hide_torch(name):
    if name == "torch":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = hide_torch
sys.modules["torch"] = None
"""

# An editable install would lend its own _C to a package that has none.
WITHOUT_EDITABLE = """
import sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
"""

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

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs LoRun's source folder")


def run_backend(folder, call, before="", **environment):
    """Calls one hook of the build backend in a fresh process, as pip does without isolation."""
    script = f"{before}\nimport lorun_build\nprint(lorun_build.{call})"
    environment = os.environ | {"PYTHONPATH": str(folder / "build_backend")} | environment
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def last_line(done):
    return (done.stdout + done.stderr).strip().splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """An unpacked sdist, made from a copy so that nothing is written into the source folder."""
    folder = tmp_path_factory.mktemp("sdist")
    checkout = folder / "checkout"
    checkout.mkdir()
    compiled = shutil.ignore_patterns("__pycache__", "*.so", "_build.json")
    for name in PACKED:
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, checkout / name, ignore=compiled)
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, checkout)
    done = run_backend(checkout, f"build_sdist({str(folder)!r})")
    assert done.returncode == 0, done.stderr
    archive = next(folder.glob("*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def required_torch(folder):
    lines = (next(folder.glob("*.dist-info")) / "METADATA").read_text().splitlines()
    return next(line for line in lines if line.startswith("Requires-Dist: torch"))


def test_build_info_describes_this_build():
    info = _extension.build_info()
    assert info["torch"] == TORCH
    assert info["compiler"].split()[0] in ("gcc", "clang")
    assert "-std=c++20" in info["cxx_flags"] and "-march=" in info["cxx_flags"]
    assert info["cxx_standard"] >= 202002
    assert info["instruction_set"], "no vector extension was switched on"
    assert info["openmp"] >= 201511
    assert info["cxx11_abi"] == torch.compiled_with_cxx11_abi()
    assert info["cuda_setting"] in ("auto", "0", "1")
    built = info["cuda_version"] is not None
    assert built == bool(info["cuda_architectures"]) == (info["cuda_reason"] is None)


def test_parallel_for_uses_two_threads():
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            torch.set_num_threads(threads)
            assert _extension._C.count_parallel_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_sdist_holds_everything_that_is_tracked(sdist):
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", *PACKED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tracked = [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]
    missing = [
        name for name in [*tracked, "Makefile", "constraints.txt", "LICENSE"] if not (sdist / name).exists()
    ]
    assert "csrc/module.cpp" in tracked and not missing
    assert not list(sdist.rglob("*.so"))
    assert "Requires-Dist: torch>=2.11\n" in (sdist / "PKG-INFO").read_text()


def test_metadata_needs_no_torch(sdist, tmp_path):
    done = run_backend(sdist, f"prepare_metadata_for_build_wheel({str(tmp_path)!r})", before=HIDE_TORCH)
    assert done.returncode == 0, done.stderr
    assert required_torch(tmp_path) == "Requires-Dist: torch>=2.11"


def test_torch_is_fetched_only_where_there_is_none(sdist):
    call = "get_requires_for_build_wheel()"
    assert last_line(run_backend(sdist, call)) == "[]"
    assert last_line(run_backend(sdist, call, before=HIDE_TORCH)) == "['torch>=2.11']"


@pytest.fixture
def source(sdist, tmp_path):
    """The sdist with module.cpp alone for _C: the ops take minutes to compile, and change nothing here."""
    folder = tmp_path / "source"
    shutil.copytree(sdist, folder)
    for file in (*folder.glob("csrc/*.cpp"), *folder.glob("csrc/cpu/*.cpp")):
        if file.name != "module.cpp":
            file.unlink()
    return folder


def build_wheel(source, **environment):
    """The unpacked wheel."""
    folder = source.parent / "wheel"
    done = run_backend(source, f"build_wheel({str(folder)!r})", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder)
    return folder


def test_wheel_holds_the_module_its_record_and_the_data(source, tmp_path):
    left = source / f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}/lorun_kernels"
    left.mkdir(parents=True)
    (left / "_C_cuda.so").write_text("of an earlier build")
    unpacked = build_wheel(source, LORUN_MARCH="x86-64-v3", LORUN_CUDA="0")
    assert not (unpacked / "lorun_kernels/_C_cuda.so").exists()
    assert json.loads((unpacked / "lorun_kernels/_build.json").read_text()) == {
        "torch": torch.__version__,
        "cuda_setting": "0",
        "cuda_version": None,
        "cuda_architectures": [],
        "cuda_reason": "switched off by LORUN_CUDA=0",
    }
    assert required_torch(unpacked) == f"Requires-Dist: torch=={TORCH}"
    for data in (*ROOT.glob("lorun/models/*.safetensors"), *ROOT.glob("lorun/training/recipes/*.toml")):
        assert (unpacked / data.relative_to(ROOT)).exists()

    info = import_extension(unpacked / "lorun_kernels", tmp_path, "print(build_info())").stdout
    assert "-march=x86-64-v3" in info and "LORUN_CUDA=0" in info


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_the_cuda_library_needs_only_the_stable_abi_and_registers_its_ops(source):
    unpacked = build_wheel(source, LORUN_CUDA="1", TORCH_CUDA_ARCH_LIST="9.0")
    record = json.loads((unpacked / "lorun_kernels/_build.json").read_text())
    assert record["cuda_architectures"] == ["sm_90"] and record["cuda_version"]
    library = unpacked / "lorun_kernels/_C_cuda.so"
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", "-C", library], capture_output=True, text=True, check=True
    ).stdout
    assert "aoti_torch_get_current_cuda_stream" in listed
    for namespace in ("c10::", "at::", "torch::", "lorun::"):
        assert f" {namespace}" not in listed
    done = subprocess.run(
        [sys.executable, "-c", REGISTER, library], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    cassi = ("forward", "adjoint", "mask_grad", "step", "step_backward")
    lora = ("conv2d", "conv2d_grad_input", "conv2d_grad_adapter", "merge")
    lora += ("merge_stage", "merge_stage_backward")
    ops = [*(f"cassi_{op}" for op in cassi), *(f"lora_{op}" for op in lora)]
    assert sorted(json.loads(done.stdout)) == sorted(f"lorun_cuda::{op}" for op in ops)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (
            {"CXX": "/nonexistent/c++"},
            "needs a C++20 compiler, and '/nonexistent/c++' was not found; install one",
        ),
        (
            {"LORUN_CUDA": "1", "CUDA_HOME": "/nonexistent"},
            "LORUN_CUDA=1: nvcc was not found in CUDA_HOME (/nonexistent); set CUDA_HOME to a CUDA toolkit",
        ),
        ({"LORUN_CUDA": "yes"}, "LORUN_CUDA must be auto, 0 or 1, got 'yes'; set it to one of these"),
    ],
)
@pytest.mark.parametrize("hook", ["build_wheel", "build_editable"])
def test_a_build_that_cannot_be_done_says_why(sdist, tmp_path, hook, environment, sentence):
    done = run_backend(sdist, f"{hook}({str(tmp_path)!r})", **environment)
    assert done.returncode == 1
    assert sentence in last_line(done)
    assert "Traceback" not in done.stderr


def test_a_build_without_torch_says_what_to_install(sdist, tmp_path):
    done = run_backend(sdist, f"build_wheel({str(tmp_path)!r})", before=HIDE_TORCH)
    assert done.returncode == 1
    assert "run pip install 'torch>=2.11'" in last_line(done)


def import_extension(compiled, folder, then="", before=""):
    """Imports _extension in a fresh process, from a package that holds it and the compiled files only."""
    package = folder / "alone" / "lorun_kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for file in (Path(_extension.__file__), *compiled.glob("_C*"), *compiled.glob("_build.json")):
        shutil.copy(file, package)
    script = f"{WITHOUT_EDITABLE}\n{before}\nfrom lorun_kernels._extension import build_info\n{then}"
    environment = os.environ | {"PYTHONPATH": str(package.parent)}
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            {"_build.json": '{"torch": "1.0.0"}', "_C.so": "not loaded"},
            f"lorun_kernels was built with torch 1.0.0, but torch {torch.__version__} is running: run",
        ),
        ({}, "lorun_kernels has not been compiled (no _build.json in"),
        (
            {"_build.json": json.dumps({"torch": TORCH})},
            "lorun_kernels._C cannot be loaded (cannot import name",
        ),
        (
            {"_build.json": json.dumps({"torch": TORCH}), "_C.so": "not a library"},
            "lorun_kernels._C cannot be loaded (",
        ),
    ],
    ids=["another torch", "not compiled", "no module", "broken module"],
)
def test_a_module_that_does_not_fit_says_what_to_run(tmp_path, files, sentence):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    line = last_line(import_extension(tmp_path, tmp_path))
    assert line.startswith(f"ImportError: {sentence}")
    assert "run `pip install --force-reinstall --no-deps .` in LoRun's source folder" in line


def test_another_label_of_the_same_torch_fits(tmp_path, monkeypatch):
    record = tmp_path / "_build.json"
    record.write_text(json.dumps({"torch": "2.13.0+cpu"}))
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    assert _extension._read_record(record) == {"torch": "2.13.0+cpu"}


def test_the_version_lives_in_one_place():
    assert metadata.version("lorun") == importlib.import_module("lorun").__version__
