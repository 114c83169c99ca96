"""Loads the compiled module _C, or says in one sentence what to run; loads _C_cuda, or says why not."""

import json
import warnings
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
# In a source folder, only an editable build puts _C beside this file.
EDITABLE = "-e " if (FOLDER.parent / "setup.py").exists() else ""
REBUILD = f"run `pip install --force-reinstall --no-deps {EDITABLE}.` in LoRun's source folder"


def _read_record(path: Path) -> dict:
    """What _C was built with; refuses another torch before _C is loaded, which might not find its symbols."""
    if not path.exists():
        raise ImportError(f"lorun_kernels has not been compiled (no {path.name} in {path.parent}): {REBUILD}")
    record = json.loads(path.read_text())
    built = record["torch"]
    # CPU and CUDA wheels of one release share the CPU library that _C links to: the label after + may differ.
    if built.partition("+")[0] != torch.__version__.partition("+")[0]:
        raise ImportError(
            f"lorun_kernels was built with torch {built}, but torch {torch.__version__} is running: {REBUILD}"
        )
    return record


def _cuda_fault(version: str, library: Path) -> str | None:
    """Loads _C_cuda, which was built with this version of CUDA; returns what is wrong with it, or None."""
    if version.partition(".")[0] != str(torch.version.cuda).partition(".")[0]:
        return (
            f"lorun_kernels._C_cuda was built with CUDA {version}, but torch {torch.__version__} uses CUDA "
            f"{torch.version.cuda}: {REBUILD}"
        )
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return f"lorun_kernels._C_cuda cannot be loaded ({error}): {REBUILD}"
    return None


def _load_cuda(record: dict, library: Path) -> str | None:
    """Loads _C_cuda if it was built and torch has CUDA; else returns why not, and warns of a fault."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    version = record.get("cuda_version")
    if version is None:
        reason = record.get("cuda_reason")
        return f"lorun_kernels was built without CUDA kernels ({reason}): set LORUN_CUDA=1 and {REBUILD}"
    fault = _cuda_fault(version, library)
    if fault:
        warnings.warn(f"{fault}; until then LoRun has no CUDA kernels", RuntimeWarning, stacklevel=2)
    return fault


_RECORD = _read_record(FOLDER / "_build.json")

try:
    from lorun_kernels import _C  # type: ignore[attr-defined]  # compiled
except ImportError as error:
    raise ImportError(f"lorun_kernels._C cannot be loaded ({error}): {REBUILD}") from error

_NOT_LOADED = _load_cuda(_RECORD, FOLDER / "_C_cuda.so")


def build_info() -> dict:
    """How _C and _C_cuda were built.

    Returns:
        Compiler, flags, versions of torch and CUDA, and for which GPUs or why for none: a dict from names
        such as ``"torch"`` and ``"cuda_architectures"`` to strings, lists or None.
    """
    return _RECORD | _C.build_info()


def cuda_missing_reason() -> str | None:
    """Why the CUDA kernels cannot run here, in one sentence, or None if they can."""
    if _NOT_LOADED is None and not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    return _NOT_LOADED
