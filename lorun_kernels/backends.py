"""Which backend runs, and why another one cannot."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._C import _get_tracing_state
from torch.compiler import is_exporting

from lorun_kernels._extension import cuda_missing_reason

NAMES = ("cpu", "cuda", "triton", "aten", "reference")

# The default for the CASSI ops: for each type of device, the backends in order, each with the largest cube,
# in elements, for which it is the fastest. The CPU row is from "CASSI HQS step over size" of
# benchmarks/table.py; the CUDA row waits for benchmarks/run_gpu.sh on a GPU and is an order of preference
# until then.
CASSI_DEFAULTS = {
    "cpu": [("cpu", float("inf"))],
    "cuda": [("cuda", float("inf")), ("triton", float("inf")), ("reference", float("inf"))],
}

# The default for low-rank convolutions on a GPU in half precision: the first row that fits, (kernel size,
# Cin / groups, Cout, most input pixels N * H * W, backend); None fits everything. A row is added when
# benchmarks/run_gpu.sh has shown that it pays; until then W is merged and cuDNN convolves.
LORA_DEFAULTS: list[tuple[int | None, int | None, int | None, float, str]] = []


def _triton_missing_reason() -> str | None:
    from lorun_kernels.triton import missing_reason

    return missing_reason()


def available_backends() -> dict[str, str | None]:
    """Every backend's name, with None if it can run here, else with the reason why it cannot, in a sentence.

    `cpu`, `aten` and `reference` always can. For the CASSI ops, a backend that can run refuses tensors on a
    device that is not its own.
    """
    return {name: _missing_reason(name) for name in NAMES}


def _missing_reason(name: str) -> str | None:
    if name == "cuda":
        return cuda_missing_reason()
    return _triton_missing_reason() if name == "triton" else None


def _check_name(source: str, name: str) -> None:
    if name not in NAMES:
        raise ValueError(f"{source}: the backend must be one of {', '.join(NAMES)}, got {name!r}")
    reason = _missing_reason(name)
    if reason is not None:
        raise ValueError(f"{source}: backend {name!r} cannot run here: {reason}")
    _load(name)


def _load(name: str) -> None:
    """Register a backend's ops. Importing Triton takes a second, so that waits until it is wanted."""
    if name == "triton":
        from lorun_kernels.triton import load

        load()


# If so, Triton's kernels run on CPU tensors.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_forced: str | None = os.environ.get("LORUN_BACKEND") or None


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops called in this context on the backend `name`, and their backward passes too.

    A backward pass uses the backend of its forward pass wherever it is called. The choice holds for the whole
    process and all of its threads; the environment variable LORUN_BACKEND, read at import, makes it from the
    start. A compiled function is compiled again if the choice has changed.

    The low-rank ops run through ATen's convolution on the merged weight (oneDNN, cuDNN) unless "cuda" or
    "triton" is chosen, here or by default, and has a kernel: for a tensor on a GPU in float32, bfloat16 or
    float16 that is not empty, and groups of 1 or of one channel each.

    Args:
        name: "cpu" (C++), "cuda" (CUDA C++), "triton", "aten" (the merged weight through ATen; CASSI ops as
            "reference") or "reference" (plain PyTorch on any device).

    Raises:
        ValueError: an unknown name, or a backend that cannot run here; the message says why.
    """
    global _forced
    _check_name("use_backend", name)
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def uses_reference() -> bool:
    """Whether plain PyTorch has been asked for, or is needed: ONNX has none of LoRun's ops."""
    # The two questions in the middle cost 60 ns in every call of a layer, the last one a microsecond.
    exporting = is_exporting() or _get_tracing_state() is not None
    return _forced == "reference" or (exporting and _is_exporting_to_onnx())


def _is_exporting_to_onnx() -> bool:
    """Whether `torch.onnx.export` runs, through torch.export or through TorchScript."""
    return torch.onnx.is_in_onnx_export()


# To torch.compile the answer would be no, also when it compiles for torch.onnx.export.
_is_exporting_to_onnx._dynamo_marked_constant = True  # type: ignore[attr-defined]


def cassi_backend(cube: Tensor) -> str:
    """The backend for a CASSI op whose largest tensor is `cube`."""
    if _forced is not None:
        return "reference" if _forced == "aten" else _forced
    for name, most in _usable(cube.device.type):
        if cube.numel() <= most:
            return name
    return "reference"


def lora_backend(input: Tensor, weight: Tensor) -> str:
    """The backend for a low-rank layer: "aten" or one with kernels for GPUs."""
    if _forced is not None:
        interpreted = _forced == "triton" and _INTERPRETED
        return _forced if _forced in ("cuda", "triton") and (input.is_cuda or interpreted) else "aten"
    return _measured_lora_backend(input, weight) if LORA_DEFAULTS and input.is_cuda else "aten"


StageOps = tuple[Callable, Callable]

STAGE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def stage_ops(weight: Tensor, dtype: torch.dtype) -> StageOps | None:
    """The ops that merge a whole stage into `dtype` and take its gradients back, each in one launch.

    None if every layer does both for itself.
    """
    # With "aten" only the layers run through ATen, as on a GPU by default.
    interpreted = _forced in ("triton", "aten") and _INTERPRETED
    if not (weight.is_cuda or interpreted) or not {weight.dtype, dtype} <= set(STAGE_DTYPES):
        return None
    able = ("cuda", "triton") if weight.is_cuda else ("triton",)
    for name in (_forced,) if _forced in ("cuda", "triton") else able:
        if _missing_reason(name) is None:
            _load(name)
            ops = getattr(torch.ops, f"lorun_{name}")
            return ops.lora_merge_stage.default, ops.lora_merge_stage_backward.default
    return None


def layers_merge_by_themselves() -> bool:
    """Whether low-rank layers merge W in launches of their own; kernels for GPUs do so on the chip."""
    return _forced not in ("cuda", "triton", "reference")


def _measured_lora_backend(input: Tensor, weight: Tensor) -> str:
    device = input.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
    if weight.dim() != 4 or dtype not in (torch.bfloat16, torch.float16):
        return "aten"
    out_channels, in_channels, size, _ = weight.shape
    pixels = input.numel() // max(1, input.shape[-3])
    for row_size, row_in, row_out, most, name in LORA_DEFAULTS:
        fits = row_size in (None, size) and row_in in (None, in_channels) and row_out in (None, out_channels)
        if fits and pixels <= most and _missing_reason(name) is None:
            _load(name)
            return name
    return "aten"


_usable_backends: dict[str, list[tuple[str, float]]] = {}


def _usable(device: str) -> list[tuple[str, float]]:
    """The part of CASSI_DEFAULTS that can run on this machine."""
    if device not in _usable_backends:
        rows = CASSI_DEFAULTS.get(device, [])
        usable = [(name, most) for name, most in rows if _missing_reason(name) is None]
        for name, _ in usable:
            _load(name)
        _usable_backends[device] = usable
    return _usable_backends[device]


# torch.compiler.assume_constant_result, which would import the whole compiler to set this.
_usable._dynamo_marked_constant = True  # type: ignore[attr-defined]

if _forced is not None:
    _check_name("LORUN_BACKEND", _forced)
