import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import convolve1d

from lorun.physics.bicubic import enlarge, interpolation_weights, keys


def test_the_kernel_worked_out_by_hand():
    distances = torch.tensor([0, 0.5, 1, 1.5, 2, 3], dtype=torch.float64)
    expected = torch.tensor([1, 0.5625, 0, -0.0625, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(keys(distances), expected)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 7])
def test_weights_of_every_step_add_up_to_1(scale):
    weights = interpolation_weights(scale)
    assert weights.shape == (scale, 4)
    torch.testing.assert_close(weights.sum(1), torch.ones(scale).double())
    assert weights[0].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_pixels_stay_at_the_upper_left(scale):
    image = torch.randn(2, 3, 5, 6)
    larger = enlarge(image, scale)
    assert larger.shape == (2, 3, 5 * scale, 6 * scale)
    torch.testing.assert_close(larger[..., ::scale, ::scale], image)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_polynomials_of_the_second_degree_are_kept_inside(scale):
    x = torch.arange(12 * scale, dtype=torch.float64) / scale
    exact = (0.1 * x[:, None].square() - x[:, None]) * (0.05 * x.square() + 2 * x - 3)
    larger = enlarge(exact[::scale, ::scale], scale)
    inside = slice(2 * scale, -3 * scale)
    torch.testing.assert_close(larger[inside, inside], exact[inside, inside])


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_it_is_pillows_inside_once_the_pixels_are_moved(scale):
    image, move = np.random.default_rng(0).random((12, 10), np.float32), (scale - 1) / (2 * scale)
    box = (move, move, 9 + move, 11 + move)
    larger = Image.fromarray(image).resize((9 * scale, 11 * scale), Image.Resampling.BICUBIC, box)
    inside = np.s_[2 * scale : 9 * scale, 2 * scale : 7 * scale]
    found = enlarge(torch.from_numpy(image), scale).numpy()
    np.testing.assert_allclose(found[inside], np.asarray(larger)[inside], atol=1e-6)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_it_is_a_circular_convolution_with_the_sampled_kernel(scale):
    image = np.random.default_rng(0).random((6, 5))
    apart = np.zeros((6 * scale, 5 * scale))
    apart[::scale, ::scale] = image
    sampled = keys((torch.arange(-2 * scale, 2 * scale + 1).double() / scale).abs()).numpy()
    for axis in (0, 1):
        apart = convolve1d(apart, sampled, axis, mode="wrap")
    np.testing.assert_allclose(enlarge(torch.from_numpy(image), scale), apart, atol=1e-12)
