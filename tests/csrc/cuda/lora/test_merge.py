"""csrc/cuda/lora/merge.cu and merge_backward.cu, executed on the CPU by the emulation in on_host."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorun_kernels import reference

from ..on_host import emulator
from .cases import SMALLEST, UNIT
from .launchers import DTYPES, Adapted
from .merge_launchers import LoraMerge

FORMATS = [torch.contiguous_format, torch.channels_last]

# (out, in, kernel height, kernel width, groups, rank, form)
SHAPES = {
    "28 to 28": (28, 28, 3, 3, 1, 3, "reshape"),
    "29 to 31, factored": (31, 29, 3, 3, 1, 3, "factored"),
    "2 to 6, 5x5": (6, 2, 5, 5, 1, 2, "reshape"),
    "2x3": (5, 7, 2, 3, 1, 2, "reshape"),
    "1 to 1": (1, 1, 1, 1, 1, 1, "reshape"),
    "28 to 1, 1x1": (1, 28, 1, 1, 1, 1, "reshape"),
    "depthwise": (28, 28, 3, 3, 28, 2, "reshape"),
    "depthwise, factored": (9, 9, 3, 5, 9, 2, "factored"),
}


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    kernels = [emulator.CUDA / "lora" / name for name in ("merge.cu", "merge_backward.cu")]
    sources = [*kernels, emulator.TESTS / "lora/merge_launchers.cpp"]
    return LoraMerge(emulator.load(tmp_path_factory.mktemp("merge"), sources))


def adapted(shape: tuple, dtype: torch.dtype, layout: torch.memory_format) -> Adapted:
    outs, ins, kh, kw, groups, rank, form = shape
    inner = rank * min(kh, kw) if form == "reshape" else rank
    rows, columns = (outs // groups * kh, ins * kw)
    if form == "factored":
        rows, columns = outs, ins // groups * kh * kw
    weight = torch.randn(outs, ins // groups, kh, kw).to(dtype).to(memory_format=layout)
    return Adapted(weight, torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype), -0.5)


def assert_merged(merged: Tensor, layer: Adapted) -> None:
    """As near to the definition in float64 as sums in float and one rounding can be."""
    weight, up, down = (part.double() for part in (layer.weight, layer.up, layer.down))
    expected = reference.merge_lora(weight, up, down, layer.scaling)
    magnitude = reference.merge_lora(weight.abs(), up.abs(), down.abs(), abs(layer.scaling))
    bound = (down.shape[0] + 2) * UNIT[torch.float32] * magnitude
    rounding = UNIT[merged.dtype] * (expected.abs() + bound) + SMALLEST[merged.dtype]
    assert bool(((merged.double() - expected).abs() <= bound + rounding).all())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("merged_layout", FORMATS, ids=str)
def test_merge(lora, shape, layout, merged_layout):
    layer = adapted(shape, torch.bfloat16, layout)
    like = torch.empty(layer.weight.shape, dtype=torch.bfloat16, memory_format=merged_layout)
    assert_merged(lora.merge(layer, like), layer)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("merged_dtype", DTYPES, ids=str)
def test_merge_of_every_dtype(lora, dtype, merged_dtype):
    layer = adapted(SHAPES["2x3"], dtype, torch.contiguous_format)
    assert_merged(lora.merge(layer, torch.empty(layer.weight.shape, dtype=merged_dtype)), layer)


def test_merge_between_other_elements(lora):
    """A weight and a result that are parts of larger tensors."""
    layer = adapted(SHAPES["2x3"], torch.float32, torch.contiguous_format)
    wide = torch.randn(7, 9, 4, 5).permute(0, 1, 3, 2)[1:6, 2:, 1:3, 1:4]
    part = Adapted(wide, layer.up, layer.down, layer.scaling)
    like = torch.empty(3, 2, 7, 5).permute(3, 2, 1, 0)
    assert_merged(lora.merge(part, like), part)


def test_merge_without_an_adapter_is_a_copy(lora):
    weight = torch.randn(5, 7, 3, 3)
    merged = lora.merge(Adapted(weight), torch.empty_like(weight, memory_format=torch.channels_last))
    assert torch.equal(merged, weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_merge_of_a_stage(lora, dtype, layout):
    layers = [adapted(shape, dtype, layout) for shape in SHAPES.values()]
    sizes = [layer.weight.numel() for layer in layers]
    for merged_dtype in {dtype, torch.bfloat16}:
        merged = lora.merge_stage(layers, torch.empty(sum(sizes), dtype=merged_dtype))
        for part, layer in zip(merged.split(sizes), layers, strict=True):
            outs, ins, kh, kw = layer.weight.shape
            assert_merged(part.view(outs, kh, kw, ins).permute(0, 3, 1, 2), layer)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
def test_gradients_of_a_stage(lora, dtype, grad_dtype):
    """As near to autograd through the definition in float64 as sums in float and one rounding can be."""
    shapes = {**SHAPES, "rank 9": (40, 33, 3, 3, 1, 9, "reshape")}
    layers = [adapted(shape, dtype, torch.contiguous_format) for shape in shapes.values()]
    sizes = [layer.weight.numel() for layer in layers]
    grad = torch.randn(sum(sizes)).to(grad_dtype)
    grad_ups, grad_downs = lora.merge_stage_backward(layers, grad)
    ups = grad_ups.split([layer.up.numel() for layer in layers])
    downs = grad_downs.split([layer.down.numel() for layer in layers])
    for layer, part, found in zip(layers, grad.split(sizes), zip(ups, downs, strict=True), strict=True):
        outs, ins, kh, kw = layer.weight.shape
        weight_grad = part.double().view(outs, kh, kw, ins).permute(0, 3, 1, 2)
        up, down = layer.up.double().requires_grad_(), layer.down.double().requires_grad_()
        merged = reference.merge_lora(layer.weight.double(), up, down, layer.scaling)
        expected = torch.autograd.grad(merged, (up, down), weight_grad)
        matrix = weight_grad.abs().reshape(up.shape[0], down.shape[1])
        magnitudes = (matrix @ down.detach().abs().T, up.detach().abs().T @ matrix)
        for result, exact, magnitude, terms in zip(
            found, expected, magnitudes, matrix.shape[::-1], strict=True
        ):
            bound = (terms + 2) * UNIT[torch.float32] * abs(layer.scaling) * magnitude
            rounding = UNIT[dtype] * (exact.abs() + bound) + SMALLEST[dtype]
            error = (result.double().view_as(exact) - exact).abs()
            assert bool((error <= bound + rounding).all())
