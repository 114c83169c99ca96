"""The compiled module: what it reports, and what is said if it, or the CUDA library, does not fit."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from lorun_kernels import _extension

TORCH = torch.__version__.partition("+")[0]

# An editable install would lend its own _C to a package that has none.
WITHOUT_EDITABLE = """
import sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
"""


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
    line = import_extension(tmp_path, tmp_path).stderr.strip().splitlines()[-1]
    assert line.startswith(f"ImportError: {sentence}")
    assert "run `pip install --force-reinstall --no-deps .` in LoRun's source folder" in line


def test_another_label_of_the_same_torch_fits(tmp_path, monkeypatch):
    record = tmp_path / "_build.json"
    record.write_text(json.dumps({"torch": "2.13.0+cpu"}))
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    assert _extension._read_record(record) == {"torch": "2.13.0+cpu"}


def load_cuda(monkeypatch, tmp_path, record, cuda):
    monkeypatch.setattr(torch, "__version__", "2.13.0+test")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    return _extension._load_cuda(record, tmp_path / "_C_cuda.so")


@pytest.mark.parametrize(
    ("record", "cuda", "reason"),
    [
        (
            {"cuda_version": None, "cuda_reason": "switched off by LORUN_CUDA=0"},
            "13.0",
            "lorun_kernels was built without CUDA kernels (switched off by LORUN_CUDA=0): set LORUN_CUDA=1",
        ),
        ({"cuda_version": "13.0"}, None, "torch 2.13.0+test is built without CUDA"),
    ],
)
def test_a_cpu_only_installation_has_a_reason_and_no_warning(monkeypatch, tmp_path, record, cuda, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_cuda(monkeypatch, tmp_path, record, cuda).startswith(reason)


@pytest.mark.parametrize(
    ("cuda", "sentence"),
    [
        ("12.6", "_C_cuda was built with CUDA 13.0, but torch 2.13.0+test uses CUDA 12.6: run `pip install"),
        ("13.2", "_C_cuda cannot be loaded ("),
    ],
    ids=["another CUDA", "broken library"],
)
def test_a_library_that_does_not_fit_is_one_warning(monkeypatch, tmp_path, cuda, sentence):
    (tmp_path / "_C_cuda.so").write_text("not a library")
    with pytest.warns(RuntimeWarning) as warned:
        reason = load_cuda(monkeypatch, tmp_path, {"cuda_version": "13.0"}, cuda)
    assert sentence in reason and "run `pip install" in reason
    assert [str(warning.message) for warning in warned] == [f"{reason}; until then LoRun has no CUDA kernels"]


def test_a_loaded_library_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(_extension, "_NOT_LOADED", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _extension.cuda_missing_reason() == "torch sees no CUDA GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _extension.cuda_missing_reason() is None


def test_the_package_works_on_cpu_beside_a_library_that_does_not_fit(tmp_path):
    compiled = tmp_path / "compiled"
    compiled.mkdir()
    shutil.copy(_extension._C.__file__, compiled)
    record = {"torch": torch.__version__, "cuda_version": "11.8", "cuda_architectures": ["sm_90"]}
    (compiled / "_build.json").write_text(json.dumps(record))
    then = "import torch; print(build_info()['cuda_architectures'], torch.cuda.is_initialized())"
    done = import_extension(compiled, tmp_path, then, before="import torch; torch.version.cuda = '13.0'")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['sm_90'] False\n"
    assert done.stderr.count("RuntimeWarning") == 1 and "was built with CUDA 11.8" in done.stderr
