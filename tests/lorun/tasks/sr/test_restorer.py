import numpy as np
import pytest
import torch

import lorun
from lorun.networks import build_network, network_config
from lorun.physics import SuperResolution
from lorun.physics.blur_kernels import gaussian_kernel
from lorun.tasks.sr.restorer import SuperResolver, photo_tensor

KERNEL = gaussian_kernel(1.2, side=9).numpy()


def network(**settings):
    net = build_network(network_config("sr", width=4, stages=2, **settings))
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    return net


def photo(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def test_colour_comes_out_in_colour_and_grey_in_grey():
    restorer = SuperResolver(network())
    for shape in ((30, 25, 3), (30, 25)):
        enlarged = restorer.restore(photo(*shape), KERNEL, 3)
        assert enlarged.shape == (90, 75, *shape[2:]) and enlarged.dtype == np.float32
        assert 0 <= enlarged.min() <= enlarged.max() <= 1
    grey = SuperResolver(network(channels=1)).restore(photo(30, 25), KERNEL, 2)
    assert grey.shape == (60, 50)


def test_lists_are_taken_as_arrays():
    restorer, image = SuperResolver(network()), photo(12, 10)
    np.testing.assert_array_equal(
        restorer.restore(image.tolist(), KERNEL.tolist(), 2), restorer.restore(image, KERNEL, 2)
    )


def test_a_circular_measurement_is_restored_as_the_network_does():
    net = network()
    physics = SuperResolution(torch.from_numpy(KERNEL), 2, noise_level=0.01)
    y = photo(24, 20, 3)
    expected = net(torch.from_numpy(y).permute(2, 0, 1)[None], physics=physics)[0].clamp(0, 1)
    restored = SuperResolver(net).restore(y, KERNEL * 5, 2, noise=0.01, circular=True)
    np.testing.assert_allclose(restored.transpose(2, 0, 1), expected.detach(), atol=1e-6)


def test_a_photograph_is_continued_beyond_its_borders():
    """Black on the left and white on the right: on the left, the white must not shine through."""
    halves = np.zeros((40, 40, 3), np.float32)
    halves[:, 20:] = 1
    net = build_network(network_config("sr", width=4, stages=3))  # a denoiser that is the identity
    photographed = SuperResolver(net).restore(halves, KERNEL, 2)
    circular = SuperResolver(net).restore(halves, KERNEL, 2, circular=True)
    assert photographed[:, :8].max() < 0.03 and circular[:, :8].max() > 0.1


def test_tiles_give_what_the_whole_gives():
    net = network()
    y = photo(150, 160, 3)
    whole, tiled = (SuperResolver(net, tile).restore(y, KERNEL, 2) for tile in (None, 224))
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((photo(8, 8, 4), KERNEL, 2), r"image: expected \(H, W, 3\) or a grey \(H, W\), got \(8, 8, 4\)"),
        ((photo(8, 8, 3) * 255, KERNEL, 2), "image: expected floats in .0, 1. without NaN, got float32"),
        ((np.zeros((8, 8), np.uint8), KERNEL, 2), "image: expected floats in .0, 1. without NaN, got uint8"),
        ((np.full((8, 8), np.nan), KERNEL, 2), "image: expected floats"),
        ((photo(4, 4), KERNEL, 2), "kernel: expected one within the image of 8x8 pixels, got 9x9"),
        ((photo(8, 8), KERNEL[0], 2), "kernel: expected .kh, kw. numbers"),
        ((photo(8, 8), KERNEL * 0, 2), "expected a sum above 0"),
        ((photo(8, 8), KERNEL, 0), "scale: expected a whole number of at least 1"),
        ((photo(8, 8), KERNEL, 1.5), "scale: expected a whole number of at least 1"),
        (
            (photo(8, 8), KERNEL, 2, -1),
            "noise: expected a standard deviation of 0 to 1, where white is 1, got -1",
        ),
        ((photo(8, 8), KERNEL[:3, :3], 2, 25), "noise: expected .* got 25; 25 of 255 is 0.098"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        SuperResolver(network()).restore(*arguments)


def test_networks_for_other_tasks_and_colours_are_refused():
    with pytest.raises(ValueError, match="expected a network for super-resolution, got one for BlockCS"):
        SuperResolver(lorun.create_model("cs25-unet-lorun9"))
    with pytest.raises(ValueError, match="tile: expected at least 208"):
        SuperResolver(network(), tile=100)
    with pytest.raises(ValueError, match="image: expected a grey image .* got 3 colours"):
        photo_tensor(photo(3, 8, 8), 1)
