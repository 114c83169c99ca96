"""Low-rank convolutions for tests of the CUDA kernels, their checks, and how far rounding may lead."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lorun_kernels import reference

from .launchers import Adapted, Geometry, LoraConv

# Half the distance from 1 to the next number.
UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
TF32_UNIT = 2.0**-11
# And from 0 to the smallest number, where that matters.
SMALLEST = {torch.float32: 0.0, torch.float16: 2.0**-25, torch.bfloat16: 0.0}


@dataclass(frozen=True)
class Case:
    channels: tuple[int, int] = (5, 7)
    kernel: tuple[int, int] = (3, 3)
    size: tuple[int, int, int] = (2, 5, 7)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    rank: int = 2
    form: str = "reshape"
    adapter: bool = True
    second: int = 0
    bias: bool = True
    activation: str = "none"
    residual: bool = False
    preactivation: bool = False
    sliced: bool = False
    weight_layout: torch.memory_format = torch.contiguous_format
    float_weight: bool = False
    scaling: float = 0.5

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.stride, self.padding, self.dilation)

    @property
    def out_size(self) -> tuple[int, int]:
        return self.geometry.out_size(self.size[1:], self.kernel)

    def image(self, channels: int, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        batch, (height, width) = self.size[0], size
        if not self.sliced:
            return torch.randn(batch, height, width, channels).to(dtype).permute(0, 3, 1, 2)
        wide = torch.randn(batch + 1, height + 2, width + 3, channels + 4).to(dtype).permute(0, 3, 1, 2)
        return wide[1:, 3:-1, 1:-1, 2:-1]

    def images(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The input, or both halves of it."""
        size = self.size[1:]
        if self.second == 0:
            return self.image(self.channels[0], size, dtype), None
        first = self.image(self.channels[0] - self.second, size, dtype)
        return first, self.image(self.second, size, dtype)

    def out_image(self, dtype: torch.dtype) -> Tensor:
        return self.image(self.channels[1], self.out_size, dtype)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        groups = self.geometry.groups
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, groups)

    def adapted(self, dtype: torch.dtype) -> Adapted:
        """Values for which sums of products are near 1."""
        dtype = torch.float32 if self.float_weight else dtype
        (ins, outs), (kh, kw) = self.channels, self.kernel
        shape = (outs, ins, kh, kw)
        taps = ins * kh * kw
        weight = (torch.randn(shape) / taps**0.5).to(dtype).to(memory_format=self.weight_layout)
        if not self.adapter:
            return Adapted(weight)
        inner = self.rank * min(kh, kw) if self.form == "reshape" else self.rank
        rows, columns = (outs * kh, ins * kw) if self.form == "reshape" else (outs, taps)
        up, down = torch.randn(rows, inner), torch.randn(inner, columns) / (inner * taps) ** 0.5
        return Adapted(weight, up.to(dtype), down.to(dtype), self.scaling)


REAL_LAYERS = {
    "2 to 28": Case((2, 28), size=(1, 5, 18)),
    "28 to 28": Case((28, 28), size=(1, 6, 18), activation="gelu"),
    "28 to 28 and residual": Case((28, 28), size=(1, 4, 9), residual=True),
    "28 to 56": Case((28, 56), size=(1, 4, 9), activation="gelu", preactivation=True),
    "56 to 56": Case((56, 56), size=(1, 4, 9), residual=True),
    "112 to 112": Case((112, 112), size=(1, 4, 5), rank=3),
    "168 to 56": Case((168, 56), size=(1, 4, 5), second=56, activation="gelu"),
    "84 to 28": Case((84, 28), size=(1, 4, 9), second=28, activation="gelu"),
    "28 to 1": Case((28, 1), kernel=(1, 1), padding=(0, 0), size=(1, 5, 7)),
}

