"""The peers that come from PyPI: `pip install '.[bench]'`."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

# torchvision's wheels on PyPI are built for CUDA. With a CPU build of torch their compiled ops do not load,
# and importing torchvision, as deepinv and peft do, fails when it registers fakes for these two ops.
_TORCHVISION_OPS = ("nms", "qnms")
_declared = torch.library.Library("torchvision", "FRAGMENT")


def package(name: str) -> ModuleType:
    """An installed peer.

    Raises:
        ImportError: if it cannot be imported; the message says what to do.
    """
    _declare_torchvision_ops()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{error} (pip install '.[bench]')") from error


def _declare_torchvision_ops() -> None:
    """Declare the ops without an implementation: nothing that is timed calls them."""
    if torch.version.cuda:
        return
    for op in _TORCHVISION_OPS:
        if not hasattr(torch.ops.torchvision, op):
            _declared.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
