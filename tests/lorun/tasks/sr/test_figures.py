import numpy as np
import pytest
from PIL import Image

from lorun.tasks.sr.figures import save_enlargements, save_kernels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (20, 90), (150, 61)])
def test_a_comparison_of_any_size_is_written(tmp_path, size, channels):
    small = np.random.default_rng(0).random((channels, *size))
    large = small.repeat(2, 1).repeat(2, 2)
    for truth, names, panels in ((large, ("bicubic", "LoRun-9"), 4), (None, ("bicubic",), 2)):
        save_enlargements(tmp_path / "out.png", small, dict.fromkeys(names, large), np.ones((3, 3)), 2, truth)
        assert Image.open(tmp_path / "out.png").size[0] == panels * 3.5 * 80
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_the_input_is_shown_in_its_pixels_and_the_kernel_in_its_corner(tmp_path):
    small, white = np.zeros((1, 40, 40)), np.ones((1, 80, 80))
    kernel = np.zeros((3, 3))
    kernel[1, 1] = 1
    save_enlargements(tmp_path / "out.png", small, {"white": white}, kernel, 2)
    picture = np.asarray(Image.open(tmp_path / "out.png").convert("RGB")).astype(int)
    upper = picture[30 : picture.shape[0] // 2 - 10]
    left, right = upper[:, :280], upper[:, 280:]
    inset = left[-70:, :75]
    assert (inset.min(2) > 250).sum() > 100  # the kernel's one bright element
    # Most of it: the frame of the detail lies within.
    black, blank = left[40:120, 100:260].max(2) < 40, right[40:120, 40:200].min(2) > 250
    assert black.mean() > 0.9 and blank.mean() > 0.9


def test_kernels_in_a_grid(tmp_path):
    kernels = {str(number): np.eye(5) for number in range(8)}
    save_kernels(tmp_path / "kernels.png", kernels)
    assert Image.open(tmp_path / "kernels.png").size == (768, 296)
