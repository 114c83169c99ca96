import numpy as np
import pytest
import torch

import lorun
from lorun.physics import BlockCS


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_dtype_restores_and_reports(dtype):
    image = np.random.default_rng(0).random((40, 33)).astype(np.float32)
    net = lorun.create_model("cs25-unet-lorun9")
    single = lorun.Restorer(net)
    expected = single.restore(single.measure(image))
    flops = lorun.report(net, (64, 64)).flops
    other = lorun.Restorer(net.to(dtype))
    restored = other.restore(other.measure(image))
    assert restored.dtype == np.float32 and restored.shape == image.shape
    assert np.abs(restored - expected).max() < (1e-4 if dtype == torch.float64 else 0.2)
    assert lorun.report(net, (64, 64)).flops == flops


def test_strides_and_whole_numbers_do_not_matter():
    restorer = lorun.Restorer(lorun.create_model("cs25-unet-shared9"))
    image = np.random.default_rng(0).integers(0, 2, (64, 96))
    expected = restorer.measure(image.astype(np.float32)).y
    np.testing.assert_array_equal(restorer.measure(image).y, expected)
    np.testing.assert_array_equal(restorer.measure(np.asfortranarray(image)).y, expected)
    np.testing.assert_array_equal(restorer.measure(np.repeat(image, 2, 1)[:, ::2]).y, expected)


def test_an_adapter_has_phis_dtype():
    physics = BlockCS(0.25, block=8).double()
    physics.add_adapter(2)
    assert physics.matrix().dtype == torch.float64
