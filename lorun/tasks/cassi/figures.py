"""Pictures of spectral cubes: methods side by side, the spectra of chosen regions, all bands of one cube."""

import io
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from skimage.util import view_as_windows

from lorun import metrics
from lorun.files import write_in_one_step
from lorun.tasks.cassi.colour import check_wavelengths, spectrum_to_rgb, wavelength_to_rgb

Region = tuple[int, int, int, int]

PROTOCOL = "cassi-mst"
TRUTH = "ground truth"
MOST_METHODS = 6
MOST_BYTES = 1_000_000
DPI = 120
DISPLAY_GAMMA = 2.2
BADGE = {"facecolor": "white", "edgecolor": "black", "linewidth": 0.6, "boxstyle": "square,pad=0.2"}

# Inches.
MARGIN = 0.12
GAP = 0.05
LINE = 0.18
LEGEND_LINE = 0.15
LEGEND_NAME = 32
LEFT_WIDTH = 3.3
CURVES_HEIGHT = 1.4
CURVES_FRAME = 0.75
CURVES_LABELS = 0.55


def save_spectral_comparison(
    path: str | Path,
    snapshot: np.ndarray,
    methods: dict[str, np.ndarray],
    wavelengths: np.ndarray,
    truth: np.ndarray | None = None,
    regions: list[Region] | None = None,
    bands: list[int] | None = None,
    scores: dict[str, str] | None = None,
) -> None:
    """Write a PNG: the snapshot, colours and bands of every method, and the spectra of regions.

    All methods share one exposure of the colours and one scale in each band, taken from the truth, or without
    one from the first method. Spectra are means over a region; the legend has their Pearson correlation with
    the truth's.

    Args:
        snapshot: (H, W'), the measurement, of any range.
        methods: name and cube (C, H, W) in [0, 1] of 1 to 6 methods, in the order to show.
        wavelengths: (C,) in nm, rising.
        truth: (C, H, W) in [0, 1]; without it (a real scene) there is no correlation and no PSNR.
        regions: (top, left, height, width) in pixels of the cube, marked in the colours of the truth; by
            default two even patches of strong and different colours.
        bands: indices of the bands to show, by default four spread over the range.
        scores: what to write below the names of the methods; by default PSNR by "cassi-mst" if there is a
            truth.

    Raises:
        ValueError: shapes that do not fit each other, NaN or Inf, no method or more than six, a region that
            is empty or not inside, a band that does not exist, scores of other methods.
    """
    content = _checked(snapshot, methods, wavelengths, truth, regions, bands, scores)
    _save(_draw_comparison(content), path)


