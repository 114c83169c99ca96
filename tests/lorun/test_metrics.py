import numpy as np
import pytest
import skimage.metrics

from lorun import metrics


def test_psnr_worked_out_by_hand():
    ref = np.zeros((8, 8))
    x = np.zeros((8, 8))
    x[0, 0] = 0.8  # one pixel of 64 is off by 204 grey levels: MSE 650.25, 10 log10(255^2 / 650.25) = 20
    assert metrics.psnr(x, ref, "cs") == pytest.approx(20.0, abs=1e-9)


def test_cs_clips_and_does_not_round():
    ref = np.full((8, 8), 1.0)
    assert metrics.psnr(np.full((8, 8), 1.7), ref, "cs") == float("inf")
    almost = metrics.psnr(np.full((8, 8), 1 - 0.1 / 255), ref, "cs")
    assert almost == pytest.approx(10 * np.log10(255**2 / 0.01), abs=1e-9)


@pytest.mark.parametrize("shape", [(7, 7), (31, 64)])
def test_both_equal_skimage(shape):
    random = np.random.default_rng(0)
    ref = np.rint(random.random(shape) * 255) / 255
    x = np.clip(ref + 0.1 * random.standard_normal(shape), 0, 1)
    by_skimage = skimage.metrics.peak_signal_noise_ratio(ref * 255, x * 255, data_range=255)
    assert metrics.psnr(x, ref, "cs") == pytest.approx(by_skimage, abs=1e-10)
    similarity = skimage.metrics.structural_similarity(ref * 255, x * 255, data_range=255)
    assert metrics.ssim(x, ref, "cs") == pytest.approx(similarity, abs=1e-12)


@pytest.mark.parametrize(
    "x, ref, protocol, words",
    [
        (np.zeros((8, 8)), np.zeros((8, 9)), "cs", "one shape"),
        (np.zeros((8, 8, 3)), np.zeros((8, 8, 3)), "cs", "one shape"),
        (np.full((8, 8), np.nan), np.zeros((8, 8)), "cs", "NaN"),
        (np.zeros((8, 8)), np.zeros((8, 8)), "psnr", "protocol: expected"),
        (np.zeros((6, 8)), np.zeros((6, 8)), "cs", "7x7"),
    ],
)
def test_bad_input_says_what_was_expected(x, ref, protocol, words):
    with pytest.raises(ValueError, match=words):
        metrics.ssim(x, ref, protocol)
