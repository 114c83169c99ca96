import numpy as np
import pytest
import skimage.color
import skimage.metrics

from lorun import metrics

CASSI = ("cassi-mst", "cassi-matlab", "cassi-float")


def cubes(shape=(3, 20, 17), noise=0.1):
    random = np.random.default_rng(0)
    ref = random.random(shape)
    return ref + noise * random.standard_normal(shape), ref


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
    "protocol, offset, error, peak",
    [
        ("cassi-float", 0.1, 0.1, 1),  # MSE 0.01: 20 dB
        ("cassi-mst", 0.125, 32, 255),  # 0.125 * 256 is 32 levels
        ("cassi-mst", 0.001, 0, 255),  # 128.256 rounds to the same level as 128
        ("cassi-mst", 2.0, 512, 255),  # no clamp
        ("cassi-matlab", 0.2, 51, 255),  # from 127.5, which rounds to 128, to 178.5: 179
        ("cassi-matlab", 2.0, 127, 255),  # clamped to 255, 127 above 128
    ],
)
def test_cubes_worked_out_by_hand(protocol, offset, error, peak):
    ref = np.full((2, 4, 5), 0.5)
    expected = 20 * np.log10(peak / error) if error else float("inf")
    assert metrics.psnr(ref + offset, ref, protocol) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("protocol", CASSI)
def test_the_psnr_of_a_cube_is_the_mean_over_its_bands(protocol):
    ref = np.full((3, 4, 4), 0.25)
    x = ref + np.array([0.5, 0.125, 0.125])[:, None, None]
    mean = 20 * np.log10([2, 8, 8]).mean()  # 14.05 dB, where one MSE of all bands would give 10.28 dB
    assert metrics.psnr(x, ref, protocol) == pytest.approx(mean, abs=0.05)
    x[1] = ref[1]
    assert metrics.psnr(x, ref, protocol) == float("inf")


@pytest.mark.parametrize(
    "protocol, seen, peak",
    [
        ("cassi-mst", lambda cube: np.rint(cube * 256), 255),
        ("cassi-matlab", lambda cube: np.floor(np.clip(cube, 0, 1) * 255 + 0.5).astype(np.uint8), 255),
        ("cassi-float", lambda cube: cube, 1),
    ],
)
def test_cubes_equal_skimage_on_what_the_protocol_sees(protocol, seen, peak):
    x, ref = cubes()
    pairs = list(zip(seen(ref), seen(x), strict=True))
    by_skimage = [skimage.metrics.peak_signal_noise_ratio(r, b, data_range=peak) for r, b in pairs]
    assert metrics.psnr(x, ref, protocol) == pytest.approx(np.mean(by_skimage), abs=1e-9)
    if protocol != "cassi-mst":
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": peak}
        pairs = [(r.astype(float), b.astype(float)) for r, b in pairs]
        by_skimage = [skimage.metrics.structural_similarity(r, b, **options) for r, b in pairs]
        assert metrics.ssim(x, ref, protocol) == pytest.approx(np.mean(by_skimage), abs=1e-12)


def test_im2uint8_rounds_half_up_and_round_half_to_even():
    ref = np.zeros((1, 1, 1))
    half_level = metrics.psnr(ref + 0.5 / 255, ref, "cassi-matlab")
    assert half_level == pytest.approx(20 * np.log10(255))
    assert metrics.psnr(ref + 0.5 / 256, ref, "cassi-mst") == float("inf")


def test_the_protocol_moves_psnr():
    x, ref = cubes(noise=0.1)
    by_mst, by_matlab, by_float = (metrics.psnr(x, ref, protocol) for protocol in CASSI)
    assert by_float - by_mst == pytest.approx(20 * np.log10(256 / 255), abs=0.01)
    assert by_matlab > by_float + 0.2  # what leaves [0, 1] no longer counts


def ssim_by_its_formula(x, ref, border):
    """Wang et al. 2004 with 11x11 windows, in a border of zeros of this width."""
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    widths = ((0, 0), (border, border), (border, border))

    def mean(cube):
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(cube, widths), (11, 11), (1, 2))
        return np.einsum("chwij,ij->chw", windows, weights)

    c1, c2 = 0.01**2, 0.03**2
    m, n = mean(x), mean(ref)
    variances, covariance = mean(x**2) - m**2 + mean(ref**2) - n**2, mean(x * ref) - m * n
    return np.mean((2 * m * n + c1) * (2 * covariance + c2) / ((m**2 + n**2 + c1) * (variances + c2)))


