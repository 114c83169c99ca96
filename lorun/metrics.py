"""Image quality under the named protocols of each field. A figure always names its protocol."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import skimage  # its parts load when they are used: skimage.metrics takes a second

# Wang et al. 2004 in skimage's words; an 11x11 window.
GAUSSIAN: dict[str, Any] = {
    "gaussian_weights": True,
    "sigma": 1.5,
    "use_sample_covariance": False,
    "win_size": 11,
}
UNIFORM = {"win_size": 7}
COLOURS = "(3 or 1, H, W)"


@dataclass(frozen=True)
class Comparison:
    """What is done to x and to ref, each (C, H, W), before skimage compares them.

    Attributes:
        border: how many pixels at every border do not count, of the scale of super-resolution; None for a
            protocol that knows no scale.
        one_mse: whether PSNR is that of all bands together, and not the mean over the bands.
    """

    axes: str
    peak: float
    x: Callable[[np.ndarray], np.ndarray]
    ref: Callable[[np.ndarray], np.ndarray]
    window: dict
    border: Callable[[int], int] | None = None
    one_mse: bool = False


def psnr(x: np.ndarray, ref: np.ndarray, protocol: str, scale: int | None = None) -> float:
    """Peak signal-to-noise ratio in dB.

    - "cs": (H, W) in [0, 1], x clipped to [0, 1], peak 255, no rounding.
    - "sr-rgb": (3, H, W), or (1, H, W) for grey, x and ref clamped to [0, 1] and rounded to uint8, without a
      border of scale^2 pixels, one MSE of all channels, peak 255 (`main_test_table1.py` of USRNet, Zhang et
      al. 2020).
    - "sr-y": the Y of YCbCr, 16 to 235, of the same uint8 values, not rounded again, without a border of
      `scale` pixels, peak 255: what most of the literature reports (`test_Y_channel` of BasicSR). A grey
      image counts as one whose three channels are equal.

    The others take cubes (C, H, W) in [0, 1], and give the mean of the PSNR of every band:

    - "cassi-mst": x and ref times 256 and rounded half to even, not clamped, peak 255 (`torch_psnr` of MST,
      Cai et al. 2022, and of its successors); 0.034 dB below "cassi-float" if rounding does not matter.
    - "cassi-matlab": x and ref clamped to [0, 1] and rounded as by `im2uint8`, peak 255
      (`Cal_quality_assessment.m` and `csnr.m`, in the same repository).
    - "cassi-float": 10 log10(1 / MSE), neither rounded nor clamped.

    Args:
        scale: of super-resolution, at least 1, for the protocols "sr-..."; None for the others.

    Returns:
        inf where x equals ref as the protocol sees them; one such band makes the mean over a cube inf.

    Raises:
        ValueError: an unknown protocol, a scale for one that knows none, or none for one that needs it; two
            shapes or the wrong number of axes or channels, no pixels (within the border), NaN or Inf.
    """
    rule = _of(_PSNR, protocol)
    x, ref = _seen(x, ref, rule, protocol, scale)
    pairs = [(x, ref)] if rule.one_mse else list(zip(x, ref, strict=True))
    with np.errstate(divide="ignore"):
        psnr_of = skimage.metrics.peak_signal_noise_ratio
        return float(np.mean([psnr_of(r, b, data_range=rule.peak) for b, r in pairs]))


def ssim(x: np.ndarray, ref: np.ndarray, protocol: str, scale: int | None = None) -> float:
    """Structural similarity, skimage's; the mean over bands for cubes and over channels for colours.

    - "cs": of the images `psnr` compares, data_range 255, uniform 7x7 window.
    - "sr-rgb", "sr-y": of the values `psnr` compares, data_range 255, 11x11 Gaussian window of sigma 1.5
      inside the image only (Wang et al. 2004).
    - "cassi-mst": of x and ref as they are (only MST's PSNR rounds), data_range 1, 11x11 Gaussian window of
      sigma 1.5 that runs over the border into zeros, as a convolution with zero padding does
      (`ssim_torch.py`). Both images share these zeros, so it is mostly higher than the next two.
    - "cassi-matlab": of the uint8 values `psnr` compares, data_range 255, the same window inside the image
      only (`cal_ssim.m`, Wang et al. 2004).
    - "cassi-float": as "cassi-matlab", of x and ref as they are, data_range 1.

    Raises:
        ValueError: as `psnr`, and if an image is smaller than a window that has to lie inside it.
    """
    rule = _of(_SSIM, protocol)
    x, ref = _seen(x, ref, rule, protocol, scale)
    side = rule.window["win_size"]
    if min(ref.shape[1:]) < side:
        raise ValueError(
            f"ssim: expected at least {side}x{side} pixels, its window, got {ref.shape[1]}x{ref.shape[2]}; "
            "compare a larger part"
        )
    return float(
        skimage.metrics.structural_similarity(x, ref, data_range=rule.peak, channel_axis=0, **rule.window)
    )


def least_side(protocol: str, scale: int | None = None) -> int:
    """The smallest height and width in pixels for which `psnr` and `ssim` are defined."""
    rule = _of(_SSIM, protocol)
    return rule.window["win_size"] + 2 * (rule.border(scale) if rule.border and scale else 0)


def sam(x: np.ndarray, ref: np.ndarray) -> float:
    """Spectral angle mapper: the mean over pixels of the angle between the spectra of x and ref, in degrees.

    Yuhas et al. 1992. Brightness does not change an angle, so x and ref, (C, H, W), are neither clamped nor
    rounded. A pixel where either spectrum is all 0 has no angle and is left out of the mean.

    Returns:
        0 to 180; 0 to 90 if nothing is negative.

    Raises:
        ValueError: two shapes or the wrong number of axes, no pixels, NaN or Inf, or no pixel with an angle.
    """
    x, ref = _checked(x, ref, "(C, H, W)")
    lengths = np.linalg.norm(x, axis=0), np.linalg.norm(ref, axis=0)
    has_angle = (lengths[0] > 0) & (lengths[1] > 0)
    if not has_angle.any():
        raise ValueError("x, ref: in every pixel one spectrum is all 0, so that no angle is defined")
    x, ref = x[:, has_angle] / lengths[0][has_angle], ref[:, has_angle] / lengths[1][has_angle]
    # Not arccos of the dot product: near 0, where good restorations are, it loses half of its digits.
    angles = 2 * np.arctan2(np.linalg.norm(x - ref, axis=0), np.linalg.norm(x + ref, axis=0))
    return float(np.degrees(angles.mean()))


def _same(image: np.ndarray) -> np.ndarray:
    return image


def _times_255(image: np.ndarray) -> np.ndarray:
    return image * 255


def _clipped_times_255(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, 1) * 255


def _rounded_times_256(image: np.ndarray) -> np.ndarray:
    return np.rint(image * 256)


def _im2uint8(image: np.ndarray) -> np.ndarray:
    # MATLAB rounds half away from zero, numpy to even.
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5)


def _luma(image: np.ndarray) -> np.ndarray:
    """Y of YCbCr as ITU-R BT.601 scales it, 16 to 235, of the uint8 values of R, G and B, (1, H, W)."""
    red, green, blue = np.broadcast_to(_im2uint8(image) / 255, (3, *image.shape[1:]))
    return (16 + 65.481 * red + 128.553 * green + 24.966 * blue)[None]


def _amid_zeros(image: np.ndarray) -> np.ndarray:
    # skimage's mean leaves out a border of half a window: here exactly these zeros.
    half = GAUSSIAN["win_size"] // 2
    return np.pad(image, ((0, 0), (half, half), (half, half)))


_PSNR = {
    "cs": Comparison("(H, W)", 255, _clipped_times_255, _times_255, UNIFORM),
    "sr-rgb": Comparison(
        COLOURS, 255, _im2uint8, _im2uint8, GAUSSIAN, border=lambda scale: scale**2, one_mse=True
    ),
    "sr-y": Comparison(COLOURS, 255, _luma, _luma, GAUSSIAN, border=lambda scale: scale),
    "cassi-mst": Comparison("(C, H, W)", 255, _rounded_times_256, _rounded_times_256, GAUSSIAN),
    "cassi-matlab": Comparison("(C, H, W)", 255, _im2uint8, _im2uint8, GAUSSIAN),
    "cassi-float": Comparison("(C, H, W)", 1, _same, _same, GAUSSIAN),
}
_SSIM = _PSNR | {"cassi-mst": Comparison("(C, H, W)", 1, _amid_zeros, _amid_zeros, GAUSSIAN)}
PROTOCOLS = tuple(_PSNR)


def _of(rules: dict[str, Comparison], protocol: str) -> Comparison:
    if protocol not in rules:
        raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    return rules[protocol]


def _seen(
    x: np.ndarray, ref: np.ndarray, rule: Comparison, protocol: str, scale: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """x and ref as a protocol sees them, (C, H, W)."""
    if (scale is None) != (rule.border is None):
        wanted = "one, such as 2" if scale is None else "none"
        raise ValueError(f"scale: protocol {protocol} takes {wanted}, got {scale}")
    x, ref = _checked(x, ref, rule.axes)
    if rule.border is None or scale is None:
        return rule.x(x), rule.ref(ref)
    border = rule.border(scale)
    if scale < 1 or min(ref.shape[1:]) <= 2 * border:
        raise ValueError(
            f"scale: expected at least 1, and an image larger than the border of {border} pixels on every "
            f"side that {protocol} leaves out, got scale {scale} and {ref.shape[1]}x{ref.shape[2]} pixels"
        )
    inside = (slice(None), *[slice(border, -border)] * 2)
    return rule.x(x)[inside], rule.ref(ref)[inside]


def _checked(x: np.ndarray, ref: np.ndarray, axes: str) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 (C, H, W), with one band if `axes` is (H, W)."""
    x, ref = np.asarray(x, dtype=np.float64), np.asarray(ref, dtype=np.float64)
    if x.shape != ref.shape or ref.ndim != len(axes.split(",")) or ref.size == 0:
        kind = "cubes" if axes == "(C, H, W)" else "images"
        raise ValueError(f"x, ref: expected two {kind} of one shape {axes}, got {x.shape} and {ref.shape}")
    if not (np.isfinite(x).all() and np.isfinite(ref).all()):
        raise ValueError("x, ref: hold NaN or Inf, for which no quality is defined")
    x, ref = x.reshape(-1, *x.shape[-2:]), ref.reshape(-1, *ref.shape[-2:])
    if axes == COLOURS and len(ref) not in (1, 3):
        raise ValueError(f"x, ref: expected 3 channels, or 1 for grey, got {len(ref)}")
    return x, ref
