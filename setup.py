"""Builds lorun_kernels._C. Everything about the package that does not depend on torch is in pyproject.toml.

LORUN_MARCH   the -march to compile for: "native" (default), or e.g. "x86-64-v3" for a wheel to give away
LORUN_CUDA    auto (default): CUDA kernels where they can be built; 0: none; 1: fail where they cannot
"""

import json
import os
import shlex
import shutil
import sys
from glob import glob
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent / "build_backend"))
from lorun_build import MINIMUM_TORCH, installed_torch  # noqa: E402

ANY_TORCH = "torch>={}.{}".format(*MINIMUM_TORCH)
# Reading metadata or packing an sdist must not need torch.
COMPILES = not {"bdist_wheel", "build", "build_ext", "editable_wheel", "install"}.isdisjoint(sys.argv)


def torch_requirement():
    """Exactly the torch that is built against: C++ autograd has no stable ABI. An sdist takes any."""
    version = None if "sdist" in sys.argv else installed_torch()
    return f"torch=={version}" if version else ANY_TORCH


def no_cuda_reason(setting):
    """Why this build has no CUDA kernels; raises where LORUN_CUDA asks for them."""
    if setting not in ("auto", "0", "1"):
        raise SystemExit(f"LORUN_CUDA must be auto, 0 or 1, got {setting!r}; set it to one of these.")
    if setting == "1":
        raise SystemExit("LORUN_CUDA=1: this version of LoRun has no CUDA kernels; set LORUN_CUDA=auto or 0.")
    return "switched off by LORUN_CUDA=0" if setting == "0" else "this version of LoRun has no CUDA kernels"


def check_compiler():
    compiler = os.environ.get("CXX", "c++")
    if not shutil.which(shlex.split(compiler)[0]):
        raise SystemExit(
            f"LoRun needs a C++20 compiler, and {compiler!r} was not found; install one (on Debian and "
            "Ubuntu: apt install g++) or set CXX to its path."
        )


def check_torch():
    if not installed_torch():
        raise SystemExit(
            f"LoRun is built against {ANY_TORCH}, and none is installed here; run pip install '{ANY_TORCH}', "
            "or build without --no-build-isolation."
        )


def compiled_parts():
    """The setup() arguments of a build that compiles."""
    cuda = os.environ.get("LORUN_CUDA", "auto")
    cuda_reason = no_cuda_reason(cuda)
    check_compiler()
    check_torch()
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class BuildWithRecord(BuildExtension):
        """Writes the torch version beside _C, to be compared before _C is loaded into another torch."""

        def run(self):
            super().run()
            folder = Path(self.get_ext_fullpath("lorun_kernels._C")).parent
            (folder / "_build.json").write_text(json.dumps({"torch": torch.__version__}) + "\n")

    march = os.environ.get("LORUN_MARCH", "native")
    flags = ["-O3", "-g0", "-std=c++20", "-fopenmp", f"-march={march}"]
    report = {
        "LORUN_CXX_FLAGS": " ".join(flags),
        "LORUN_CUDA_SETTING": cuda,
        "LORUN_NO_CUDA_REASON": cuda_reason,
    }
    kernels = CppExtension(
        "lorun_kernels._C",
        sorted(glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp")),
        include_dirs=[os.path.abspath("csrc")],
        define_macros=[(name, json.dumps(value)) for name, value in report.items()],
        extra_compile_args=flags,
        extra_link_args=["-fopenmp"],
    )
    return {"ext_modules": [kernels], "cmdclass": {"build_ext": BuildWithRecord}}


setup(
    install_requires=[
        torch_requirement(),
        "matplotlib>=3.8",
        "numpy>=1.26",
        "pillow>=10.3",
        "safetensors>=0.4.3",
        "scikit-image>=0.22",
        "tqdm>=4.66",
        "tyro>=0.9",
    ],
    **(compiled_parts() if COMPILES else {}),
)
