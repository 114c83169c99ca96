"""Bands: the wavelengths of the CASSI literature, interpolation onto them, RGB photographs lifted to them."""

import numpy as np

# The 28 bands of the simulations since TSA-Net (Meng et al. 2020), in nm.
CASSI_WAVELENGTHS = (
    *(453.5, 457.5, 462.0, 466.0, 471.5, 476.5, 481.5, 487.0, 492.5, 498.0, 504.0, 510.0, 516.0, 522.5),
    *(529.5, 536.5, 544.0, 551.5, 558.5, 567.5, 575.5, 584.5, 594.5, 604.0, 614.5, 625.0, 636.5, 648.0),
)
# The field's scale of real measurements: y / C * REAL_GAIN fills the sensor's range.
REAL_GAIN = 2 * 1.2
# Centres and width in nm of the bumps that carry R, G and B in a lifted spectrum.
RGB_CENTRES = (620.0, 540.0, 460.0)
RGB_WIDTH = 38.0
GAMMA = 2.2


def interpolate_bands(cube: np.ndarray, wavelengths: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """A cube (C, H, W) at other wavelengths (nm, ascending), interpolated, (len(onto), H, W) float32.

    Raises:
        ValueError: as many wavelengths as bands are expected, and `onto` within their range.
    """
    wavelengths, onto = np.asarray(wavelengths, np.float64), np.asarray(onto, np.float64)
    if wavelengths.shape != cube.shape[:1]:
        raise ValueError(f"wavelengths: expected one for each of {len(cube)} bands, got {wavelengths.size}")
    if wavelengths.size == onto.size and np.allclose(wavelengths, onto, atol=1e-3):
        return np.asarray(cube, np.float32)
    if onto.min() < wavelengths[0] or onto.max() > wavelengths[-1]:
        raise ValueError(
            f"wavelengths: cannot interpolate {onto.min():g} to {onto.max():g} nm from bands of "
            f"{wavelengths[0]:g} to {wavelengths[-1]:g} nm; give a cube that covers them"
        )
    below = np.clip(np.searchsorted(wavelengths, onto, side="right") - 1, 0, len(wavelengths) - 2)
    share = (onto - wavelengths[below]) / (wavelengths[below + 1] - wavelengths[below])
    share = share.astype(np.float32)[:, None, None]
    return cube[below] * (1 - share) + cube[below + 1] * share


def lift_rgb(image: np.ndarray, wavelengths: np.ndarray) -> np.ndarray:
    """A synthetic cube from a photograph: (H, W, 3) uint8 -> (C, H, W) float32 in [0, 1] with smooth spectra.

    Linear R, G and B become weights of three Gaussian bumps that add to one at every wavelength. The spatial
    detail is real, the spectra are invented: for training only.
    """
    distance = np.asarray(wavelengths, np.float64)[:, None] - np.array(RGB_CENTRES)
    bumps = np.exp(-0.5 * (distance / RGB_WIDTH) ** 2)
    bumps /= bumps.sum(1, keepdims=True)
    linear = (image.astype(np.float32) / 255) ** GAMMA
    return np.einsum("hwk,ck->chw", linear, bumps.astype(np.float32))
