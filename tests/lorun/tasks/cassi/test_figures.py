import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lorun import metrics
from lorun.tasks.cassi.figures import (
    _checked,
    _choose_regions,
    _draw_comparison,
    correlation,
    save_band_montage,
    save_spectral_comparison,
    spectral_curve,
)


def scene(bands=6, height=24, width=30):
    """A snapshot, a cube and its wavelengths; the left half is reddish, the right half bluish."""
    random = np.random.default_rng(0)
    slope = np.linspace(0.1, 0.8, bands)[:, None, None]
    cube = np.concatenate(
        [slope * np.ones((1, height, width // 2)), (0.9 - slope) * np.ones((1, height, width - width // 2))],
        axis=2,
    )
    cube = (cube + 0.02 * random.random(cube.shape)).astype(np.float32)
    return random.random((height, width + 2 * (bands - 1))), cube, np.linspace(450.0, 650, bands)


def drawn(methods, truth=None, regions=None, bands=None, scores=None) -> Figure:
    snapshot, _, nm = scene()
    return _draw_comparison(_checked(snapshot, methods, nm, truth, regions, bands, scores))


def texts(figure: Figure) -> list[str]:
    legends = [axis.get_legend() for axis in figure.axes if axis.get_legend()]
    in_legends = [text.get_text() for legend in legends for text in legend.get_texts()]
    return (
        in_legends + [axis.get_title() for axis in figure.axes] + [text.get_text() for text in figure.texts]
    )


def test_a_curve_is_the_mean_spectrum_of_its_region():
    _, cube, _ = scene()
    curve = spectral_curve(cube, (2, 3, 4, 5))
    assert curve.shape == (6,) and curve.dtype == np.float64
    assert curve == pytest.approx(cube.astype(float)[:, 2:6, 3:8].mean((1, 2)))
    assert spectral_curve(cube, (23, 29, 1, 1)) == pytest.approx(cube[:, 23, 29])


def test_correlation_is_pearsons():
    random = np.random.default_rng(0)
    a, b = random.random(28), random.random(28)
    assert correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert correlation([1, 2, 4], [3, 5, 9]) == pytest.approx(1)
    assert correlation([1, 2, 4], [-1, -2, -4]) == pytest.approx(-1)
    assert correlation([1, 0, 1, 0], [1, 1, 0, 0]) == pytest.approx(0)
    assert np.isnan(correlation([2, 2, 2], [1, 2, 3])) and np.isnan(correlation([1], [1]))


@pytest.mark.parametrize("size", [(24, 30), (9, 70), (70, 9), (2, 2), (1, 1), (200, 120)])
@pytest.mark.parametrize("count", [1, 6])
def test_a_comparison_of_any_size_is_written(tmp_path, size, count):
    bands = 1 if size == (1, 1) else 6
    snapshot, cube, nm = scene(bands, *size)
    methods = {f"method {number}": cube + 0.01 * number for number in range(count)}
    save_spectral_comparison(tmp_path / "out.png", snapshot, methods, nm, truth=cube)
    with Image.open(tmp_path / "out.png") as image:
        assert image.format == "PNG" and 500 < image.size[0] < 3000 and 300 < image.size[1] < 3000
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_a_file_stays_below_a_megabyte_even_where_all_is_noise(tmp_path):
    random = np.random.default_rng(0)
    cube = random.random((5, 300, 300))
    methods = {f"method {number}": random.random(cube.shape) for number in range(5)}
    save_spectral_comparison(tmp_path / "out.png", cube[0], methods, np.linspace(450, 650, 5))
    assert 300_000 < (tmp_path / "out.png").stat().st_size < 1_000_000


def test_titles_and_legends_give_psnr_and_correlation():
    _, cube, _ = scene()
    noisy = cube + 0.05 * np.random.default_rng(1).standard_normal(cube.shape).astype(np.float32)
    region = (1, 2, 3, 4)
    found = texts(drawn({"noisy": noisy, "exact": cube, "flat": cube * 0}, truth=cube, regions=[region]))
    value = np.corrcoef(noisy[:, 1:4, 2:6].mean((1, 2)), cube[:, 1:4, 2:6].mean((1, 2)))[0, 1]
    assert {"ground truth", f"noisy, corr {value:.4f}", "exact, corr 1.0000", "flat, corr undefined"} <= {
        *found
    }
    assert f"noisy\n{metrics.psnr(noisy, cube, 'cassi-mst'):.2f} dB" in found
    assert "exact\ninf dB" in found
    assert any("cassi-mst" in text for text in found)


def test_without_truth_there_is_neither_psnr_nor_correlation():
    _, cube, _ = scene()
    found = texts(drawn({"one": cube, "other": cube / 2}))
    assert "one" in found and "other" in found
    assert not any(word in text for text in found for word in ("corr", "dB", "PSNR", "truth"))


def test_scores_replace_psnr_and_dollars_stay_dollars():
    _, cube, _ = scene()
    found = texts(drawn({"cheap $1$": cube}, truth=cube, scores={"cheap $1$": "40.1 dB / 0.99"}))
    assert r"cheap \$1\$" + "\n40.1 dB / 0.99" in found
    assert not any("cassi-mst" in text for text in found)


def test_the_curves_that_are_drawn_are_those_of_the_regions():
    _, cube, nm = scene()
    figure = drawn({"half": cube / 2}, truth=cube, regions=[(0, 0, 4, 4), (0, 20, 4, 4)])
    curves = [axis.lines for axis in figure.axes if len(axis.lines) == 2]
    assert len(curves) == 2
    for (of_truth, of_half), left in zip(curves, (0, 20), strict=True):
        assert of_truth.get_xdata() == pytest.approx(nm)
        assert of_truth.get_ydata() == pytest.approx(cube[:, :4, left : left + 4].mean((1, 2)), rel=1e-5)
        assert of_half.get_ydata() == pytest.approx(of_truth.get_ydata() / 2, rel=1e-5)


def test_regions_are_marked_once_on_the_truth():
    _, cube, _ = scene()
    figure = drawn({"same": cube}, truth=cube, regions=[(1, 2, 3, 4)])
    marked = [axis for axis in figure.axes if axis.images and axis.patches]
    assert [axis.get_title() for axis in marked] == ["ground truth"]
    assert marked[0].patches[0].get_bbox().bounds == (1.5, 0.5, 4, 3)


def test_bands_are_spread_over_the_range_or_as_asked():
    _, cube, nm = scene()
    for bands, expected in ((None, [0, 2, 3, 5]), ([4, 1], [4, 1])):
        figure = drawn({"one": cube}, bands=bands)
        labels = [axis.get_ylabel() for axis in figure.axes if axis.images and axis.get_ylabel()]
        assert labels == ["colour", *(f"{nm[band]:g} nm" for band in expected)]


@pytest.mark.parametrize("size", [(24, 30), (660, 660), (2, 2), (3, 50), (64, 5)])
def test_regions_chosen_lie_inside_and_differ(size):
    random = np.random.default_rng(0)
    (top, left, height, width), second = _choose_regions(random.random((*size, 3)))
    for region in ((top, left, height, width), second):
        assert min(region) >= 0 and region[0] + region[2] <= size[0] and region[1] + region[3] <= size[1]
    assert second[2:] == (height, width)
    assert abs(second[0] - top) >= height or abs(second[1] - left) >= width
    assert len(_choose_regions(random.random((1, 1, 3)))) == 1


def test_regions_chosen_are_the_colourful_ones():
    picture = np.full((96, 96, 3), 0.5)
    picture[10:40, 10:40] = (0.9, 0.1, 0.1)
    picture[60:90, 50:80] = (0.1, 0.2, 0.8)
    centres = [(top + side // 2, left + side // 2) for top, left, side, _ in _choose_regions(picture)]
    assert 10 <= centres[0][0] < 40 and 10 <= centres[0][1] < 40
    assert 60 <= centres[1][0] < 90 and 50 <= centres[1][1] < 80


@pytest.mark.parametrize("bands, size", [(1, (8, 8)), (28, (16, 20)), (31, (60, 4)), (60, (4, 60))])
def test_a_montage_shows_and_labels_every_band(tmp_path, monkeypatch, bands, size):
    figures = []
    monkeypatch.setattr("lorun.tasks.cassi.figures._save", lambda figure, path: figures.append(figure))
    _, cube, nm = scene(bands, *size)
    save_band_montage(tmp_path / "out.png", cube, nm)
    titles = [axis.get_title() for axis in figures[0].axes]
    assert titles == [f"{round(wavelength, 1):g} nm" for wavelength in nm]


def test_a_montage_is_written(tmp_path):
    _, cube, nm = scene(28, 64, 64)
    save_band_montage(tmp_path / "out.png", cube, nm)
    with Image.open(tmp_path / "out.png") as image:
        assert image.format == "PNG" and image.size[0] > 600


@pytest.mark.parametrize(
    "change, words",
    [
        ({"methods": {}}, "methods: expected 1 to 6, got 0"),
        ({"methods": {str(n): np.ones((6, 24, 30)) for n in range(7)}}, "methods: expected 1 to 6, got 7"),
        ({"methods": {"one": np.ones((6, 24, 29))}}, r"methods\['one'\]: expected \(6, 24, 30\), got"),
        ({"methods": {"one": np.ones((24, 30))}, "truth": None}, r"methods\['one'\]: expected \(C, H, W\)"),
        ({"methods": {"one": np.full((6, 24, 30), np.nan)}}, r"methods\['one'\]: holds NaN"),
        ({"truth": np.ones((6, 24))}, r"truth: expected \(C, H, W\)"),
        ({"snapshot": np.ones((23, 40))}, r"snapshot: expected \(24, W'\)"),
        ({"snapshot": np.full((24, 40), np.inf)}, "snapshot: holds NaN"),
        ({"wavelengths": np.arange(5)}, r"wavelengths: expected \(6,\)"),
        ({"wavelengths": np.arange(6)[::-1] + 450}, "wavelengths: expected positive numbers that rise"),
        ({"regions": [(0, 0, 25, 1)]}, "region: expected .* inside 24x30 pixels"),
        ({"regions": [(0, 29, 1, 2)]}, "inside 24x30"),
        ({"regions": [(-1, 0, 2, 2)]}, "inside 24x30"),
        ({"regions": [(0, 0, 0, 2)]}, "inside 24x30"),
        ({"regions": [(0, 0, 1.5, 2)]}, "region: expected whole numbers"),
        ({"regions": [(0, 0, 1)]}, "region: expected whole numbers"),
        ({"bands": [6]}, "bands: expected whole numbers from 0 to 5, got 6"),
        ({"bands": [-1]}, "bands: expected whole numbers from 0 to 5, got -1"),
        ({"scores": {"two": "1 dB"}}, "scores: expected names of methods, one, got two"),
    ],
)
def test_bad_input_says_what_was_expected(tmp_path, change, words):
    snapshot, cube, nm = scene()
    arguments = {"snapshot": snapshot, "methods": {"one": cube}, "wavelengths": nm, "truth": cube} | change
    with pytest.raises(ValueError, match=words):
        save_spectral_comparison(tmp_path / "out.png", **arguments)
    assert not any(tmp_path.iterdir())


def test_bad_input_of_the_others():
    with pytest.raises(ValueError, match=r"cube: expected \(C, H, W\)"):
        spectral_curve(np.ones((4, 4)), (0, 0, 1, 1))
    with pytest.raises(ValueError, match="inside 4x5"):
        spectral_curve(np.ones((3, 4, 5)), (0, 0, 5, 1))
    with pytest.raises(ValueError, match=r"curve, truth_curve: expected two of one shape"):
        correlation([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match=r"cube: expected \(C, H, W\)"):
        save_band_montage("out.png", np.ones((4, 4)), [1, 2, 3, 4])
