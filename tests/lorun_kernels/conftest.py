"""Sample inputs shared by the correctness, gradient, opcheck and compile tests of the ops."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.lorun_kernels.cassi_samples import SAMPLES, CassiSample


@dataclass(frozen=True)
class ConvSample:
    """A low-rank convolution; `tensors` draws its operands in any dtype, `options` are the rest."""

    in_channels: int = 4
    out_channels: int = 6
    kernel: tuple[int, int] = (3, 3)
    size: tuple[int, ...] = (2, 7, 5)
    rank: int = 2
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    form: str = "reshape"
    scaling: float = 1.0
    bias: bool = True
    layout: torch.memory_format = torch.contiguous_format

    def tensors(self, dtype: torch.dtype = torch.float32, requires_grad: bool = False) -> list[Tensor | None]:
        """input, weight, lora_up, lora_down, bias."""
        kh, kw = self.kernel
        image = (*self.size[:-2], self.in_channels, *self.size[-2:])
        weight = (self.out_channels, self.in_channels // self.groups, kh, kw)
        if self.form == "reshape":
            inner = self.rank * min(kh, kw)
            up = (self.out_channels // self.groups * kh, inner)
            down = (inner, self.in_channels * kw)
        else:
            up, down = (self.out_channels, self.rank), (self.rank, weight[1] * kh * kw)
        generator = torch.Generator().manual_seed(0)
        shapes = [image, weight, up, down, (self.out_channels,)]
        tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        for index in range(2):
            if tensors[index].dim() == 4:
                tensors[index] = tensors[index].to(memory_format=self.layout)
        drawn = [tensor.to(dtype).requires_grad_(requires_grad) for tensor in tensors]
        return drawn if self.bias else [*drawn[:4], None]

    @property
    def geometry(self) -> list:
        return [list(self.stride), list(self.padding), list(self.dilation), self.groups]

    @property
    def options(self) -> list:
        return [*self.geometry, self.scaling, self.form]


CONV_SAMPLES = {
    "square": ConvSample(),
    "channels_last": ConvSample(layout=torch.channels_last),
    "strided": ConvSample(stride=(2, 1), padding=(0, 2), scaling=0.5),
    "dilated": ConvSample(dilation=(2, 1), padding=(2, 0), bias=False),
    "grouped": ConvSample(groups=2, layout=torch.channels_last),
    "depthwise": ConvSample(in_channels=3, out_channels=3, groups=3, rank=1),
    "1x1": ConvSample(kernel=(1, 1), padding=(0, 0), layout=torch.channels_last),
    "tall": ConvSample(kernel=(3, 1), padding=(1, 0)),
    "wide": ConvSample(kernel=(2, 5), padding=(0, 2), scaling=-2.0, layout=torch.channels_last),
    "factored": ConvSample(form="factored", layout=torch.channels_last),
    "factored grouped wide": ConvSample(form="factored", groups=2, kernel=(1, 3), padding=(0, 1)),
    "one channel": ConvSample(in_channels=1, out_channels=1, rank=1),
    "no batch": ConvSample(size=(6, 5)),
    "empty batch": ConvSample(size=(0, 6, 5)),
}


@pytest.fixture(params=CONV_SAMPLES.values(), ids=CONV_SAMPLES.keys())
def conv_sample(request) -> ConvSample:
    return request.param


@pytest.fixture
def make_conv_sample() -> type[ConvSample]:
    return ConvSample


@pytest.fixture(params=SAMPLES.values(), ids=SAMPLES.keys())
def sample(request) -> CassiSample:
    return request.param