@pytest.mark.parametrize("shape", [(3, 20, 17), (2, 11, 40)])
def test_ssim_of_cubes_by_its_formula(shape):
    x, ref = cubes(shape)
    in_zeros, inside = ssim_by_its_formula(x, ref, 5), ssim_by_its_formula(x, ref, 0)
    assert metrics.ssim(x, ref, "cassi-mst") == pytest.approx(in_zeros, abs=1e-10)
    assert metrics.ssim(x, ref, "cassi-float") == pytest.approx(inside, abs=1e-10)
    assert in_zeros != pytest.approx(inside, abs=1e-3)


def test_ssim_of_flat_cubes_worked_out_by_hand():
    ref, x = np.full((2, 11, 11), 0.2), np.full((2, 11, 11), 0.4)
    expected = (2 * 0.2 * 0.4 + 1e-4) / (0.2**2 + 0.4**2 + 1e-4)
    for protocol in ("cassi-float", "cassi-matlab"):
        assert metrics.ssim(x, ref, protocol) == pytest.approx(expected, abs=1e-9)
    assert metrics.ssim(ref, ref, "cassi-mst") == pytest.approx(1)


def test_ssim_with_zeros_around_takes_any_size_the_others_need_their_window():
    small = np.full((2, 3, 10), 0.5)
    assert metrics.ssim(small, small, "cassi-mst") == pytest.approx(1)
    for protocol in ("cassi-matlab", "cassi-float"):
        with pytest.raises(ValueError, match="11x11 pixels, its window, got 3x10"):
            metrics.ssim(small, small, protocol)


@pytest.mark.parametrize(
    "spectrum, of_ref, degrees",
    [
        ([1, 0], [1, 0], 0),
        ([1, 1], [1, 0], 45),
        ([3, 0], [0, 0.1], 90),  # brightness does not matter
        ([1, 0], [-1, 0], 180),
        ([1, 1e-9], [1, 0], np.degrees(1e-9)),  # where arccos would say 0
    ],
)
def test_sam_of_one_spectrum(spectrum, of_ref, degrees):
    x, ref = np.array(spectrum).reshape(2, 1, 1), np.array(of_ref).reshape(2, 1, 1)
    assert metrics.sam(x, ref) == pytest.approx(degrees, rel=1e-6, abs=1e-12)


def test_sam_is_the_mean_over_pixels_that_have_an_angle():
    x = np.array([[[1, 1, 0, 1]], [[0, 1, 0, 1]]])
    ref = np.array([[[1, 1, 1, 0]], [[0, 0, 1, 0]]])
    assert metrics.sam(x, ref) == pytest.approx((0 + 45) / 2)
    with pytest.raises(ValueError, match="in every pixel one spectrum is all 0"):
        metrics.sam(x * 0, ref)


def test_sam_equals_arccos_where_that_is_exact():
    x, ref = cubes((28, 9, 8))
    cosines = (x * ref).sum(0) / np.linalg.norm(x, axis=0) / np.linalg.norm(ref, axis=0)
    assert metrics.sam(x, ref) == pytest.approx(np.degrees(np.arccos(cosines)).mean(), abs=1e-9)


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


@pytest.mark.parametrize(
    "measure",
    [*(lambda x, ref, p=p: metrics.psnr(x, ref, p) for p in CASSI)]
    + [*(lambda x, ref, p=p: metrics.ssim(x, ref, p) for p in CASSI), metrics.sam],
)
@pytest.mark.parametrize(
    "x, ref, words",
    [
        (np.zeros((12, 12)), np.zeros((12, 12)), r"two cubes of one shape \(C, H, W\), got \(12, 12\)"),
        (np.zeros((2, 12, 12)), np.zeros((3, 12, 12)), "one shape"),
        (np.zeros((1, 2, 12, 12)), np.zeros((1, 2, 12, 12)), "one shape"),
        (np.zeros((0, 12, 12)), np.zeros((0, 12, 12)), "one shape"),
        (np.full((2, 12, 12), np.inf), np.ones((2, 12, 12)), "NaN or Inf"),
        (np.ones((2, 12, 12)), np.full((2, 12, 12), np.nan), "NaN or Inf"),
    ],
)
def test_bad_cubes_are_refused(measure, x, ref, words):
    with pytest.raises(ValueError, match=words):
        measure(x, ref)


