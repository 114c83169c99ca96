import numpy as np
import pytest
import scipy.ndimage
import torch

from lorun.physics import SuperResolution
from lorun.physics.bicubic import enlarge
from lorun.physics.blur_kernels import gaussian_kernel
from lorun.tasks.sr.borders import margin_for, periodic


@pytest.mark.parametrize("size", [(30, 37), (2, 3), (1, 50)])
def test_the_image_stays_and_is_continued_by_the_margin_at_least(size):
    image = np.random.default_rng(0).random((3, *size), np.float32)
    continued = periodic(image, 8)
    assert continued.dtype == np.float32
    np.testing.assert_array_equal(continued[:, : size[0], : size[1]], image)
    assert continued.shape[1] >= size[0] + 8 and continued.shape[2] >= size[1] + 8
    assert image.min() <= continued.min() and continued.max() <= image.max()


def test_borders_meet():
    ramp = np.broadcast_to(np.linspace(0, 1, 40, dtype=np.float32), (1, 25, 40))
    row = periodic(ramp, 20)[0, 3]
    jumps = np.abs(np.diff(np.append(row, row[0])))
    assert jumps.max() < 3 / 20  # it goes back over some 20 pixels instead of at once
    assert abs(row[40] - row[39]) < 0.1 and abs(row[-1] - row[0]) < 0.1


def test_every_side_of_the_continuation_is_good_for_an_fft():
    for side in (97, 211, 509):
        length = periodic(np.zeros((1, side, side), np.float32), 10).shape[1]
        for prime in (2, 3, 5, 7, 11):
            while length % prime == 0:
                length //= prime
        assert length == 1


def test_a_margin_is_as_long_as_a_kernel():
    assert margin_for(torch.ones(25, 25), 2) == 13
    assert margin_for(torch.ones(3, 31), 1) == 31
    assert margin_for(torch.ones(5, 5), 4) == 8


def test_the_borders_of_a_photograph_do_not_shine_through(lorun_data):
    """Blurred as a camera does, not around the border; undone by one step of Tikhonov's."""
    from lorun.data import read_colour

    kernel, scale = gaussian_kernel(1.6), 2
    whole = read_colour(lorun_data / "test/set5/baby.bmp")
    blurred = np.stack([scipy.ndimage.convolve(band, kernel.numpy(), mode="mirror") for band in whole])
    truth, y = whole[:, 40:440, 30:450], blurred[:, 40:440:scale, 30:450:scale]

    def psnr(measured):
        y = torch.from_numpy(np.ascontiguousarray(measured))[None]
        restored = SuperResolution(kernel, scale).hqs_step(enlarge(y, scale), y, 2e-3)[0, :, :400, :420]
        return -10 * np.log10(np.mean((restored.numpy() - truth) ** 2))

    assert psnr(periodic(y, margin_for(kernel, scale))) > psnr(y) + 8
