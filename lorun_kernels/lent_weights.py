"""The merged weights that a running stage of StageWeights lends to its layers."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class _Lent(threading.local):
    def __init__(self) -> None:
        self.weights: dict[nn.Module, Tensor] = {}


# Per thread: a thread that opens no stage, such as autograd's when it recomputes a checkpoint, reads no
# other's.
_lent = _Lent()


@contextmanager
def lend(weights: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Let layers that this thread calls in the context use these merged weights."""
    lent = _lent.weights
    lent.update(weights)
    try:
        yield
    finally:
        # Contexts that overlap, as those of generators can, need not end in the order in which they began.
        for layer, weight in weights.items():
            if lent.get(layer) is weight:
                del lent[layer]


def lent_weight(layer: nn.Module, input: Tensor) -> Tensor | None:
    """What `layer` has been lent, if it is called with `input` in the dtype that the weight has."""
    # A compiled graph would be recorded again for the layers of every stage; it merges for itself.
    if torch.compiler.is_compiling():
        return None
    weight = _lent.weights.get(layer)
    return weight if weight is not None and weight.dtype == called_dtype(input) else None


def called_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which a layer computes with `tensor`: autocast's if it is enabled and converts it."""
    device = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return tensor.dtype
    return torch.get_autocast_dtype(device)
