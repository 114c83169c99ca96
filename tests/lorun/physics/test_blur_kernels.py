import math

import numpy as np
import pytest
import scipy.io
import scipy.ndimage
import torch
from PIL import Image

from lorun.physics import SuperResolution
from lorun.physics.blur_kernels import bicubic_kernel, gaussian_kernel, motion_kernel, normalised


def moments(kernel: torch.Tensor) -> tuple[list[float], np.ndarray]:
    """The centre of mass from the middle, (row, column), and the covariance."""
    weights = kernel.double().numpy()
    places = np.stack(np.mgrid[: kernel.shape[0], : kernel.shape[1]]) - kernel.shape[0] // 2
    centre = [(weights * place).sum() for place in places]
    rows, columns = (place - of for place, of in zip(places, centre, strict=True))
    covariance = [[(weights * a * b).sum() for b in (rows, columns)] for a in (rows, columns)]
    return centre, np.array(covariance)


@pytest.fixture
def published(lorun_data) -> list[np.ndarray]:
    return list(scipy.io.loadmat(lorun_data / "sr/kernels_12.mat")["kernels"].ravel())


@pytest.mark.parametrize("number, width", list(enumerate([0.7, 1.2, 1.6, 2.0])))
def test_isotropic_ones_are_the_published(published, number, width):
    np.testing.assert_allclose(gaussian_kernel(width), published[number], rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "number, variances, angle",
    [(4, (7, 2), 0), (5, (9, 1.5), 144), (6, (8, 1.5), 45), (7, (7, 5), 52.2)],
)
def test_anisotropic_ones_are_the_published(published, number, variances, angle):
    kernel = gaussian_kernel((math.sqrt(variances[0]), math.sqrt(variances[1])), angle)
    np.testing.assert_allclose(kernel, published[number], rtol=0, atol=1e-8)


def test_standard_deviations_along_its_axes():
    kernel = gaussian_kernel((3, 1.5), 30, side=41)
    centre, covariance = moments(kernel)
    np.testing.assert_allclose(centre, [0, 0], atol=1e-6)
    axis = np.array([math.sin(math.radians(30)), math.cos(math.radians(30))])  # clockwise, rows go down
    across = np.array([axis[1], -axis[0]])
    assert axis @ covariance @ axis == pytest.approx(9, rel=1e-4)
    assert across @ covariance @ across == pytest.approx(2.25, rel=1e-4)


@pytest.mark.parametrize(
    "kernel",
    [gaussian_kernel(0.1), gaussian_kernel((9, 0.5), 77), gaussian_kernel(4, side=1), bicubic_kernel(3)],
    ids=["narrow", "wider than its side", "one pixel", "bicubic"],
)
def test_they_sum_to_1(kernel):
    assert kernel.dtype == torch.float32
    assert kernel.double().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("side", [25, 9])
def test_motion_is_one_path_around_the_middle(seed, side):
    kernel = motion_kernel(np.random.default_rng(seed), side)
    assert kernel.shape == (side, side) and kernel.dtype == torch.float32 and kernel.min() >= 0
    assert kernel.sum().item() == pytest.approx(1, abs=1e-6)
    pieces, count = scipy.ndimage.label(kernel.numpy() > 0, np.ones((3, 3)))
    assert count == 1
    assert np.abs(moments(kernel)[0]).max() < 1e-4
    again, other = (motion_kernel(np.random.default_rng(of), side) for of in (seed, seed + 100))
    assert torch.equal(kernel, again) and not torch.equal(kernel, other)


def test_a_longer_motion_covers_more_pixels():
    short, long = (
        np.mean([(motion_kernel(np.random.default_rng(s), 25, of) > 0).sum() for s in range(10)])
        for of in (5, 20)
    )
    assert long > 2 * short


@pytest.mark.parametrize("length, farthest", [(1e-6, 1), (4, 5), (1e6, 11)])
def test_motion_of_any_length_stays_within_its_kernel(length, farthest):
    """Whatever the length, a pixel is left on every side, over which the last point is spread."""
    for seed in range(10):
        kernel = motion_kernel(np.random.default_rng(seed), 25, length)
        assert kernel.sum().item() == pytest.approx(1, abs=1e-6)
        reached = ((kernel > 0).nonzero() - 12).abs().max().item()
        assert 0 < reached <= farthest


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_shrinking_is_pillows_inside(scale):
    image = np.random.default_rng(0).random((24 * scale, 20 * scale), np.float32)
    expected = np.asarray(Image.fromarray(image).resize((20, 24), Image.Resampling.BICUBIC))
    physics = SuperResolution(bicubic_kernel(scale), scale, channels=1)
    found = physics.A(torch.from_numpy(image)[None, None])[0, 0]
    np.testing.assert_allclose(found[3:-3, 3:-3], expected[3:-3, 3:-3], atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_bicubic_shrinking_moves_by_half_of_what_it_leaves_out(scale):
    centre, _ = moments(bicubic_kernel(scale))
    np.testing.assert_allclose(centre, [-(scale - 1) / 2] * 2, atol=1e-6)


def test_bicubic_shrinking_is_close_to_the_published_approximations(lorun_data):
    published = scipy.io.loadmat(lorun_data / "sr/kernels_bicubicx234.mat")["kernels"].ravel()
    for scale, kernel in zip((2, 3, 4), published, strict=True):
        ours = bicubic_kernel(scale).numpy()
        ours = np.pad(ours, (25 - len(ours)) // 2)
        assert np.abs(ours - kernel).max() < 0.04 * kernel.max()


def test_normalised_kernels_sum_to_1():
    kernel = torch.rand(4, 5)
    torch.testing.assert_close(normalised(3 * kernel), kernel / kernel.sum())
    assert normalised(torch.tensor([[1, 1]])).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: gaussian_kernel(0), "width: expected one or two standard deviations above 0, got 0"),
        (lambda: gaussian_kernel((1, -1)), "width: expected one or two"),
        (lambda: gaussian_kernel(float("nan")), "width: expected one or two"),
        (lambda: gaussian_kernel(1, side=4), "side: expected an odd number of at least 1 pixels, got 4"),
        (lambda: motion_kernel(np.random.default_rng(0), 1), "side: expected an odd number of at least 3"),
        (lambda: motion_kernel(np.random.default_rng(0), 9, 0), "length: expected a path of more than 0"),
        (lambda: gaussian_kernel(1.0, float("nan")), "angle: expected degrees, got nan"),
        (lambda: gaussian_kernel(1, side=4.5), "side: expected an odd number"),
        (lambda: bicubic_kernel(0), "scale: expected a whole number of at least 1, such as 2, got 0"),
        (lambda: bicubic_kernel(1.5), "scale: expected a whole number"),
        (lambda: normalised(torch.full((2, 2), math.inf)), "kernel: expected a sum above 0, got inf"),
        (lambda: normalised(torch.zeros(3, 3)), "kernel: expected a sum above 0, got 0"),
    ],
)
def test_arguments_out_of_their_range(call, words):
    with pytest.raises(ValueError, match=words):
        call()