def photographs(channels=3, size=(40, 31)):
    random = np.random.default_rng(0)
    ref = random.random((channels, *size))
    return ref + 0.1 * random.standard_normal(ref.shape), ref


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_sr_rgb_equals_skimage_on_uint8_within_its_border(scale):
    x, ref = photographs()
    inner = slice(scale**2, -(scale**2))
    seen = [
        np.moveaxis(np.floor(np.clip(of, 0, 1) * 255 + 0.5).astype(np.uint8), 0, 2)[inner, inner]
        for of in (ref, x)
    ]
    by_skimage = skimage.metrics.peak_signal_noise_ratio(*seen, data_range=255)
    assert metrics.psnr(x, ref, "sr-rgb", scale) == pytest.approx(by_skimage, abs=1e-10)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    similarity = skimage.metrics.structural_similarity(
        *(of.astype(float) for of in seen), channel_axis=2, **options
    )
    assert metrics.ssim(x, ref, "sr-rgb", scale) == pytest.approx(similarity, abs=1e-12)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_sr_y_equals_skimage_on_its_ycbcr(scale):
    x, ref = photographs()
    inner = slice(scale, -scale)
    seen = [
        skimage.color.rgb2ycbcr(np.moveaxis(np.floor(np.clip(of, 0, 1) * 255 + 0.5).astype(np.uint8), 0, 2))
        for of in (ref, x)
    ]
    seen = [of[inner, inner, 0] for of in seen]
    by_skimage = skimage.metrics.peak_signal_noise_ratio(*seen, data_range=255)
    assert metrics.psnr(x, ref, "sr-y", scale) == pytest.approx(by_skimage, abs=1e-9)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    similarity = skimage.metrics.structural_similarity(*seen, **options)
    assert metrics.ssim(x, ref, "sr-y", scale) == pytest.approx(similarity, abs=1e-11)


def test_sr_rgb_has_one_mse_of_all_channels_worked_out_by_hand():
    ref = np.full((3, 8, 8), 0.4)
    x = ref.copy()
    x[0] += 51 / 255  # an MSE of 51^2 in one of three channels: 10 log10(3 * 25)
    assert metrics.psnr(x, ref, "sr-rgb", 1) == pytest.approx(10 * np.log10(75), abs=1e-9)
    x[:, 0] = 1  # in the border
    assert metrics.psnr(x, ref, "sr-rgb", 1) == pytest.approx(10 * np.log10(75), abs=1e-9)


@pytest.mark.parametrize("protocol", ["sr-rgb", "sr-y"])
def test_a_grey_photograph_counts_as_one_of_three_equal_channels(protocol):
    x, ref = photographs(1)
    three = np.repeat(x, 3, 0), np.repeat(ref, 3, 0)
    for measure in (metrics.psnr, metrics.ssim):
        assert measure(x, ref, protocol, 2) == pytest.approx(measure(*three, protocol, 2), abs=1e-10)


@pytest.mark.parametrize(
    "shape, protocol, scale, words",
    [
        ((3, 9, 9), "sr-rgb", None, "scale: protocol sr-rgb takes one, such as 2, got None"),
        ((9, 9), "cs", 2, "scale: protocol cs takes none, got 2"),
        (
            (3, 8, 30),
            "sr-rgb",
            2,
            "border of 4 pixels on every side that sr-rgb leaves out, got scale 2 and 8x30",
        ),
        ((3, 9, 9), "sr-y", 0, "scale: expected at least 1"),
        ((4, 9, 9), "sr-y", 2, "x, ref: expected 3 channels, or 1 for grey, got 4"),
        ((9, 9), "sr-y", 2, r"two images of one shape \(3 or 1, H, W\), got \(9, 9\)"),
    ],
)
def test_photographs_and_scales_that_do_not_fit(shape, protocol, scale, words):
    with pytest.raises(ValueError, match=words):
        metrics.psnr(np.zeros(shape), np.zeros(shape), protocol, scale)


@pytest.mark.parametrize(
    "protocol, scale", [("sr-rgb", 2), ("sr-rgb", 3), ("sr-y", 4), ("cs", None), ("cassi-matlab", None)]
)
def test_the_least_side_is_the_least_that_is_compared(protocol, scale):
    side = metrics.least_side(protocol, scale)
    for of, fits in ((side, True), (side - 1, False)):
        image = np.zeros((of, of)) if protocol == "cs" else np.zeros((3, of, of))
        if fits:
            metrics.ssim(image, image, protocol, scale)
        else:
            with pytest.raises(ValueError, match="window|border"):
                metrics.ssim(image, image, protocol, scale)
