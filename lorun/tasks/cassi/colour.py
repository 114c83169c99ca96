"""Spectra as colours that a screen shows: CIE 1931 and sRGB."""

import numpy as np

VISIBLE = (360.0, 830.0)
# Beyond these the eye sees hardly any change of hue, but the fit, whose relative error is large there, does.
_STEADY = (430.0, 650.0)

# Wyman, Sloan and Shirley 2013, JCGT 2(2), Eq. 4: height, centre in nm, 1 / width below it and above it.
_LOBES = {
    "x": ((0.362, 442.0, 0.0624, 0.0374), (1.056, 599.8, 0.0264, 0.0323), (-0.065, 501.1, 0.0490, 0.0382)),
    "y": ((0.821, 568.8, 0.0213, 0.0247), (0.286, 530.9, 0.0613, 0.0322)),
    "z": ((1.217, 437.0, 0.0845, 0.0278), (0.681, 459.0, 0.0385, 0.0725)),
}
# IEC 61966-2-1.
_XYZ_OF_SRGB = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], dtype=np.float64
)
_SRGB_OF_XYZ = np.linalg.inv(_XYZ_OF_SRGB)


def colour_matching(nm: np.ndarray) -> np.ndarray:
    """The CIE 1931 2-degree colour matching functions x, y, z at `nm`: (...) -> (3, ...).

    The multi-lobe Gaussian fit of Wyman, Sloan and Shirley 2013 (JCGT 2(2), Eq. 4): from 400 to 660 nm within
    0.014 of the table of x, 0.008 of y, 0.023 of z.
    """
    nm = np.asarray(nm, dtype=np.float64)
    return np.stack([sum(_lobe(nm, *lobe) for lobe in lobes) for lobes in _LOBES.values()])


def spectrum_to_rgb(cube: np.ndarray, wavelengths: np.ndarray) -> np.ndarray:
    """The picture of a cube in sRGB, gamma included: a cube of ones is white.

    Integrates over wavelength by the trapezoid rule, so uneven bands count by their width. X, Y and Z are
    scaled so that the spectrum of ones gets those of sRGB's white, D65: white in any set of bands.

    Args:
        cube: (C, H, W), reflectance or radiance in [0, 1].
        wavelengths: (C,) in nm, rising; bands outside 360 to 830 nm cannot be seen and do not count.

    Returns:
        (H, W, 3) float32 in [0, 1]; colours outside of sRGB are clipped.

    Raises:
        ValueError: not three axes, NaN or Inf, other wavelengths than bands, not rising, or none visible.
    """
    cube = np.asarray(cube)
    if cube.ndim != 3 or cube.size == 0:
        raise ValueError(f"cube: expected (C, H, W), got {cube.shape}")
    if not np.isfinite(cube).all():
        raise ValueError("cube: holds NaN or Inf; fix those pixels first")
    nm = check_wavelengths(wavelengths, len(cube))
    visible = (nm >= VISIBLE[0]) & (nm <= VISIBLE[1])
    if not visible.any():
        raise ValueError(
            f"wavelengths: expected nm, at least one in {VISIBLE[0]:g} to {VISIBLE[1]:g}, "
            f"got {nm[0]:g} to {nm[-1]:g}; a cube without a visible band has no colour"
        )
    sensitivity = colour_matching(nm[visible]) * _trapezoid_weights(nm[visible])
    white = _XYZ_OF_SRGB.sum(axis=1, keepdims=True)
    to_rgb = _SRGB_OF_XYZ @ (sensitivity * white / sensitivity.sum(axis=1, keepdims=True))
    linear = np.tensordot(cube[visible], to_rgb, axes=(0, 1))
    return _gamma(np.clip(linear, 0, 1)).astype(np.float32)


def wavelength_to_rgb(nm: float) -> np.ndarray:
    """The sRGB hue of light of one wavelength, with which to tint the picture of one band.

    No such light lies inside sRGB: channels below 0 are cut. The brightest channel is 1, so that bands to
    which the eye is nearly blind can be seen too. Outside 360 to 830 nm there is no hue: white.

    Returns:
        (3,) float32 in [0, 1], gamma included.

    Raises:
        ValueError: not a positive finite number.
    """
    if not (np.isfinite(nm) and nm > 0):
        raise ValueError(f"nm: expected a positive wavelength in nm, got {nm}")
    if not VISIBLE[0] <= nm <= VISIBLE[1]:
        return np.ones(3, dtype=np.float32)
    linear = _SRGB_OF_XYZ @ colour_matching(np.clip(nm, *_STEADY))
    return _gamma(np.clip(linear / linear.max(), 0, 1)).astype(np.float32)


def check_wavelengths(wavelengths: np.ndarray, bands: int) -> np.ndarray:
    """Wavelengths as float64 (C,): one for each band, positive, finite, rising."""
    nm = np.asarray(wavelengths, dtype=np.float64)
    if nm.shape != (bands,):
        raise ValueError(f"wavelengths: expected ({bands},), one in nm for each band, got {nm.shape}")
    if not (np.isfinite(nm).all() and (nm > 0).all() and (np.diff(nm) > 0).all()):
        raise ValueError(f"wavelengths: expected positive numbers that rise, got {nm}; sort the bands")
    return nm


def _lobe(nm: np.ndarray, height: float, centre: float, below: float, above: float) -> np.ndarray:
    return height * np.exp(-0.5 * ((nm - centre) * np.where(nm < centre, below, above)) ** 2)


def _trapezoid_weights(nm: np.ndarray) -> np.ndarray:
    """The weight of each sample in np.trapezoid; 1 for a single band."""
    if len(nm) == 1:
        return np.ones(1)
    steps = np.diff(nm)
    return (np.append(steps, 0) + np.insert(steps, 0, 0)) / 2


def _gamma(linear: np.ndarray) -> np.ndarray:
    """From linear to sRGB, in [0, 1]."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)
