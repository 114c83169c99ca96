"""An sdist, and wheels built from it by the build backend as pip calls it."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKED = ("build_backend", "csrc", "lorun", "lorun_kernels", "tests", "benchmarks", "examples", "docs")


@pytest.fixture(scope="session", autouse=True)
def source_folder() -> Path:
    if not (ROOT / "setup.py").exists():
        pytest.skip("needs LoRun's source folder")
    return ROOT


def call_backend(folder, call, before="", **environment):
    """Calls one hook of the build backend in a fresh process, as pip does without isolation."""
    script = f"{before}\nimport lorun_build\nprint(lorun_build.{call})"
    environment = os.environ | {"PYTHONPATH": str(folder / "build_backend")} | environment
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="session")
def run_backend():
    """run_backend(folder, call, before="", **environment): see call_backend."""
    return call_backend


@pytest.fixture(scope="session")
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
    done = call_backend(checkout, f"build_sdist({str(folder)!r})")
    assert done.returncode == 0, done.stderr
    archive = next(folder.glob("*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="session")
def source_in(sdist):
    """source_in(folder): the sdist with module.cpp alone for _C; the ops take minutes to compile, and change
    nothing here."""

    def copy_to(folder: Path) -> Path:
        source = folder / "source"
        shutil.copytree(sdist, source)
        for file in (*source.glob("csrc/*.cpp"), *source.glob("csrc/cpu/**/*.cpp")):
            if file.name != "module.cpp":
                file.unlink()
        return source

    return copy_to


@pytest.fixture(scope="session")
def build_wheel():
    """build_wheel(source, **environment): the unpacked wheel, and what the build printed."""

    def build(source: Path, **environment: str) -> tuple[Path, str]:
        folder = source.parent / "wheel"
        done = call_backend(source, f"build_wheel({str(folder)!r})", **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder)
        return folder, done.stdout

    return build
