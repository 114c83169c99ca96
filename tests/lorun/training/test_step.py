import math

import pytest
import torch

from lorun.data import PhotoCrops
from lorun.training import train
from lorun.training.step import loss_between


def test_a_loss_that_is_not_finite_stops_with_the_checkpoint_loadable(photos, tiny, tmp_path, monkeypatch):
    real_batch = PhotoCrops.batch

    def poisoned(self, index, count, side):
        batch = real_batch(self, index, count, side)
        return batch * float("nan") if index == 3 else batch

    monkeypatch.setattr(PhotoCrops, "batch", poisoned)
    with pytest.raises(FloatingPointError, match="last checkpoint"):
        train(tiny(), tmp_path / "run")
    monkeypatch.setattr(PhotoCrops, "batch", real_batch)
    assert train(tiny(), tmp_path / "run").is_file()


def test_losses_worked_out_by_hand():
    images = torch.zeros(2, 1, 2, 2)
    restored = images + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    assert loss_between(restored, images, "l1").item() == pytest.approx(0.055)
    # PSNR of 20 and of 40 dB, in units of 10 dB, of an MSE that 1e-6 is added to.
    expected = (math.log10(1e-2 + 1e-6) + math.log10(1e-4 + 1e-6)) / 2
    assert loss_between(restored, images, "psnr").item() == pytest.approx(expected, rel=1e-5)