SHAPES = {
    "small": Case(),
    "1 to 1": Case((1, 1)),
    "one pixel": Case(size=(1, 1, 1)),
    "29 to 31": Case((29, 31), activation="relu"),
    "31 to 29, 1x1": Case((31, 29), kernel=(1, 1), padding=(0, 0), residual=True),
    "64 channels": Case((64, 64), size=(1, 3, 5)),
    "5x5": Case((28, 12), kernel=(5, 5), padding=(2, 2)),
    "3x1": Case(kernel=(3, 1), padding=(1, 0)),
    "2x5": Case(kernel=(2, 5), padding=(0, 2)),
    "no padding": Case(padding=(0, 0)),
    "much padding": Case((12, 8), padding=(2, 4)),
    "stride 2": Case((28, 20), stride=(2, 2)),
    "stride 2, even size": Case((12, 28), stride=(2, 2), size=(1, 6, 8)),
    "stride 2, 1x1": Case((12, 12), kernel=(1, 1), padding=(0, 0), stride=(2, 2)),
    "stride 2, 5x5": Case((4, 8), kernel=(5, 5), padding=(2, 2), stride=(2, 2)),
    "strides 3 and 1": Case(stride=(3, 1), padding=(0, 1)),
    "stride above size": Case(stride=(6, 9)),
    "dilation 2": Case((28, 28), dilation=(2, 2), padding=(2, 2), size=(1, 6, 9)),
    "dilation 2, stride 2": Case((20, 4), dilation=(2, 2), stride=(2, 2), padding=(1, 2)),
    "dilation 3, stride 2": Case((4, 4), dilation=(3, 2), stride=(2, 4), padding=(3, 0), size=(1, 9, 9)),
    "far dilation": Case((8, 8), dilation=(9, 9), padding=(9, 9), size=(1, 4, 20)),
    "wide": Case((8, 8), size=(1, 3, 35)),
    "tall": Case((8, 8), size=(1, 35, 3)),
    "many images": Case((8, 8), size=(5, 3, 3)),
}

OPTIONS = {
    "factored": Case((12, 8), form="factored"),
    "factored, even kernel": Case((3, 8), form="factored", kernel=(2, 3)),
    "no adapter": Case((12, 8), adapter=False),
    "no adapter, channels_last": Case((12, 8), adapter=False, weight_layout=torch.channels_last),
    "rank 5": Case((12, 8), rank=5, scaling=-2.0),
    "weight in channels_last": Case((12, 8), weight_layout=torch.channels_last),
    "float weight": Case((12, 8), float_weight=True),
    "float factored": Case((12, 8), float_weight=True, form="factored", weight_layout=torch.channels_last),
    "no bias": Case((12, 8), bias=False),
    "relu": Case((12, 8), activation="relu", residual=True, preactivation=True),
    "gelu": Case((12, 7), activation="gelu", residual=True, preactivation=True),
    "leaky relu": Case((12, 8), activation="leaky_relu", preactivation=True),
    "sliced": Case((12, 8), sliced=True, residual=True, preactivation=True),
    "sliced, odd": Case((11, 7), sliced=True, activation="gelu", residual=True),
    "two inputs": Case((40, 20), second=16),
    "two odd inputs": Case((12, 8), second=5),
    "two sliced inputs": Case((24, 8), second=8, sliced=True),
    "a second input of one channel": Case((9, 4), second=1, stride=(2, 2)),
}

CASES = REAL_LAYERS | SHAPES | OPTIONS
MODES = {
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "float16": (torch.float16, False),
    "bfloat16": (torch.bfloat16, False),
}


def to_tf32(values: Tensor) -> Tensor:
    """Rounded to ten bits of mantissa, ties away from zero."""
    bits = values.float().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


