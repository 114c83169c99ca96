"""Merged weights that autograd does not keep: it keeps how to merge them, and merges them again."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorun_kernels.lent_weights import called_dtype


class _State(threading.local):
    def __init__(self) -> None:
        self.active = False
        # By the address of a merged weight's storage.
        self.known: dict[int, _Merged] = {}


_state = _State()


@dataclass(frozen=True)
class _Merged:
    """A merged weight that is alive, and how to merge it again."""

    weight: weakref.ref[Tensor]
    version: int
    parts: tuple[Tensor, ...]
    versions: tuple[int, ...]
    merge: Callable[[], Tensor]

    def again(self) -> Tensor:
        if tuple(part._version for part in self.parts) != self.versions:
            raise RuntimeError(
                "a base weight or its adapter was changed in place between the forward and the backward "
                "pass; call backward() before the optimiser's step, or before another adapter is set"
            )
        with torch.no_grad():
            return self.merge()


@dataclass(frozen=True)
class _View:
    """What autograd keeps in place of a merged weight, or of a view of it."""

    merged: _Merged
    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


@dataclass(frozen=True)
class _Kept:
    """What an outer pair of hooks, such as a checkpoint's, keeps in place of a tensor."""

    value: Any


def remember(weight: Tensor, parts: tuple[Tensor, ...], merge: Callable[[], Tensor]) -> None:
    """Note how `weight` was merged from `parts`; without a `recomputed_weights` around it, do nothing."""
    if _state.active:
        versions = tuple(part._version for part in parts)
        _state.known[_address(weight)] = _Merged(weakref.ref(weight), weight._version, parts, versions, merge)


def as_called(weight: Tensor) -> Tensor:
    """A merged weight in autocast's dtype, for what autocast would cast: autograd would keep its copy."""
    if torch.compiler.is_compiling() or not _state.active:
        return weight
    known, dtype = _state.known.get(_address(weight)), called_dtype(weight)
    if known is None or weight.dtype == dtype:
        return weight
    cast = weight.to(dtype)
    remember(cast, known.parts, lambda: known.merge().to(dtype))
    return cast


@contextmanager
def recomputed_weights() -> Iterator[None]:
    """A context in which autograd keeps no merged weight for the backward pass.

    What else it keeps goes to the hooks around this context, such as those of an activation checkpoint. It
    does nothing inside ``torch.compile`` and ``torch.func``, which decide for themselves what to keep.
    """
    if _state.active or not torch.is_grad_enabled() or not _hooks_allowed():
        yield
        return
    outer = torch._C._autograd._top_saved_tensors_default_hooks(True)
    pack_outside, unpack_outside = outer if outer is not None else (None, None)

    def pack(tensor: Tensor) -> Any:
        merged = _state.known.get(_address(tensor))
        weight = None if merged is None else merged.weight()
        # A dead weight's address may be another tensor's by now.
        if merged is not None and weight is not None and weight._version == merged.version:
            return _View(merged, tensor.size(), tensor.stride(), tensor.storage_offset())
        return tensor if pack_outside is None else _Kept(pack_outside(tensor))

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, _View):
            return kept.merged.again().as_strided(kept.size, kept.stride, kept.offset)
        return unpack_outside(kept.value) if isinstance(kept, _Kept) else kept

    _state.active = True
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        _state.active = False
        _state.known.clear()


def _hooks_allowed() -> bool:
    return not torch.compiler.is_compiling() and (
        torch._C._autograd._saved_tensors_hooks_get_disabled_error_message() is None
    )


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
