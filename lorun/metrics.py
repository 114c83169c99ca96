"""Image quality under the named protocols of each field. A figure always names its protocol."""

import numpy as np
from skimage.metrics import structural_similarity

PROTOCOLS = ("cs",)


def psnr(x: np.ndarray, ref: np.ndarray, protocol: str) -> float:
    """Peak signal-to-noise ratio in dB; inf where x equals ref.

    protocol "cs": (H, W) in [0, 1], x clipped to [0, 1], peak 255, no rounding.
    """
    x, ref = _prepare(x, ref, protocol)
    mse = np.mean((x - ref) ** 2)
    return float("inf") if mse == 0 else float(10 * np.log10(255.0**2 / mse))


def ssim(x: np.ndarray, ref: np.ndarray, protocol: str) -> float:
    """Structural similarity; protocol "cs": skimage's, with data_range=255, on the images `psnr` compares."""
    x, ref = _prepare(x, ref, protocol)
    if min(ref.shape) < 7:
        raise ValueError(f"ssim: expected at least 7x7 pixels, its window, got {ref.shape}")
    return float(structural_similarity(x, ref, data_range=255))


def _prepare(x: np.ndarray, ref: np.ndarray, protocol: str) -> tuple[np.ndarray, np.ndarray]:
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    x, ref = np.asarray(x, dtype=np.float64), np.asarray(ref, dtype=np.float64)
    if x.shape != ref.shape or ref.ndim != 2:
        raise ValueError(f"x, ref: expected two images of one shape (H, W), got {x.shape} and {ref.shape}")
    if not (np.isfinite(x).all() and np.isfinite(ref).all()):
        raise ValueError("x, ref: hold NaN or Inf, for which no quality is defined")
    return np.clip(x, 0, 1) * 255, ref * 255