def save_band_montage(path: str | Path, cube: np.ndarray, wavelengths: np.ndarray) -> None:
    """Write a PNG: every band of a cube, (C, H, W) in [0, 1], tinted by its wavelength, all on one scale.

    Args:
        wavelengths: (C,) in nm, rising.

    Raises:
        ValueError: not three axes, NaN or Inf, other wavelengths than bands.
    """
    cube = _checked_cube("cube", cube, None)
    nm = check_wavelengths(wavelengths, len(cube))
    ratio = _tile_ratio(cube.shape)
    columns = min(len(cube), int(np.ceil(np.sqrt(1.4 * ratio * len(cube)))))
    rows = -(-len(cube) // columns)
    width = float(np.clip(11 / columns, 0.8, 2))
    height = width * ratio + LINE
    page = _Page(2 * MARGIN + columns * width, 2 * MARGIN + rows * height)
    scale = _bright(cube)
    for index, (band, wavelength) in enumerate(zip(cube, nm, strict=True)):
        row, column = divmod(index, columns)
        left, top = MARGIN + column * width, MARGIN + row * height + LINE
        axis = page.image_at(left, top, width - GAP, height - LINE - GAP)
        axis.imshow(_tinted(band, wavelength, scale))
        axis.set_title(_nm(wavelength), fontsize=8, pad=2)
    _save(page.figure, path)


def spectral_curve(cube: np.ndarray, region: Region) -> np.ndarray:
    """The mean spectrum of a region: cube (C, H, W), region (top, left, height, width) -> (C,) float64."""
    cube = np.asarray(cube)
    if cube.ndim != 3:
        raise ValueError(f"cube: expected (C, H, W), got {cube.shape}")
    top, left, height, width = _checked_region(region, cube.shape)
    return cube[:, top : top + height, left : left + width].mean(axis=(1, 2), dtype=np.float64)


def correlation(curve: np.ndarray, truth_curve: np.ndarray) -> float:
    """Pearson's correlation of two spectra (C,): -1 to 1, or NaN if one of them is constant."""
    curve, truth_curve = np.asarray(curve, dtype=np.float64), np.asarray(truth_curve, dtype=np.float64)
    if curve.ndim != 1 or curve.shape != truth_curve.shape or curve.size == 0:
        raise ValueError(
            f"curve, truth_curve: expected two of one shape (C,), got {curve.shape} and {truth_curve.shape}"
        )
    if np.ptp(curve) == 0 or np.ptp(truth_curve) == 0:
        return float("nan")
    return float(np.corrcoef(curve, truth_curve)[0, 1])


@dataclass(frozen=True)
class _Content:
    snapshot: np.ndarray
    methods: dict[str, np.ndarray]
    nm: np.ndarray
    truth: np.ndarray | None
    regions: list[Region]
    bands: list[int]
    scores: dict[str, str]
    footnote: str

    @property
    def reference(self) -> np.ndarray:
        """The truth, or the first method: the regions, the exposure and the scales are taken from it."""
        return self.columns[self.reference_column][2]

    @property
    def reference_column(self) -> int:
        return 0 if self.truth is None else len(self.methods)

    @property
    def columns(self) -> list[tuple[str, str, np.ndarray]]:
        """Name, score and cube of everything that is shown side by side."""
        columns = [(name, self.scores.get(name, ""), cube) for name, cube in self.methods.items()]
        return columns if self.truth is None else [*columns, (TRUTH, "", self.truth)]


class _Page:
    """A figure that is laid out in inches from its upper left corner."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))

    def axes_at(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def image_at(self, left: float, top: float, width: float, height: float) -> Axes:
        axis = self.axes_at(left, top, width, height)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        return axis


def _draw_comparison(content: _Content) -> Figure:
    columns, rows = len(content.columns), 1 + len(content.bands)
    ratio, snapshot = _tile_ratio(content.reference.shape), content.snapshot
    snapshot_height = LEFT_WIDTH * float(np.clip(snapshot.shape[0] / snapshot.shape[1], 0.2, 0.66))
    legend_height = LEGEND_LINE * -(-columns // _legend_columns(content))
    region_height = CURVES_HEIGHT + CURVES_FRAME + legend_height
    left_height = snapshot_height + len(content.regions) * region_height
    tile = float(np.clip(left_height / rows / ratio, 1.4, 2.2))
    titles = [_title(name, score, tile) for name, score, _ in content.columns]
    top = MARGIN + GAP + LINE * max(title.count("\n") + 1 for title in titles)
    height = max(left_height, rows * tile * ratio)
    left = MARGIN + LEFT_WIDTH + 0.4
    page = _Page(left + columns * tile + MARGIN, top + height + LINE + MARGIN)

    axis = page.image_at(MARGIN, top, LEFT_WIDTH, snapshot_height)
    axis.imshow(snapshot, cmap="gray")
    axis.set_title("snapshot", fontsize=10, pad=3)
    _draw_tiles(page, content, titles, left, top, tile, tile * ratio)
    stretch = (height - left_height) / max(1, len(content.regions))
    curves_left, curves_top = MARGIN + CURVES_LABELS, top + snapshot_height + 0.3
    for index, region in enumerate(content.regions):
        axis = page.axes_at(curves_left, curves_top, LEFT_WIDTH - CURVES_LABELS, CURVES_HEIGHT + stretch)
        _draw_curves(axis, page.height, content, index, region)
        curves_top += region_height + stretch
    corner = (1 - MARGIN / page.width, MARGIN / 2 / page.height)
    page.figure.text(*corner, content.footnote, fontsize=8, ha="right", va="bottom")
    return page.figure


def _draw_tiles(
    page: _Page, content: _Content, titles: list[str], left: float, top: float, width: float, height: float
) -> None:
    exposure = _bright(content.reference)
    scales = {band: _bright(content.reference[band]) for band in content.bands}
    for column, (_, _, cube) in enumerate(content.columns):
        tiles = [spectrum_to_rgb(cube / exposure, content.nm)]
        tiles += [_tinted(cube[band], content.nm[band], scales[band]) for band in content.bands]
        for row, tile in enumerate(tiles):
            axis = page.image_at(left + column * width, top + row * height, width - GAP, height - GAP)
            axis.imshow(tile)
            if row == 0:
                axis.set_title(titles[column], fontsize=10, pad=3)
            if column == 0:
                axis.set_ylabel("colour" if row == 0 else _nm(content.nm[content.bands[row - 1]]), fontsize=9)
            if row == 0 and column == content.reference_column:
                for index, region in enumerate(content.regions):
                    _mark(axis, index, region, cube.shape[1:])


def _mark(axis: Axes, index: int, region: Region, size: tuple[int, int]) -> None:
    top, left, height, width = region
    corner = (left - 0.5, top - 0.5)
    axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="black", linewidth=2.6))
    axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="white", linewidth=1.2))
    above, right = top > 0.2 * size[0], left > 0.8 * size[1]
    axis.annotate(
        _letter(index),
        (left + width if right else left, top if above else top + height),
        xytext=(0, 4 if above else -4),
        textcoords="offset points",
        ha="right" if right else "left",
        va="bottom" if above else "top",
        fontsize=8,
        bbox=BADGE,
    )


def _draw_curves(axis: Axes, page_height: float, content: _Content, index: int, region: Region) -> None:
    marker = "." if len(content.nm) <= 40 else None
    truth_curve = None
    if content.truth is not None:
        truth_curve = spectral_curve(content.truth, region)
        axis.plot(content.nm, truth_curve, color="black", linewidth=2.2, marker=marker, label=TRUTH)
    for number, (name, cube) in enumerate(content.methods.items()):
        curve = spectral_curve(cube, region)
        label = _plain(name if len(name) <= LEGEND_NAME else name[: LEGEND_NAME - 1] + "\u2026")
        if truth_curve is not None:
            label += f", corr {correlation(curve, truth_curve):.4f}".replace("nan", "undefined")
        axis.plot(content.nm, curve, color=f"C{number}", linewidth=1.2, marker=marker, label=label)
    axis.set_title(_letter(index), fontsize=8, pad=5, bbox=BADGE)
    axis.set_xlabel("wavelength (nm)", fontsize=9, labelpad=1)
    axis.set_ylabel("mean intensity", fontsize=9)
    axis.tick_params(labelsize=8)
    bottom, top = min(0, axis.get_ylim()[0]), axis.get_ylim()[1]
    axis.set_ylim(bottom, top + 0.05 * (top - bottom))
    axis.grid(alpha=0.3)
    axis_height = axis.get_position().height * page_height
    axis.legend(
        loc="upper center",
        bbox_to_anchor=(0.42, -0.3 / axis_height),
        ncols=_legend_columns(content),
        fontsize=8,
        frameon=False,
        labelspacing=0.2,
        columnspacing=1,
        handlelength=1.6,
    )


def _choose_regions(rgb: np.ndarray) -> list[Region]:
    """Two patches of a picture (H, W, 3) that do not overlap, or one if only one fits."""
    short = min(rgb.shape[:2])
    side = max(1, min(max(2, short // 12), short // 2))
    step = max(1, side // 2)
    windows = view_as_windows(rgb, (side, side, 3), step)[:, :, 0]
    mean, spread = windows.mean((2, 3)), windows.std((2, 3)).mean(-1)
    chroma = mean - mean.mean(-1, keepdims=True)
    strong = np.linalg.norm(chroma, axis=-1)
    well_exposed = (mean.max(-1) > 0.25) & (mean.max(-1) < 0.98)
    worse = 2 * spread + np.where(well_exposed, 0, 0.3)
    first = np.unravel_index((strong - worse).argmax(), worse.shape)
    rows, columns = np.indices(worse.shape)
    distance = np.maximum(abs(rows - first[0]), abs(columns - first[1])) * step
    # Far enough apart that the letter of one does not cover the other.
    apart = distance >= min(3 * side, distance.max())
    differs = np.minimum(strong, np.linalg.norm(chroma - chroma[first], axis=-1))
    second = np.unravel_index(np.where(apart, differs - worse, -np.inf).argmax(), worse.shape)
    chosen = [first, second] if distance.max() >= side else [first]
    return [(int(row) * step, int(column) * step, side, side) for row, column in chosen]


def _checked(
    snapshot: np.ndarray,
    methods: dict[str, np.ndarray],
    wavelengths: np.ndarray,
    truth: np.ndarray | None,
    regions: list[Region] | None,
    bands: list[int] | None,
    scores: dict[str, str] | None,
) -> _Content:
    """The arguments of `save_spectral_comparison`, with their defaults."""
    if not 1 <= len(methods) <= MOST_METHODS:
        raise ValueError(f"methods: expected 1 to {MOST_METHODS}, got {len(methods)}; make several pictures")
    truth = None if truth is None else _checked_cube("truth", truth, None)
    cubes: dict[str, np.ndarray] = {}
    for name, cube in methods.items():
        first = next(iter(cubes.values()), truth)
        cubes[name] = _checked_cube(f"methods[{name!r}]", cube, None if first is None else first.shape)
    shape = next(iter(cubes.values())).shape
    snapshot = np.asarray(snapshot)
    if snapshot.ndim != 2 or snapshot.shape[0] != shape[1] or snapshot.size == 0:
        raise ValueError(f"snapshot: expected ({shape[1]}, W'), as high as the cubes, got {snapshot.shape}")
    if not np.isfinite(snapshot).all():
        raise ValueError("snapshot: holds NaN or Inf; fix those pixels first")
    nm = check_wavelengths(wavelengths, shape[0])
    if regions is None:
        reference = next(iter(cubes.values())) if truth is None else truth
        regions = _choose_regions(spectrum_to_rgb(reference / _bright(reference), nm))
    regions = [_checked_region(region, shape) for region in regions]
    if bands is None:
        # The middles of four equal parts, or fewer if there are fewer bands.
        bands = sorted({int((part + 0.5) * shape[0] / 4) for part in range(4)})
    for band in bands:
        if int(band) != band or not 0 <= band < shape[0]:
            raise ValueError(f"bands: expected whole numbers from 0 to {shape[0] - 1}, got {band}")
    if unknown := (scores or {}).keys() - cubes.keys():
        raise ValueError(f"scores: expected names of methods, {', '.join(cubes)}, got {', '.join(unknown)}")
    footnote = "every band on one scale for all methods"
    if scores is None and truth is not None:
        scores = {name: f"{metrics.psnr(cube, truth, PROTOCOL):.2f} dB" for name, cube in cubes.items()}
        footnote = f"PSNR by protocol {PROTOCOL}; {footnote}"
    return _Content(snapshot, cubes, nm, truth, regions, list(bands), scores or {}, footnote)


def _checked_cube(name: str, cube: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    cube = np.asarray(cube)
    if cube.ndim != 3 or cube.size == 0 or (shape is not None and cube.shape != shape):
        raise ValueError(f"{name}: expected {'(C, H, W)' if shape is None else shape}, got {cube.shape}")
    if not np.isfinite(cube).all():
        raise ValueError(f"{name}: holds NaN or Inf; fix those pixels first")
    return cube.astype(np.float32, copy=False)


def _checked_region(region: Region, shape: tuple[int, ...]) -> Region:
    whole = tuple(int(number) for number in region)
    if len(whole) != 4 or whole != tuple(region):
        raise ValueError(f"region: expected whole numbers (top, left, height, width), got {region}")
    top, left, height, width = whole
    if min(top, left) < 0 or min(height, width) < 1 or top + height > shape[1] or left + width > shape[2]:
        raise ValueError(
            f"region: expected (top, left, height, width) inside {shape[1]}x{shape[2]} pixels, got {region}"
        )
    return whole


def _tile_ratio(shape: tuple[int, ...]) -> float:
    """Height over width of the space for an image; a more extreme image is letterboxed."""
    return float(np.clip(shape[1] / shape[2], 0.5, 1.6))


def _bright(values: np.ndarray) -> float:
    """The value that is shown at full brightness; few pixels are brighter."""
    bright = float(np.percentile(values, 99.5))
    return bright if bright > 0 else 1.0


def _tinted(band: np.ndarray, nm: float, scale: float) -> np.ndarray:
    shown = np.clip(band / scale, 0, 1) ** (1 / DISPLAY_GAMMA)
    return shown[..., None] * wavelength_to_rgb(nm)


def _nm(nm: float) -> str:
    return f"{round(float(nm), 1):g} nm"


def _title(name: str, score: str, width: float) -> str:
    lines = textwrap.wrap(name, max(8, int(width * 11)))
    return "\n".join(_plain(line) for line in [*lines, score] if line)


def _plain(text: str) -> str:
    """Text in which a dollar sign is a dollar sign, not the start of a formula."""
    return text.replace("$", r"\$")


def _legend_columns(content: _Content) -> int:
    return 2 if max(len(name) for name in content.methods) <= 10 else 1


def _letter(index: int) -> str:
    return chr(ord("a") + index)


def _save(figure: Figure, path: str | Path) -> None:
    """Write at a resolution that keeps the file under 1 MB: lower if noise does not compress."""
    dpi, size = float(DPI), MOST_BYTES + 1
    while size > MOST_BYTES:
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=dpi)
        size = picture.tell()
        dpi *= 0.95 * np.sqrt(MOST_BYTES / size)
    write_in_one_step(path, lambda part: part.write_bytes(picture.getvalue()))
