"""The launchers of csrc/cuda/cassi/launchers.h on the emulated device, with tensors."""

from __future__ import annotations

import ctypes
from ctypes import Structure, byref, c_int, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from ..on_host.emulator import Guarded, run


class CubeView(Structure):
    _fields_ = [("data", c_void_p)] + [(name, c_int64) for name in ("batch", "band", "row", "column")]


class MeasurementView(Structure):
    _fields_ = [("data", c_void_p)] + [(name, c_int64) for name in ("batch", "row", "column")]


class Problem(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "bands", "height", "width", "measured")),
        ("dtype", c_int32),
        ("offsets", c_int32 * 256),
    ]


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
STEPS = ["pgd", "hqs"]


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class Cassi:
    """Copies inputs between guards, gives outputs the layout of their `like`, and checks all guards."""

    def __init__(self, library: ctypes.CDLL):
        self._library = library

    def forward(self, x: Tensor, mask: Tensor, offsets: list[int]) -> Tensor:
        problem = self._problem(x.shape, offsets, x.dtype)
        y = x.new_empty(x.shape[0], x.shape[2], problem.measured)
        return self._call("cassi_forward", problem, [_in(x), _in(mask), _out(y)])

    def adjoint(self, y: Tensor, mask: Tensor, offsets: list[int], like: Tensor) -> Tensor:
        problem = self._problem(like.shape, offsets, y.dtype)
        return self._call("cassi_adjoint", problem, [_in(y), _in(mask), _out(like)])

    def mask_grad(self, x: Tensor, y: Tensor, offsets: list[int], like: Tensor) -> Tensor:
        problem = self._problem(x.shape, offsets, x.dtype)
        return self._call("cassi_mask_grad", problem, [_in(x), _in(y), _out(like)])

    def step(
        self,
        kind: str,
        x: Tensor,
        y: Tensor,
        mask: Tensor,
        scale: Tensor,
        offsets: list[int],
        like: Tensor | None = None,
        with_residual: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """(the step in the layout of `like`, or over x where `like` is None; the residual)."""
        problem = self._problem(x.shape, offsets, x.dtype)
        given = Guarded(x)
        out = given if like is None else Guarded(like, copy=False)
        empty = y.new_empty(y.shape, dtype=accumulator(x.dtype)) if with_residual else None
        scales = Guarded(scale)
        arguments = [
            c_int(STEPS.index(kind)),
            given,
            _in(y),
            _in(mask),
            *_scale_arguments(scales),
            out,
            _out(empty, 3),
        ]
        residual = self._call("cassi_step", problem, arguments, [scales])
        return out.tensor, residual

    def step_backward(
        self,
        kind: str,
        grad: Tensor,
        residual: Tensor | None,
        x: Tensor | None,
        mask: Tensor,
        scale: Tensor,
        offsets: list[int],
        likes: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """The gradients that `likes` names (x, y, mask, scale), each in the layout of its like."""
        problem = self._problem(grad.shape, offsets, grad.dtype)
        scales = Guarded(scale)
        outputs = {name: Guarded(like, copy=False) for name, like in likes.items()}
        grad_scale = outputs.get("scale")
        arguments = [
            c_int(STEPS.index(kind)),
            _in(grad),
            _in(residual, 3),
            _in(x, 4),
            _in(mask),
            *_scale_arguments(scales),
            outputs.get("x", _Null(4)),
            outputs.get("y", _Null(3)),
            outputs.get("mask", _Null(4)),
            c_void_p(grad_scale.tensor.data_ptr() if grad_scale else None),
        ]
        self._call("cassi_step_backward", problem, arguments, [scales, *outputs.values()])
        return {name: output.tensor for name, output in outputs.items()}

    def _problem(self, cube: torch.Size, offsets: list[int], dtype: torch.dtype) -> Problem:
        batch, bands, height, width = cube
        table = (c_int32 * 256)(*offsets)
        return Problem(batch, bands, height, width, width + max(offsets), DTYPES.index(dtype), table)

    def _call(
        self, name: str, problem: Problem, arguments: list, more_guards: list[Guarded] | None = None
    ) -> Tensor | None:
        """The tensor of the last argument, after a look at all guards."""
        run(self._library, getattr(self._library, name), byref(problem), *map(_as_c, arguments))
        guards = [argument for argument in arguments if isinstance(argument, Guarded)]
        for guard in [*guards, *(more_guards or [])]:
            guard.check()
        return guards[-1].tensor if arguments[-1] is guards[-1] else None


class _Null:
    """A tensor that is not wanted."""

    def __init__(self, dims: int):
        self.dims = dims


def _in(tensor: Tensor | None, dims: int = 4) -> Guarded | _Null:
    return _Null(dims) if tensor is None else Guarded(tensor)


def _out(like: Tensor | None, dims: int = 4) -> Guarded | _Null:
    return _Null(dims) if like is None else Guarded(like, copy=False)


def _as_c(argument: object) -> object:
    if isinstance(argument, _Null):
        return byref(CubeView() if argument.dims == 4 else MeasurementView())
    if not isinstance(argument, Guarded):
        return argument
    tensor = argument.tensor
    view = CubeView if tensor.dim() == 4 else MeasurementView
    return byref(view(tensor.data_ptr(), *tensor.stride()))


def _scale_arguments(scales: Guarded) -> list:
    return [c_void_p(scales.tensor.data_ptr()), c_int64(scales.tensor.stride(0))]
