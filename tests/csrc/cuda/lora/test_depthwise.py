"""csrc/cuda/lora/depthwise.cu, executed on the CPU by the emulation in on_host.

Every tensor lies between NaN guards, and so does shared memory, which starts as NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from ..on_host import emulator
from .cases import Case, check_conv, check_grad_input
from .launchers import Adapted, Geometry, LoraConv


@dataclass(frozen=True)
class Depthwise(Case):
    @property
    def groups(self) -> int:
        return self.channels[0]

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.stride, self.padding, self.dilation, self.groups)

    def adapted(self, dtype: torch.dtype) -> Adapted:
        """Values for which sums of products are near 1."""
        dtype = torch.float32 if self.float_weight else dtype
        channels, (kh, kw) = self.groups, self.kernel
        weight = (torch.randn(channels, 1, kh, kw) / (kh * kw) ** 0.5).to(dtype)
        weight = weight.to(memory_format=self.weight_layout)
        if not self.adapter:
            return Adapted(weight)
        inner = self.rank * min(kh, kw) if self.form == "reshape" else self.rank
        rows, columns = (kh, channels * kw) if self.form == "reshape" else (channels, kh * kw)
        up, down = torch.randn(rows, inner), torch.randn(inner, columns) / (inner * kh * kw) ** 0.5
        return Adapted(weight, up.to(dtype), down.to(dtype), self.scaling)


CASES = {
    "28 channels": Depthwise((28, 28), activation="gelu", residual=True, preactivation=True),
    "29 channels": Depthwise((29, 29), activation="relu", residual=True),
    "32 channels, factored": Depthwise(
        (32, 32), form="factored", activation="leaky_relu", preactivation=True
    ),
    "140 channels": Depthwise((140, 140), size=(1, 2, 3), form="factored", float_weight=True),
    "2 channels": Depthwise((2, 2), size=(1, 1, 1), bias=False),
    "5x5": Depthwise((6, 6), kernel=(5, 5), padding=(2, 2), weight_layout=torch.channels_last),
    "1x1": Depthwise((8, 8), kernel=(1, 1), padding=(0, 0), stride=(2, 1)),
    "41x41": Depthwise((20, 20), kernel=(41, 41), padding=(20, 20), size=(1, 2, 3), rank=1),
    "no adapter": Depthwise((12, 12), adapter=False),
    "stride 2": Depthwise((28, 28), stride=(2, 2), size=(1, 6, 9)),
    "stride above size": Depthwise((4, 4), stride=(6, 9)),
    "dilation 3, stride 2": Depthwise((4, 4), dilation=(3, 2), stride=(2, 4), padding=(3, 0), size=(1, 9, 9)),
    "sliced": Depthwise((12, 12), sliced=True, residual=True, preactivation=True),
    "two inputs": Depthwise((28, 28), second=8, size=(3, 5, 7)),
    "two odd inputs": Depthwise((12, 12), second=5, sliced=True),
}
# float32 is exact: products are not rounded to TF32. bfloat16 sees every case.
OTHER_DTYPES = [torch.float32, torch.float16]


class DepthwiseConv(LoraConv):
    def _run(self, name: str, *arguments: object) -> None:
        super()._run(name.replace("lora_conv", "lora_depthwise"), *arguments)


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    sources = [emulator.CUDA / "lora/depthwise.cu", emulator.TESTS / "lora/depthwise_launchers.cpp"]
    library = emulator.load(tmp_path_factory.mktemp("depthwise"), sources)
    library.cuda_on_host_set_multiprocessors(1)
    return DepthwiseConv(library)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_depthwise(lora, case):
    check_conv(lora, case, torch.bfloat16)
    check_grad_input(lora, case, torch.bfloat16)


@pytest.mark.parametrize("dtype", OTHER_DTYPES, ids=str)
@pytest.mark.parametrize("name", ["29 channels", "32 channels, factored", "two inputs", "two odd inputs"])
def test_the_other_dtypes(lora, name, dtype):
    check_conv(lora, CASES[name], dtype)
    check_grad_input(lora, CASES[name], dtype)


def test_weights_are_rounded_to_the_dtype_of_the_images(lora):
    """Two taps that are then equal cancel."""
    weight = torch.tensor([1 + 2.0**-9, 1]).expand(2, 1, 1, 2).contiguous()
    case = Depthwise((2, 2), kernel=(1, 2), size=(1, 1, 2), padding=(0, 0))
    image = (
        torch.tensor([1, -1], dtype=torch.bfloat16).expand(1, 2, 1, 2).to(memory_format=torch.channels_last)
    )
    output, _ = lora.conv(image, Adapted(weight), case.geometry, case.out_image(torch.bfloat16))
    assert torch.equal(output, torch.zeros(1, 2, 1, 1, dtype=torch.bfloat16))


def test_no_pixels_launch_nothing(lora):
    case = Depthwise((4, 4), size=(0, 5, 7))
    input, _ = case.images(torch.float32)
    output, _ = lora.conv(input, case.adapted(torch.float32), case.geometry, case.out_image(torch.float32))
    assert output.numel() == 0
