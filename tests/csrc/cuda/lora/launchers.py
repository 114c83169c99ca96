"""The convolution's launchers of csrc/cuda/lora/launchers.h on the emulated device, with tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import Structure, byref, c_bool, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from ..on_host.emulator import Guarded, run

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ACTIVATIONS = ["none", "relu", "gelu", "leaky_relu"]


class ImageView(Structure):
    _fields_ = [("data", c_void_p)] + [(name, c_int64) for name in ("batch", "row", "column")]


class ProblemView(Structure):
    _fields_ = [
        *(
            (name, c_int32)
            for name in (
                *("batch", "height", "width", "out_height", "out_width"),
                *("in_channels", "second_in_channels", "out_channels", "groups", "kernel_h", "kernel_w"),
                *("stride_h", "stride_w", "padding_h", "padding_w", "dilation_h", "dilation_w", "dtype"),
            )
        ),
        ("tf32", c_bool),
    ]


class WeightView(Structure):
    _fields_ = [
        ("base", c_void_p),
        *((name, c_int64) for name in ("out_stride", "in_stride", "row_stride", "column_stride")),
        ("up", c_void_p),
        ("down", c_void_p),
        ("inner", c_int32),
        ("columns", c_int32),
        ("scaling", c_float),
        ("dtype", c_int32),
    ]


class EpilogueView(Structure):
    _fields_ = [("bias", c_void_p), ("activation", c_int32), ("slope", c_float), ("residual", ImageView)]


@dataclass(frozen=True)
class Geometry:
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def out_size(self, size: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int]:
        dims = zip(size, kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in dims)
        return height, width


@dataclass(frozen=True)
class Adapted:
    """W = weight + scaling * (up @ down), with up and down or without both."""

    weight: Tensor
    up: Tensor | None = None
    down: Tensor | None = None
    scaling: float = 1.0

    def merged(self) -> Tensor:
        if self.up is None:
            return self.weight
        return self.weight + self.scaling * (self.up @ self.down).view(self.weight.shape)


class PlanView(Structure):
    _fields_ = [
        (name, c_int32)
        for name in ("warps", "columns", "slices", "whole", "resident", "stages", "staged_outs", "shared")
    ]


class Call:
    """Tensors between guards, and their descriptions for C."""

    def __init__(self) -> None:
        self._guards: list[Guarded] = []

    def guarded(self, like: Tensor, copy: bool) -> Tensor:
        self._guards.append(Guarded(like, copy))
        return self._guards[-1].tensor

    def pointer(self, tensor: Tensor | None) -> int | None:
        return None if tensor is None else self.guarded(tensor, True).data_ptr()

    def image(self, like: Tensor | None, copy: bool = True) -> tuple[ImageView, Tensor | None]:
        if like is None:
            return ImageView(), None
        assert like.stride(1) == 1 or like.shape[1] == 1
        tensor = self.guarded(like, copy)
        strides = tensor.stride()
        return ImageView(tensor.data_ptr(), strides[0], strides[2], strides[3]), tensor

    def weight(self, adapted: Adapted) -> WeightView:
        base, up, down = adapted.weight, adapted.up, adapted.down
        inner, columns = (0, 0) if down is None else down.shape
        return WeightView(
            self.pointer(base),
            *base.stride(),
            self.pointer(up),
            self.pointer(down),
            inner,
            columns,
            adapted.scaling,
            DTYPES.index(base.dtype),
        )

    def check(self) -> None:
        for guard in self._guards:
            guard.check()


def problem_view(
    like: Tensor, out_size: tuple[int, int], weight: Tensor, geometry: Geometry, second: int, tf32: bool
) -> ProblemView:
    """`like` has the input's batch and size, and all of its channels."""
    return ProblemView(
        like.shape[0],
        *like.shape[2:],
        *out_size,
        like.shape[1],
        second,
        weight.shape[0],
        geometry.groups,
        *weight.shape[2:],
        *geometry.stride,
        *geometry.padding,
        *geometry.dilation,
        DTYPES.index(like.dtype),
        tf32,
    )


class UnguardedCall(Call):
    """The tensors themselves: outputs are written to their likes."""

    def guarded(self, like: Tensor, copy: bool) -> Tensor:
        del copy
        return like


class LoraConv:
    """Copies inputs between guards, gives outputs the layout of their `like`, and checks all guards."""

    def __init__(self, library: ctypes.CDLL, new_call: Callable[[], Call] = Call):
        self._library = library
        self._new_call = new_call

    def conv(
        self,
        input: Tensor,
        adapted: Adapted,
        geometry: Geometry,
        like: Tensor,
        input2: Tensor | None = None,
        bias: Tensor | None = None,
        activation: str = "none",
        slope: float = 0.01,
        residual: Tensor | None = None,
        preactivation_like: Tensor | None = None,
        tf32: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(output, preactivation), laid out as `like` and `preactivation_like`."""
        call = self._new_call()
        second = 0 if input2 is None else input2.shape[1]
        whole = input if input2 is None else torch.cat([input, input2], 1)
        problem = problem_view(whole, like.shape[2:], adapted.weight, geometry, second, tf32)
        epilogue = EpilogueView(
            call.pointer(bias), ACTIVATIONS.index(activation), slope, call.image(residual)[0]
        )
        output_view, output = call.image(like, copy=False)
        preactivation_view, preactivation = call.image(preactivation_like, copy=False)
        views = [call.image(input)[0], call.image(input2)[0], call.weight(adapted), epilogue]
        self._run("lora_conv", call, problem, *views, output_view, preactivation_view)
        return output, preactivation

    def grad_input(
        self,
        grad: Tensor,
        adapted: Adapted,
        geometry: Geometry,
        like: Tensor,
        like2: Tensor | None = None,
        tf32: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The gradients of both inputs, laid out as their likes."""
        call = self._new_call()
        second = 0 if like2 is None else like2.shape[1]
        whole = like if like2 is None else torch.cat([like, like2], 1)
        problem = problem_view(whole, grad.shape[2:], adapted.weight, geometry, second, tf32)
        first_view, first = call.image(like, copy=False)
        second_view, second = call.image(like2, copy=False)
        views = [call.image(grad)[0], call.weight(adapted), first_view, second_view]
        self._run("lora_conv_grad_input", call, problem, *views)
        return first, second

    def plan(self, problem: ProblemView, adapted: Adapted, shared: int, multiprocessors: int) -> PlanView:
        """How the forward pass is cut on such a device."""
        view, up_rows, up_pitch = PlanView(), 0, 0
        if adapted.up is not None:
            up_rows = adapted.up.shape[0] // adapted.weight.shape[0]
            up_pitch = (adapted.up.shape[1] + 3) // 4 * 4
        sizes = c_int64(shared), *map(c_int32, (multiprocessors, up_rows, up_pitch))
        self._library.lora_conv_plan(byref(problem), *sizes, byref(view))
        return view

    def _run(self, name: str, call: Call, *views: Structure) -> None:
        run(self._library, getattr(self._library, name), *map(byref, views))
        call.check()
