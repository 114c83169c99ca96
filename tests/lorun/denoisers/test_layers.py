import pytest
import torch

from lorun.denoisers.layers import conv, double, zero


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_convolution_keeps_height_and_width(size):
    layer = conv(2, 3, size, "gelu")
    assert layer(torch.zeros(1, 2, 7, 6)).shape == (1, 3, 7, 6) and layer.activation == "gelu"


def test_a_layer_of_zeros_gives_zero():
    layer = conv(2, 3, 3)
    zero(layer)
    assert not layer(torch.randn(1, 2, 5, 5)).any()


def test_doubling_keeps_a_slope():
    x = torch.arange(8.0).expand(1, 1, 4, 8)
    assert double(x).shape == (1, 1, 8, 16)
    torch.testing.assert_close(double(x)[0, 0, 0, 1:-1], torch.arange(0.25, 7, 0.5))
