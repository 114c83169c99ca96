"""The shipped networks for super-resolution: what they reach on photographs that they were not trained on."""

import numpy as np
import pytest
import torch
from skimage.data import chelsea

import lorun
from lorun.evaluate import averages, evaluate_files
from lorun.physics import SuperResolution
from lorun.physics.blur_kernels import gaussian_kernel
from lorun.tasks import TASKS
from lorun.tasks.sr.options import SREval

SHARED, LORUN = "sr-resunet-shared9", "sr-resunet-lorun9"


def psnr_by_method(source, scale: int, width: float, *models: str) -> list[float]:
    options = SREval(scales=(scale,), kernels=(f"gaussian:{width}",))
    scores = evaluate_files(TASKS["sr"], source, options, models=("bicubic", *models))
    return [score.psnr for score in averages(scores)]


@pytest.mark.parametrize("scale, gain", [(2, 3), (3, 2)])
def test_they_gain_this_many_decibels_over_bicubic_on_two_images_of_set5(lorun_data, tmp_path, scale, gain):
    for name in ("bird.bmp", "butterfly.bmp"):
        (tmp_path / name).symlink_to(lorun_data / "test/set5" / name)
    bicubic, shared, adapted = psnr_by_method(tmp_path, scale, 1.6, SHARED, LORUN)
    assert shared > bicubic + gain and adapted > bicubic + gain


def test_noise_is_removed_if_its_level_is_told():
    photo = torch.from_numpy(chelsea()[60:156, 120:264].astype(np.float32) / 255).permute(2, 0, 1)[None]
    kernel, net = gaussian_kernel(1.2), lorun.create_model(LORUN)
    generator = torch.Generator().manual_seed(0)
    noisy = SuperResolution(kernel, 2, noise_level=0.05, generator=generator)
    y = noisy(photo)
    with torch.no_grad():
        told, not_told = (net(y, physics=physics) for physics in (noisy, SuperResolution(kernel, 2)))

    def psnr(image):
        return lorun.metrics.psnr(image.clamp(0, 1)[0].numpy(), photo[0].numpy(), "sr-rgb", 2)

    assert psnr(told) > psnr(noisy.start(y)) > psnr(not_told)
