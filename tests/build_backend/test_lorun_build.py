"""The build: what it ships, and what it says when it cannot be done."""

import importlib
import json
import os
import subprocess
import sys
import sysconfig
from importlib import metadata

import pytest
import torch

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


def last_line(done):
    return (done.stdout + done.stderr).strip().splitlines()[-1]


def required_torch(folder):
    lines = (next(folder.glob("*.dist-info")) / "METADATA").read_text().splitlines()
    return next(line for line in lines if line.startswith("Requires-Dist: torch"))


def test_sdist_holds_everything_that_is_tracked(sdist, source_folder):
    if not (source_folder / ".git").exists():
        pytest.skip("needs a git checkout")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=source_folder, capture_output=True, text=True, check=True
    )
    tracked = [
        name
        for name in listed.stdout.splitlines()
        if (source_folder / name).exists() and not name.startswith((".ci/", ".git"))
    ]
    missing = [name for name in tracked if not (sdist / name).exists()]
    assert "csrc/module.cpp" in tracked and not missing
    assert not list(sdist.rglob("*.so"))
    assert "Requires-Dist: torch>=2.11\n" in (sdist / "PKG-INFO").read_text()


def test_metadata_needs_no_torch(run_backend, sdist, tmp_path):
    done = run_backend(sdist, f"prepare_metadata_for_build_wheel({str(tmp_path)!r})", before=HIDE_TORCH)
    assert done.returncode == 0, done.stderr
    assert required_torch(tmp_path) == "Requires-Dist: torch>=2.11"


def test_torch_is_fetched_only_if_there_is_none(run_backend, sdist):
    call = "get_requires_for_build_wheel()"
    assert last_line(run_backend(sdist, call)) == "[]"
    assert last_line(run_backend(sdist, call, before=HIDE_TORCH)) == "['torch>=2.11']"


def test_wheel_holds_the_module_its_record_and_the_data(source_folder, source_in, build_wheel, tmp_path):
    source = source_in(tmp_path)
    left = source / f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}/lorun_kernels"
    left.mkdir(parents=True)
    (left / "_C_cuda.so").write_text("of an earlier build")
    unpacked, _ = build_wheel(source, LORUN_MARCH="x86-64-v3", LORUN_CUDA="0")
    assert not (unpacked / "lorun_kernels/_C_cuda.so").exists()
    assert json.loads((unpacked / "lorun_kernels/_build.json").read_text()) == {
        "torch": torch.__version__,
        "cuda_setting": "0",
        "cuda_version": None,
        "cuda_architectures": [],
        "cuda_reason": "switched off by LORUN_CUDA=0",
    }
    assert required_torch(unpacked) == f"Requires-Dist: torch=={TORCH}"
    for pattern in ("lorun/models/*.safetensors", "lorun/training/recipes/*.toml"):
        for data in source_folder.glob(pattern):
            assert (unpacked / data.relative_to(source_folder)).exists()

    # The package itself needs the ops, which module.cpp alone does not have.
    (unpacked / "lorun_kernels/__init__.py").write_text("")
    script = "from lorun_kernels._extension import build_info; print(build_info())"
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    info = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    ).stdout
    assert "-march=x86-64-v3" in info and "LORUN_CUDA=0" in info


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
def test_a_build_that_cannot_be_done_says_why(run_backend, sdist, tmp_path, hook, environment, sentence):
    done = run_backend(sdist, f"{hook}({str(tmp_path)!r})", **environment)
    assert done.returncode == 1
    assert sentence in last_line(done)
    assert "Traceback" not in done.stderr


def test_a_build_without_torch_says_what_to_install(run_backend, sdist, tmp_path):
    done = run_backend(sdist, f"build_wheel({str(tmp_path)!r})", before=HIDE_TORCH)
    assert done.returncode == 1
    assert "run pip install 'torch>=2.11'" in last_line(done)


def test_the_version_lives_in_one_place():
    assert metadata.version("lorun") == importlib.import_module("lorun").__version__
