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


@pytest.fixture
def photo() -> torch.Tensor:
    return torch.from_numpy(chelsea()[60:156, 120:264].astype(np.float32) / 255).permute(2, 0, 1)[None]


@torch.no_grad()
def restored_psnr(y: torch.Tensor, physics: SuperResolution, photo: torch.Tensor) -> float:
    image = lorun.create_model(LORUN)(y, physics=physics).clamp(0, 1)
    return lorun.metrics.psnr(image[0].numpy(), photo[0].numpy(), "sr-rgb", physics.scale)


def bicubic_psnr(y: torch.Tensor, photo: torch.Tensor) -> float:
    image = SuperResolution(torch.ones(1, 1), 2).start(y).clamp(0, 1)
    return lorun.metrics.psnr(image[0].numpy(), photo[0].numpy(), "sr-rgb", 2)


def test_noise_is_removed_if_its_level_is_told(photo):
    kernel, generator = gaussian_kernel(1.2), torch.Generator().manual_seed(0)
    noisy = SuperResolution(kernel, 2, noise_level=0.05, generator=generator)
    y = noisy(photo)
    told, not_told = (restored_psnr(y, of, photo) for of in (noisy, SuperResolution(kernel, 2)))
    assert told > bicubic_psnr(y, photo) > not_told


def test_too_narrow_a_kernel_is_safe_too_wide_is_not_and_a_noise_level_helps(photo):
    y = SuperResolution(gaussian_kernel(1.6), 2).A(photo)
    narrow, right, wide, wide_told_noise = (
        restored_psnr(y, SuperResolution(gaussian_kernel(width), 2, noise_level=level), photo)
        for width, level in ((1.2, 0.0), (1.6, 0.0), (2.0, 0.0), (2.0, 0.02))
    )
    assert right > narrow > bicubic_psnr(y, photo) > wide
    assert wide_told_noise > wide + 3
