"""Triton kernels, one file per op family; importing this package does not import Triton."""

from __future__ import annotations

import importlib
import importlib.util
import os

import torch


def missing_reason() -> str | None:
    """Why the Triton backend cannot run here, in one sentence, or None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; run pip install triton"
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton needs a CUDA GPU, and torch sees none; set TRITON_INTERPRET=1 to interpret its kernels"
    return None


def load() -> None:
    """Register the ops of lorun_triton."""
    for family in ("cassi", "lora_conv", "lora_conv_adapter", "lora_merge"):
        importlib.import_module(f"{__name__}.{family}")
