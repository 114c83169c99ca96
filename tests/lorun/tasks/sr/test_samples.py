import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from lorun.physics.blur_kernels import bicubic_kernel
from lorun.tasks.sr.samples import PhotoSamples, centred
from lorun.tasks.sr.settings import Degradation, SRNetwork, SRTraining

CPU = torch.device("cpu")


@pytest.fixture
def samples(tmp_path, monkeypatch):
    """samples(**degradation): of four photographs in colour."""
    monkeypatch.setenv("LORUN_DATA", str(tmp_path))
    (tmp_path / "photos").mkdir()
    for index in range(4):
        Image.fromarray(astronaut()[index * 100 : index * 100 + 128, 100:300]).save(
            tmp_path / "photos" / f"{index}.png"
        )

    def make(channels=3, **degradation):
        settings = SRTraining(Degradation(**degradation))
        return PhotoSamples(SRNetwork(channels=channels), ("photos",), settings, 0)

    return make


def test_the_same_index_gives_the_same_sample_and_measurement(samples):
    first, again, other = (samples().sample(index, 3, (48, 48), CPU) for index in (5, 5, 6))
    assert torch.equal(first.images, again.images) and torch.equal(first.physics.kernel, again.physics.kernel)
    assert torch.equal(first.physics(first.images), again.physics(again.images))
    assert not torch.equal(first.images[..., :45, :45], other.images[..., :45, :45])


def test_a_sample_has_one_scale_and_a_kernel_and_a_noise_level_for_each_image(samples):
    photos = samples()
    seen = [photos.sample(index, 6, (50, 50), CPU) for index in range(12)]
    assert {sample.physics.scale for sample in seen} == {2, 3, 4}
    levels = torch.cat([sample.physics.noise_level for sample in seen])
    assert 0.4 < (levels == 0).float().mean() < 0.8 and levels.max() <= 0.05
    for sample in seen:
        scale = sample.physics.scale
        assert sample.images.shape == (6, 3, 50 // scale * scale, 50 // scale * scale)
        assert sample.physics(sample.images).shape[-1] == 50 // scale
        assert sample.physics.kernel.shape == (6, 25, 25)
        torch.testing.assert_close(sample.physics.kernel.sum((1, 2)), torch.ones(6))


@pytest.mark.parametrize(
    "shares, negative, one_piece",
    [({"motion": 1, "bicubic": 0}, False, False), ({"motion": 0, "bicubic": 1}, True, True)],
)
def test_shares_decide_the_kind_of_a_kernel(samples, shares, negative, one_piece):
    kernels = samples(**shares).sample(0, 4, (48, 48), CPU).physics.kernel
    assert bool((kernels < 0).any()) == negative
    assert bool((kernels == kernels[:1]).all()) == one_piece


@pytest.mark.parametrize("scale, side", [(2, 5), (4, 9), (6, 25), (2, 25)])
def test_a_kernel_that_is_cut_keeps_the_brightness(scale, side):
    kernel = centred(bicubic_kernel(scale), side)
    assert kernel.shape == (side, side) and kernel.sum().item() == pytest.approx(1, abs=1e-6)


def test_what_is_held_out_is_clean_and_never_sampled(samples):
    held_out = samples().held_out(CPU)
    assert held_out.images.shape == (4, 3, 96, 96) and held_out.physics.scale == 3
    assert held_out.physics.noise is None and held_out.physics.kernel.shape == (4, 25, 25)
    grey = samples(channels=1).held_out(CPU)
    assert grey.images.shape == (4, 1, 96, 96) and grey.physics.channels == 1


def test_grey_photographs_have_three_equal_channels(samples, tmp_path):
    Image.fromarray(np.full((100, 100), 77, np.uint8)).save(tmp_path / "photos" / "4.png")
    images = samples().photos.batch(3, 64, 96)
    flat = images[images.std((1, 2, 3)) == 0]
    assert len(flat) and torch.allclose(flat, torch.tensor(77 / 255))


def test_what_does_not_fit_is_refused(samples):
    photos = samples()
    photos.check([(48, 48)], square=True)
    with pytest.raises(ValueError, match="crop_width: super-resolution trains on square crops"):
        photos.check([(48, 48)], square=False)
    with pytest.raises(ValueError, match="crop: expected at least 29 pixels, more than a kernel has, got 16"):
        photos.check([(16, 16)], square=True)
    with pytest.raises(ValueError, match="no training image is 999x999"):
        photos.check([(999, 999)], square=True)
    with pytest.raises(ValueError, match="expected a folder of training photographs, got a file"):
        PhotoSamples(SRNetwork(), ("photos/0.png",), SRTraining(), 0)
