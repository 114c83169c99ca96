import pytest
import torch
from PIL import Image
from skimage.data import camera

from lorun.errors import ArgumentError
from lorun.physics import BlockCS
from lorun.tasks.cs.samples import PhotoSamples
from lorun.tasks.cs.settings import CSNetwork, CSTraining

CPU = torch.device("cpu")


@pytest.fixture
def samples(tmp_path, monkeypatch):
    """samples(phi_start): of four photographs."""
    monkeypatch.setenv("LORUN_DATA", str(tmp_path))
    (tmp_path / "photos").mkdir()
    for index in range(4):
        photo = camera()[index * 100 : index * 100 + 128, 100:300]
        Image.fromarray(photo).save(tmp_path / "photos" / f"{index}.png")
    network = CSNetwork(ratio=0.1, block=8)
    return lambda phi_start="principal": PhotoSamples(network, ("photos",), CSTraining(phi_start), 0)


def test_a_sample_is_measured_by_the_networks_own_phi(samples):
    first, again, other = (samples().sample(index, 3, (16, 16), CPU) for index in (5, 5, 6))
    assert first.physics is None and first.size == (16, 16) and first.images.shape == (3, 1, 16, 16)
    assert torch.equal(first.images, again.images) and not torch.equal(first.images, other.images)
    assert samples().held_out(CPU).images.shape == (1, 1, 96, 96)


def test_phi_starts_from_the_photographs_if_asked(samples):
    physics = BlockCS(0.1, block=8)
    before = physics.phi.detach().clone()
    samples("random").prepare(physics)
    assert torch.equal(physics.phi, before)
    samples().prepare(physics)
    torch.testing.assert_close(physics.phi @ physics.phi.T, torch.eye(7), rtol=0, atol=1e-5)
    assert (physics.phi[0].abs() > 0.05).all()  # the first component is the mean of a block


def test_what_does_not_fit_is_refused(samples):
    photos = samples()
    photos.check([(16, 16), (64, 64)], square=True)
    with pytest.raises(ValueError, match="crop_width: compressive sensing trains on square crops"):
        photos.check([(16, 16)], square=False)
    with pytest.raises(ValueError, match="no training image is 999x999"):
        photos.check([(16, 16), (999, 999)], square=True)
    with pytest.raises(ValueError, match="expected a folder of training photographs, got a file"):
        PhotoSamples(CSNetwork(), ("photos/0.png",), CSTraining(), 0)
    with pytest.raises(ArgumentError, match="data: name at least one folder"):
        PhotoSamples(CSNetwork(), (), CSTraining(), 0)
