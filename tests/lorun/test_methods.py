import numpy as np
import pytest
import torch

from lorun.methods import NetworkMethod, UntrainedMethod
from lorun.networks import build_network, network_config
from lorun.physics import CASSI


@pytest.fixture
def net():
    return build_network(network_config("cassi", algorithm="hqs", bands=3, width=4, stages=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_restores_in_its_own_dtype_and_leaves_the_camera_as_it_is(net, dtype):
    camera = CASSI(torch.rand(12, 16), bands=3)
    y = camera.A(torch.rand(1, 3, 12, 16))
    image = NetworkMethod(net.to(dtype)).restore(y, camera, (12, 16))
    assert image.shape == (3, 12, 16) and image.dtype == np.float32 and 0 <= image.min() <= image.max() <= 1
    assert camera.mask.dtype == torch.float32 and not net.training


def test_tiles_that_are_too_small_are_refused_before_the_work(net):
    with pytest.raises(ValueError, match="tile: expected at least 84"):
        NetworkMethod(net, tile=83)


def test_a_method_without_a_network_uses_its_own_physics_or_the_scenes():
    own, other = (CASSI(torch.full((4, 6), value), bands=2) for value in (1.0, 0.5))
    method = UntrainedMethod(lambda y, camera: camera.A_adjoint(y), own)
    y = torch.full((1, 4, 8), 0.25)
    assert method.restore(y, None, (4, 6)).max() == pytest.approx(0.25)
    assert method.restore(y, other, (3, 5)).shape == (2, 3, 5)
    assert method.restore(y, other, (4, 6)).max() == pytest.approx(0.125)
