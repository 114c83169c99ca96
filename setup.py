"""Builds lorun_kernels._C and, where it can, _C_cuda.

Everything about the package that does not depend on torch is in pyproject.toml.

LORUN_MARCH   the -march to compile for: "native" (default), or e.g. "x86-64-v3" for a wheel to distribute
LORUN_CUDA    auto (default): CUDA kernels if there are an nvcc and a CUDA torch that match; 0: none;
              1: fail without nvcc, but accept a CPU torch
CUDA_HOME     the CUDA toolkit; by default that of the nvcc in PATH
TORCH_CUDA_ARCH_LIST    the GPUs to compile for, e.g. "8.0;9.0+PTX"; by default those present, or if there are
                        none, all from 8.0 that nvcc knows
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
import cuda_build  # noqa: E402
from lorun_build import MINIMUM_TORCH, installed_torch  # noqa: E402

ANY_TORCH = "torch>={}.{}".format(*MINIMUM_TORCH)
# Reading metadata or packing an sdist must not need torch.
COMPILES = not {"bdist_wheel", "build", "build_ext", "editable_wheel", "install"}.isdisjoint(sys.argv)


def torch_requirement():
    """Exactly the torch that is built against: C++ autograd has no stable ABI. An sdist accepts any."""
    version = None if "sdist" in sys.argv else installed_torch()
    return f"torch=={version}" if version else ANY_TORCH


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
    check_compiler()
    check_torch()
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    setting = os.environ.get("LORUN_CUDA", "auto")
    nvcc, cuda_reason = cuda_build.plan(setting, torch)
    names = cuda_build.architectures(nvcc, torch) if nvcc else []
    # What the running torch is compared with before _C is loaded, and what build_info() says about CUDA.
    record = {
        "torch": torch.__version__,
        "cuda_setting": setting,
        "cuda_version": cuda_build.cuda_version(nvcc) if nvcc else None,
        "cuda_architectures": names,
        "cuda_reason": cuda_reason,
    }

    class BuildWithCuda(BuildExtension):
        """Puts the CUDA library, if it is built, and the record beside _C."""

        def run(self):
            super().run()
            folder = Path(self.get_ext_fullpath("lorun_kernels._C")).parent
            # A library of an earlier build would be packed with this one.
            (folder / "_C_cuda.so").unlink(missing_ok=True)
            if nvcc:
                cuda_build.build(
                    nvcc,
                    names,
                    Path(torch.__file__).parent,
                    objects=Path(self.build_temp, "cuda"),
                    library=folder / "_C_cuda.so",
                )
            (folder / "_build.json").write_text(json.dumps(record) + "\n")

    march = os.environ.get("LORUN_MARCH", "native")
    flags = ["-O3", "-g0", "-std=c++20", "-fopenmp", f"-march={march}"]
    kernels = CppExtension(
        "lorun_kernels._C",
        sorted(glob("csrc/*.cpp") + glob("csrc/cpu/**/*.cpp", recursive=True)),
        include_dirs=[os.path.abspath("csrc")],
        define_macros=[("LORUN_CXX_FLAGS", json.dumps(" ".join(flags)))],
        extra_compile_args=flags,
        extra_link_args=["-fopenmp"],
    )
    return {"ext_modules": [kernels], "cmdclass": {"build_ext": BuildWithCuda}}


setup(
    install_requires=[
        torch_requirement(),
        "h5py>=3.8",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "pillow>=10.3",
        "safetensors>=0.4.3",
        "scikit-image>=0.22",
        "scipy>=1.11",
        "tqdm>=4.66",
        "tyro>=0.9",
    ],
    **(compiled_parts() if COMPILES else {}),
)
