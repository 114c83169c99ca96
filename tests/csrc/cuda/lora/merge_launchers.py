"""The launchers that merge weights on the emulated device, with tensors."""

from __future__ import annotations

import ctypes
import struct
from ctypes import byref, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from ..on_host.emulator import run
from .launchers import DTYPES, Adapted, Call


class LoraMerge:
    """Copies inputs between guards, gives outputs the layout of their `like`, and checks all guards."""

    def __init__(self, library: ctypes.CDLL):
        self._library = library

    def merge(self, adapted: Adapted, like: Tensor) -> Tensor:
        call = Call()
        merged = call.guarded(like, False)
        run(
            self._library,
            self._library.lora_merge,
            *(byref(call.weight(adapted)), (c_int32 * 4)(*like.shape), c_void_p(merged.data_ptr())),
            *((c_int64 * 4)(*merged.stride()), c_int32(DTYPES.index(like.dtype))),
        )
        call.check()
        return merged

    def merge_stage(self, layers: list[Adapted], like: Tensor) -> Tensor:
        """The layers' weights one after another, each in channels_last."""
        call = Call()
        ups, downs = _stacks(layers)
        merged = call.guarded(like, False)
        run(
            self._library,
            self._library.lora_merge_stage,
            *(c_void_p(_table(call, layers)), c_int32(len(layers))),
            c_int64(max(layer.weight.numel() for layer in layers)),
            *(c_void_p(call.pointer(ups)), c_void_p(call.pointer(downs))),
            c_int32(DTYPES.index(ups.dtype)),
            *(c_void_p(merged.data_ptr()), c_int32(DTYPES.index(like.dtype))),
        )
        call.check()
        return merged

    def merge_stage_backward(self, layers: list[Adapted], grad: Tensor) -> tuple[Tensor, Tensor]:
        """The stacked gradients of up and down from that of the merged weights, laid out as above."""
        call = Call()
        ups, downs = _stacks(layers)
        grads = [call.guarded(stack, False) for stack in (ups, downs)]
        matrices = [(layer.up.shape[0], layer.down.shape[1]) for layer in layers]
        rows, columns = (max(sizes) for sizes in zip(*matrices, strict=True))
        run(
            self._library,
            self._library.lora_merge_stage_backward,
            *(c_void_p(_table(call, layers)), c_int32(len(layers)), (c_int64 * 2)(rows, columns)),
            *(c_void_p(call.pointer(ups)), c_void_p(call.pointer(downs))),
            c_int32(DTYPES.index(ups.dtype)),
            *(c_void_p(call.pointer(grad)), c_int32(DTYPES.index(grad.dtype))),
            *(c_void_p(stack.data_ptr()) for stack in grads),
        )
        call.check()
        return grads[0], grads[1]


def _table(call: Call, layers: list[Adapted]) -> int:
    """Where the rows of StageLayer are."""
    rows, offsets = [], [0, 0, 0]
    for layer in layers:
        parts = layer.up, layer.down, layer.weight
        scaling = struct.unpack("<i", struct.pack("<f", layer.scaling))[0]
        row = [call.pointer(layer.weight), *layer.weight.stride(), *layer.down.shape]
        rows.append([*row, *layer.weight.shape, *offsets, scaling, 0])
        offsets = [offset + part.numel() for offset, part in zip(offsets, parts, strict=True)]
    return call.pointer(torch.tensor(rows))


def _stacks(layers: list[Adapted]) -> list[Tensor]:
    return [torch.cat([getattr(layer, name).flatten() for layer in layers]) for name in ("up", "down")]
