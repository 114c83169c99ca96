"""ISTA-Net+ with its published weights, whose PSNR is known, and what LoRun makes of it."""

import copy

import numpy as np
import pytest
import torch

import lorun
from benchmarks.peers.ista_net_plus import published, to_blocks, to_photo
from lorun import metrics
from lorun.data import list_photos, read_grey
from lorun_kernels import adapted_weights


@pytest.fixture
def net(lorun_data):
    return published(lorun_data / "peers", 25)


def test_blocks_make_the_photograph_again():
    photo = np.random.default_rng(0).random((70, 40), dtype=np.float32)
    blocks = to_blocks(photo)
    assert blocks.shape == (6, 1089) and np.array_equal(to_photo(blocks, photo.shape), photo)


@torch.no_grad()
def test_it_has_the_published_quality_and_compression_keeps_it_if_all_is_kept(net, lorun_data):
    photos = [read_grey(path) for path in list_photos(lorun_data / "test" / "set11")]
    restored = [to_photo(net(to_blocks(photo)), photo.shape) for photo in photos]
    values = [metrics.psnr(x, photo, "cs") for x, photo in zip(restored, photos, strict=True)]
    assert np.mean(values) == pytest.approx(32.44, abs=0.01)
    blocks = to_blocks(photos[0])
    whole = lorun.compress(copy.deepcopy(net), "fcs", gamma=100)
    # Base and delta are rounded each; nine stages make 1e-4 of that, a fortieth of a grey level.
    torch.testing.assert_close(whole(blocks), net(blocks), atol=2e-4, rtol=0)


def test_its_bare_parameters_get_adapters_that_learn(net):
    shared = lorun.share_stages(copy.deepcopy(net), "fcs")
    blocks = torch.rand(2, 1089)
    (shared(blocks) - blocks).square().mean().backward()
    tensors = [weight.tensors[0] for weight in adapted_weights(shared).values()]
    assert len(tensors) == 9 * 6 and all(t.grad is not None and t.grad.any() for t in tensors)
    assert len({id(stage.soft_thr) for stage in shared.fcs}) == 9