class Expected:
    """What a kernel computes from operands that it rounds once, in float64, and how far it may be from that.

    Sums in float of n products err by n units of the sum of magnitudes. A weight on the edge between two
    numbers of the images' type may be rounded to the other one; `flips` of them may meet in one result.
    """

    flips = 4

    def __init__(self, case: Case, adapted: Adapted, dtype: torch.dtype, tf32: bool):
        self.case, self.dtype, self.tf32 = case, dtype, tf32
        exact = [None if t is None else t.double() for t in (adapted.weight, adapted.up, adapted.down)]
        sizes = [None if t is None else t.abs() for t in exact]
        self.weight = self.operand(Adapted(*exact, adapted.scaling).merged().to(dtype))
        self.weight_magnitude = Adapted(*sizes, abs(adapted.scaling)).merged()
        self.unit = TF32_UNIT if tf32 else UNIT[dtype]

    def operand(self, values: Tensor) -> Tensor:
        return (to_tf32(values) if self.tf32 else values).double()

    def product(self, values: Tensor, multiply, terms: int) -> tuple[Tensor, Tensor]:
        """The linear map `multiply` of an image and W, and how far a kernel may be from it."""
        values = self.operand(values)
        result = multiply(values, self.weight)
        magnitude = multiply(values.abs(), self.weight_magnitude)
        largest = values.abs().max() * self.weight.abs().max()
        flipped = 0 if self.dtype == torch.float32 and not self.tf32 else self.flips * 2 * self.unit * largest
        # Merging rounds in float as well, `rank` products and two more operations.
        rounding = (terms + 3 * self.case.rank + 8) * UNIT[torch.float32]
        return result, rounding * magnitude + flipped

    def assert_close(self, value: Tensor, expected: Tensor, bound: Tensor) -> None:
        assert value.shape == expected.shape and value.dtype == self.dtype
        stored = UNIT[self.dtype] * (expected.abs() + bound) + SMALLEST[self.dtype]
        excess = (value.double() - expected).abs() - bound - stored
        assert bool((excess <= 0).all()), f"off by {excess.max().item()} more than rounding explains"


# No activation here is steeper than the GELU.
STEEPEST = 1.13


def check_conv(lora: LoraConv, case: Case, dtype: torch.dtype, tf32: bool = False) -> None:
    input, input2 = case.images(dtype)
    adapted = case.adapted(dtype)
    expected = Expected(case, adapted, dtype, tf32)
    bias = torch.randn(case.channels[1]).to(dtype) if case.bias else None
    residual = case.out_image(dtype) if case.residual else None
    output, preactivation = lora.conv(
        input,
        adapted,
        case.geometry,
        case.out_image(dtype),
        input2,
        bias,
        case.activation,
        0.1,
        residual,
        case.out_image(dtype) if case.preactivation else None,
        tf32,
    )
    whole = input if input2 is None else torch.cat([input, input2], 1)
    z, bound = expected.product(whole, case.convolve, expected.weight[0].numel())
    if bias is not None:
        z = z + bias.double()[:, None, None]
        bound = bound + UNIT[torch.float32] * z.abs()
    if case.preactivation:
        expected.assert_close(preactivation, z, bound)
    result = reference.activate(z, None if case.activation == "none" else case.activation, 0.1)
    bound = STEEPEST * bound + 8 * UNIT[torch.float32] * z.abs()
    if residual is not None:
        result = result + residual.double()
        bound = bound + UNIT[torch.float32] * result.abs()
    expected.assert_close(output, result, bound)


def check_grad_input(lora: LoraConv, case: Case, dtype: torch.dtype, tf32: bool = False) -> None:
    like, like2 = case.images(dtype)
    adapted = case.adapted(dtype)
    expected = Expected(case, adapted, dtype, tf32)
    grad = case.out_image(dtype)
    first, second = lora.grad_input(grad, adapted, case.geometry, like, like2, tf32)
    ins, outs = case.channels

    def multiply(grad: Tensor, weight: Tensor) -> Tensor:
        x = torch.zeros((case.size[0], ins, *case.size[1:]), dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(case.convolve(x, weight), x, grad)[0]

    terms = outs // case.geometry.groups * case.kernel[0] * case.kernel[1]
    result, bound = expected.product(grad, multiply, terms)
    split = ins - case.second
    expected.assert_close(first, result[:, :split], bound[:, :split])
    if second is not None:
        expected.assert_close(second, result[:, split:], bound[:, split:])
