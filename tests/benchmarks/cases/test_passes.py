"""The kernels of a layer, counted by hand."""

import pytest

from benchmarks.cases.layers import bare, named_layer
from benchmarks.cases.passes import Pass, Sizes, backward, conv_flops, forward, tile_flops
from benchmarks.report.roofline import ASSUMED, microseconds

SQUARE = named_layer("28->28 3x3 @256 gelu")
RESIDUAL = named_layer("28->28 3x3 @256 +residual")
DECODER = named_layer("56+28->28 3x3 @256 gelu")
# Eight images of 28 channels at 256 x 256, two bytes each.
IMAGE = 8 * 28 * 256 * 256 * 2


def test_one_layer_by_hand():
    """7.4 GFLOP and 59 MB."""
    assert conv_flops(SQUARE, 8) == 2 * 8 * 256 * 256 * 28 * 28 * 9 == 7_398_752_256
    weight, adapter, bias = 28 * 28 * 9 * 2, 2 * (84 * 9) * 2, 28 * 2
    assert Sizes.of(SQUARE, 8) == Sizes(IMAGE, IMAGE, weight, adapter, bias)
    (fused,) = forward(SQUARE, 8, "fused")
    assert fused.bytes == 2 * IMAGE + weight + adapter + bias == 58_737_448
    # The merge is 84 x 84 results of nine products.
    assert fused.flops == 7_398_752_256 + 2 * 84 * 84 * 9
    assert tile_flops(SQUARE, 8) == 2 * 8 * 256 * 256 * 32 * 32 * 9
    assert ASSUMED.binds(fused) == "memory"
    assert microseconds(ASSUMED, [fused]) == pytest.approx(13.66, abs=0.01)


def _images(passes: list[Pass]) -> dict[str, int]:
    """Traffic in 28-channel images; weights are rounded away."""
    return {one.name: round(one.bytes / IMAGE) for one in passes}


def test_passes_of_the_separate_kernels_by_hand():
    merge = {"merge": 0}
    assert _images(forward(SQUARE, 8, "cudnn")) == merge | {"convolution": 2, "bias": 2, "activation": 2}
    assert _images(forward(RESIDUAL, 8, "cudnn")) == merge | {"convolution": 2, "bias": 2, "residual": 3}
    assert _images(forward(RESIDUAL, 8, "fused")) == {"fused convolution": 3}
    compiled = {"concatenation": 6, "convolution": 4, "bias, activation, residual": 2}
    assert _images(forward(DECODER, 8, "compiled")) == compiled
    assert _images(forward(DECODER, 8, "template")) == {"concatenation": 6, "convolution and epilogue": 4}
    assert _images(forward(DECODER, 8, "fused")) == {"fused convolution": 4}
    assert _images(forward(bare(DECODER), 8, "plain")) == {"convolution": 4, "bias": 2}
    factors = ["product of the factors", "sum with the base"]
    assert [one.name for one in forward(bare(SQUARE), 8, "loralib")] == [*factors, "convolution", "bias"]


def test_training_by_hand():
    assert _images(forward(SQUARE, 8, "fused", training=True)) == {"fused convolution": 3}
    assert _images(forward(RESIDUAL, 8, "fused", training=True)) == {"fused convolution": 3}
    gradients = {"activation": 3, "input's gradient": 4, "adapter's gradient": 4}
    assert _images(backward(DECODER, 8, "fused")) == gradients
    of_w = {"input's gradient": 2, "weight's gradient": 2, "gradients of the factors": 0}
    assert _images(backward(RESIDUAL, 8, "loralib")) == of_w
    flops = [one.flops for one in backward(SQUARE, 1, "loralib")]
    assert flops == [0, conv_flops(SQUARE, 1), conv_flops(SQUARE, 1), 4 * 84 * 84 * 9]
