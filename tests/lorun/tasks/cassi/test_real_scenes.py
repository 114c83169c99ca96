import numpy as np
import pytest
import torch

from lorun import metrics
from lorun.physics import CASSI
from lorun.tasks.cassi.real_scenes import without_borders
from lorun.tasks.cassi.restorer import measure

BANDS, STEP, HEIGHT, WIDTH = 8, 2, 24, 64
SPREAD = STEP * (BANDS - 1)


def wide_scene():
    """A cube and a mask that go on for SPREAD columns on both sides of the window."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:HEIGHT, : WIDTH + 2 * SPREAD]
    bands = np.arange(BANDS)[:, None, None]
    cube = 0.5 + 0.3 * np.sin(rows / 5 + bands / 3) * np.cos(columns / 9 - bands / 4)
    return cube.astype(np.float32), random.random((HEIGHT, WIDTH + 2 * SPREAD), np.float32)


def window():
    """What a real camera gives: the window's mask and truth, and a snapshot that sees beside it."""
    cube, mask = wide_scene()
    inside = slice(SPREAD, SPREAD + WIDTH)
    y = measure(cube, mask, STEP)[:, SPREAD : SPREAD + WIDTH + SPREAD]
    return cube[..., inside], mask[:, inside], y


def test_what_is_left_is_a_plain_sum_of_the_window():
    cube, mask, y = window()
    assert not np.allclose(measure(cube, mask, STEP), y, atol=1e-3)
    kept, reached = without_borders(y, mask, BANDS, STEP)
    np.testing.assert_allclose(measure(cube, reached, STEP), kept, atol=1e-5)
    assert (kept[:, :SPREAD] == 0).all() and (kept[:, WIDTH:] == 0).all()
    np.testing.assert_array_equal(kept[:, SPREAD:WIDTH], y[:, SPREAD:WIDTH])


def test_a_mask_with_bands_keeps_its_own():
    _, mask, y = window()
    other = np.stack([mask * (band + 1) for band in range(BANDS)])
    reached = without_borders(y, other, BANDS, STEP)[1]
    middle = WIDTH // 2
    np.testing.assert_array_equal(reached[:, :, middle], other[:, :, middle])
    assert (reached[0, :, :SPREAD] == 0).all() and (reached[-1, :, 0] == other[-1, :, 0]).all()


def border_psnr(y, mask, cube):
    physics = CASSI(torch.from_numpy(mask), BANDS, STEP)
    start = physics.start(torch.from_numpy(y)[None])[0].clamp(0, 1).numpy()
    return metrics.psnr(start[..., :SPREAD], cube[..., :SPREAD], "cassi-float")


def test_the_border_comes_out_better_than_with_what_lies_beside_it():
    cube, mask, y = window()
    assert border_psnr(*without_borders(y, mask, BANDS, STEP), cube) > border_psnr(y, mask, cube) + 3


def test_a_grey_scene_of_28_bands_stays_grey_up_to_the_border():
    """Bands that no column measures there are not left black, which would colour it."""
    bands, spread, width = 28, 54, 200
    mask = np.random.default_rng(0).random((24, width + 2 * spread), np.float32)
    y = measure(np.full((bands, *mask.shape), 0.5, np.float32), mask)[:, spread : spread + width + spread]
    kept, reached = without_borders(y, mask[:, spread : spread + width], bands, 2)
    start = CASSI(torch.from_numpy(reached), bands).start(torch.from_numpy(kept)[None])[0].numpy()
    np.testing.assert_allclose(start, 0.5, atol=0.02)


def test_a_window_narrower_than_the_dispersion_is_refused():
    with pytest.raises(ValueError, match="no column of this snapshot sees every band"):
        without_borders(np.zeros((4, 20), np.float32), np.ones((4, 6), np.float32), BANDS, STEP)
