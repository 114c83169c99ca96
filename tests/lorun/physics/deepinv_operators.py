"""Linear operators of deepinv in float64, at sizes at which Phi can be written down."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.peers.packages import package

SIZE = (8, 8)


def deepinv() -> Any:
    """The package; a test that needs it skips, with this reason, without it."""
    try:
        return package("deepinv")
    except ImportError as error:
        pytest.skip(f"deepinv cannot be imported: {error}")


def _uneven_filter() -> torch.Tensor:
    """A point spread that is its own mirror image in no direction."""
    return torch.arange(1.0, 10.0, dtype=torch.float64).view(1, 1, 3, 3) / 45


def _inpainting(physics: Any) -> Any:
    return physics.Inpainting((3, *SIZE), mask=(torch.rand(3, *SIZE) > 0.4).double())


def _downsampling(physics: Any) -> Any:
    return physics.Downsampling(img_size=(3, *SIZE), filter="bicubic", factor=2).double()


def _tomography(physics: Any) -> Any:
    # It estimates the norm that it divides by in float32 only.
    return physics.Tomography(7, SIZE[0], normalize=False, dtype=torch.float64)


def _single_pixel(physics: Any) -> Any:
    return physics.SinglePixelCamera(m=20, img_size=(1, *SIZE), dtype=torch.float64)


# Name: (channels, what makes it of deepinv.physics).
OPERATORS: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "Inpainting": (3, _inpainting),
    "Blur, circular": (3, lambda physics: physics.Blur(filter=_uneven_filter(), padding="circular")),
    "Blur, valid": (3, lambda physics: physics.Blur(filter=_uneven_filter(), padding="valid")),
    "Downsampling": (3, _downsampling),
    "CompressedSensing": (2, lambda physics: physics.CompressedSensing(40, (2, *SIZE), dtype=torch.float64)),
    "Tomography": (1, _tomography),
    "SinglePixelCamera": (1, _single_pixel),
}


def make(name: str) -> Any:
    """deepinv's operator of this name."""
    return OPERATORS[name][1](deepinv().physics)
