import numpy as np
import pytest
import torch

import lorun
from lorun.errors import ArgumentError
from lorun.metrics import psnr
from lorun.networks import NetworkConfig, build_network
from lorun.tasks.cassi.restorer import (
    SpectralRestorer,
    camera_of,
    from_real,
    measure,
    snapshot_tensor,
)

BANDS, HEIGHT, WIDTH = 4, 20, 24
RANDOM = np.random.default_rng(0)
MASK = RANDOM.random((HEIGHT, WIDTH)).astype(np.float32)


def smooth_cube() -> np.ndarray:
    rows, columns = np.indices((HEIGHT, WIDTH))
    return np.stack([0.5 + 0.4 * np.sin(rows / 5 + band / 3) * np.cos(columns / 6) for band in range(BANDS)])


def network(**changes) -> lorun.UnfoldingNetwork:
    options = {"task": "cassi", "algorithm": "hqs", "bands": BANDS, "width": 4, "stages": 2}
    return build_network(NetworkConfig(**(options | changes)))


@pytest.fixture
def restorer():
    return SpectralRestorer(network())


def test_a_snapshot_worked_out_by_hand():
    cube = np.array([[[0.1, 0.2]], [[0.3, 0.4]]])
    mask = np.array([[1.0, 0.5]])
    np.testing.assert_allclose(measure(cube, mask, step=1), [[0.1, 0.1 + 0.3, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(measure(cube, mask), [[0.1, 0.1, 0.3, 0.2]], rtol=1e-6)
    bands = np.array([[[1.0, 0.5]], [[0.0, 1.0]]])
    np.testing.assert_allclose(measure(cube, bands), [[0.1, 0.1, 0.0, 0.4]], rtol=1e-6)


@pytest.mark.parametrize("mask", [MASK, np.stack([MASK] * BANDS)], ids=["2-D", "3-D"])
def test_it_restores_a_smooth_cube(restorer, mask):
    cube = smooth_cube()
    restored = restorer.restore(measure(cube, mask), mask)
    assert restored.shape == cube.shape and restored.dtype == np.float32
    assert restored.min() >= 0 and restored.max() <= 1
    assert psnr(restored, cube, "cassi-float") > 20


def test_any_mask_and_size_at_each_call(restorer):
    for height, width in ((8, 9), (13, 30)):
        mask = RANDOM.random((height, width))
        assert restorer.restore(mask[:, :1].repeat(width + 6, 1), mask).shape == (BANDS, height, width)


@pytest.mark.parametrize("bands", [4, 28])
def test_a_real_snapshot_is_brought_to_the_scale_of_a_sum(bands):
    y = np.full((20, 20), 0.25, np.float32)
    y[0, :2] = 0.5, 1.25
    found = from_real(y, bands)
    # 1.25 is clipped to 1, which becomes 0.8 of the sensor's range, a sum of bands / 2.4.
    np.testing.assert_allclose(found[0, :3], np.array([0.4, 0.8, 0.2]) * bands / 2.4, rtol=1e-6)
    assert found.dtype == np.float32


def test_a_real_snapshot_on_another_scale_is_refused():
    with pytest.raises(ArgumentError, match="y: 50% of the snapshot is above 1, up to 4095; divide it"):
        from_real(np.array([[0.5, 4095.0]]), 28)
    with pytest.raises(ValueError, match="the snapshot is black"):
        from_real(np.zeros((4, 4)), 28)


def spoiled(value: float) -> np.ndarray:
    y = np.ones((HEIGHT, WIDTH + 6), np.float32)
    y[3, 4] = value
    return y


@pytest.mark.parametrize(
    "y, words",
    [
        (spoiled(np.nan), "y: the snapshot holds NaN, Inf or negative"),
        (spoiled(np.inf), "y: the snapshot holds NaN, Inf or negative"),
        (spoiled(-0.1), "y: the snapshot holds NaN, Inf or negative"),
        (spoiled(1e4), r"y: .* up to 1e\+04, where 4 bands in \[0, 1\] add up to 4 at most; divide it"),
        (spoiled(1).astype(int), r"y: expected a float array \(H, W'\), got int64"),
        (spoiled(1)[None], r"y: expected a float array \(H, W'\), got float32 \(1, 20, 30\)"),
        (spoiled(1)[:, 1:], r"y: expected \(B, 20, 30\) .*, got \(1, 20, 29\)"),
        (np.zeros((0, 0), np.float32), r"y: expected \(B, 20, 30\)"),
    ],
)
@pytest.mark.parametrize(
    "method",
    [SpectralRestorer(network()).restore, lambda y, mask: snapshot_tensor(y, camera_of(mask, BANDS, 2))],
    ids=["restorer", "methods without a network"],
)
def test_bad_snapshots_say_what_was_expected(method, y, words):
    mask = MASK / MASK.max()
    with pytest.raises(ValueError, match=words):
        method(y, mask)


def test_a_bad_mask_says_what_was_expected(restorer):
    with pytest.raises(ValueError, match="mask: expected finite values of at least 0"):
        restorer.restore(spoiled(1), np.zeros((HEIGHT, WIDTH)))
    with pytest.raises(ValueError, match="mask: expected 4 bands in dimension 0"):
        restorer.restore(spoiled(1), np.ones((3, HEIGHT, WIDTH)))


def test_each_restorer_refuses_the_others_networks():
    with pytest.raises(
        ValueError, match="net: expected a network for CASSI, got one for BlockCS; lorun.Restor"
    ):
        lorun.SpectralRestorer(build_network(NetworkConfig(ratio=0.1, block=8, width=4, stages=1)))
    with pytest.raises(
        ValueError,
        match="net: expected a network for compressive sensing, got one for CASSI; lorun.SpectralR",
    ):
        lorun.Restorer(network())


@pytest.mark.parametrize("denoiser, least", [("unet", 84), ("transformer", 128)])
def test_tiles_that_are_too_small_are_refused_before_the_work(denoiser, least):
    net = network(denoiser=denoiser, stages=1)
    SpectralRestorer(net, tile=least)
    for tile in (least - 1, 0, -5):
        with pytest.raises(ValueError, match=f"tile: expected at least {least} pixels .*, got {tile}"):
            SpectralRestorer(net, tile=tile)


def test_restoring_leaves_the_input_and_keeps_no_graph(restorer):
    y, mask = spoiled(0.5), MASK.copy()
    restorer.restore(y, mask)
    assert np.array_equal(y, spoiled(0.5)) and np.array_equal(mask, MASK)
    assert all(p.grad is None for p in restorer.net.parameters()) and not restorer.net.training
    assert torch.is_grad_enabled()


def test_a_mask_may_be_a_list_and_the_network_stays(restorer):
    y = spoiled(0.5)
    np.testing.assert_array_equal(restorer.restore(y, MASK.tolist()), restorer.restore(y, MASK))
    with pytest.raises(AttributeError):
        restorer.net = network()
