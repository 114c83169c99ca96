"""What the arrays of a file mean: which one is meant, its band axis, its scale and its wavelengths.

Nothing is guessed: if no rule decides, it is an error that says what to pass.
"""

from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Literal

import numpy as np

from lorun.errors import ArgumentError

# Rounding may exceed 1 by this much; anything further above is on another scale.
ROUNDING = 1e-6
LEAST_NM, MOST_NM = 200, 3000
MOST_MICROMETRES = 20

Layout = Literal["hwc", "chw"]


def choose(path: Path, arrays: dict, key: str | None, names: tuple, dims: tuple, what: str) -> str:
    """The key of the only array that can be meant: by a name in `names`, else by its number of dimensions."""
    listed = ", ".join(f"`{name}` {array.shape}" for name, array in arrays.items()) or "no array of numbers"
    if key is not None:
        if key not in arrays:
            raise ArgumentError("key", f"{path}: key: no array is called `{key}`; the file holds {listed}")
        if arrays[key].ndim not in dims:
            raise ValueError(f"{path}: `{key}`: expected a {what}, got {arrays[key].shape}; name another")
        return key
    # In a .mat, single numbers and lists are two-dimensional too.
    fitting = [name for name, array in arrays.items() if array.ndim in dims and min(array.shape) > 1]
    found = [name for name in fitting if name in names] or fitting
    if len(found) > 1:
        raise ArgumentError("key", f"{path}: several arrays can be the {what}; say which by key: {listed}")
    if not found:
        raise ValueError(f"{path}: expected a {what}; the file holds {listed}")
    return found[0]


def cube_layout(
    name: str, shape: tuple[int, ...], layout: str | None, nm: np.ndarray | None, field: bool
) -> str:
    """The layout of a cube, by the rules that `read_cube` states; `field`: its name says it is (H, W, C)."""
    if layout is not None:
        return _known(layout)
    first, middle, last = shape
    if nm is not None and len(nm) not in (first, last):
        raise ArgumentError(
            "wavelengths",
            f"{name}: wavelengths: expected one for each band, got {len(nm)} for the shape {shape}",
        )
    if nm is not None and first != last:
        return "chw" if len(nm) == first else "hwc"
    if field and last < min(first, middle):
        return "hwc"
    raise _open_layout(name, shape)


def mask_layout(name: str, shape: tuple[int, ...], layout: str | None, bands: int) -> str:
    """The layout of a mask of three dimensions, by which of its axes has the length `bands`."""
    fitting = [known for known, axis in (("chw", 0), ("hwc", 2)) if shape[axis] == bands]
    if layout is not None:
        fitting = [known for known in fitting if known == _known(layout)]
    if not fitting:
        where = "the first or the last axis" if layout is None else f'the band axis of layout "{layout}"'
        raise ValueError(f"{name}: expected {bands} bands along {where}, got {shape}; pass the bands it has")
    if len(fitting) > 1:
        raise _open_layout(name, shape)
    return fitting[0]


def finite(name: str, array: np.ndarray, divisor: float = 1) -> np.ndarray:
    """The values divided by `divisor`, as float32; none may be NaN, Inf or negative."""
    if array.dtype.kind not in "biuf" or not array.size:
        raise ValueError(f"{name}: expected real numbers, got {array.dtype} {array.shape}; use another array")
    with np.errstate(over="ignore"):  # a value beyond float32 becomes Inf, and is refused as that
        values = np.divide(array, divisor, dtype=np.float64).astype(np.float32, order="C")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: holds NaN or Inf; fix those values first")
    if array.min() < 0:
        raise ValueError(f"{name}: holds negative values, down to {array.min():.4g}; fix those first")
    return values


def scaled(name: str, array: np.ndarray, range: float | None) -> np.ndarray:
    """The values divided by `range`, as float32; only floats may go without one."""
    if range is None:
        if array.dtype.kind in "biu":
            raise ArgumentError(
                "range",
                f"{name}: holds integers ({array.dtype}, up to {array.max(initial=0)}); pass range, the "
                "value that means 1, such as 255, 4095 or 65535",
            )
        return finite(name, array)
    if not isinstance(range, Real) or isinstance(range, bool) or not 0 < range < np.inf:
        raise ArgumentError(
            "range", f"range: expected the value that means 1, a number above 0, got {range!r}"
        )
    return finite(name, array, float(range))


def unit_range(name: str, array: np.ndarray, range: float | None) -> np.ndarray:
    """As `scaled`, and in [0, 1]."""
    values = scaled(name, array, range)
    if values.max() > 1 + ROUNDING:
        wanted = "floats in [0, 1]" if range is None else f"values up to range, {range:g}"
        raise ArgumentError(
            "range",
            f"{name}: expected {wanted}, got up to {array.max():.7g}; pass range, the value that means 1",
        )
    return np.minimum(values, 1, out=values)


def stored_wavelengths(path: Path, arrays: dict) -> np.ndarray | None:
    """The wavelengths that the file states, or None."""
    found = arrays.get("wavelengths")
    return None if found is None or not found.size else _wavelengths(f"{path}: `wavelengths`", found)


def given_wavelengths(path: Path, wavelengths: Sequence[float] | np.ndarray) -> np.ndarray:
    """The wavelengths that the caller states for the file."""
    name = f"{path}: wavelengths"
    try:
        return _wavelengths(name, np.asarray(wavelengths))
    except TypeError as error:
        raise ArgumentError("wavelengths", f"{name}: expected numbers in nm, got {wavelengths!r}") from error
    except ValueError as error:
        raise ArgumentError("wavelengths", str(error)) from error


def _wavelengths(name: str, found: np.ndarray) -> np.ndarray:
    # In a .mat, a list is a matrix of one row or one column.
    if found.dtype.kind not in "iuf" or not found.size or found.size != max(found.shape, default=0):
        raise ValueError(f"{name}: expected a list of numbers in nm, got {found.dtype} {found.shape}")
    nm = found.ravel().astype(np.float64)
    if not np.isfinite(nm).all() or nm.min() < LEAST_NM or nm.max() > MOST_NM:
        hint = "multiply micrometres by 1000" if 0 < nm.max() < MOST_MICROMETRES else "give them in nm"
        raise ValueError(
            f"{name}: expected {LEAST_NM} to {MOST_NM} nm, got {nm.min():g} to {nm.max():g}; {hint}"
        )
    if (np.diff(nm) <= 0).any():
        raise ValueError(
            f"{name}: expected ascending numbers, got {nm[0]:g} ... {nm[-1]:g}; sort them and the bands alike"
        )
    return nm


def _open_layout(name: str, shape: tuple[int, ...]) -> ArgumentError:
    return ArgumentError(
        "layout",
        f'{name}: the shape {shape} leaves open which axis is the bands; pass layout, "hwc" or "chw"',
    )


def _known(layout: str) -> str:
    if layout not in ("hwc", "chw"):
        raise ArgumentError("layout", f'layout: expected "hwc" or "chw", got {layout!r}')
    return layout
