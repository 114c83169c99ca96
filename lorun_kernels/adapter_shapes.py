"""The shapes of low-rank factors for a weight of any number of dimensions."""

from __future__ import annotations

import math

FORMS = ("reshape", "factored", "full")

Shape = tuple[int, ...]


def check_form(form: str) -> None:
    """Refuse (ValueError) a form that adapters do not have."""
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form!r}")


def matrix_shape(shape: Shape, form: str, groups: int = 1) -> tuple[int, int, int]:
    """Rows and columns of the matrix that a weight is viewed as, and the inner size of one rank.

    With d0 and d1 the first two sizes of a convolution's weight and k the kernel, "reshape" (Eq. 4 of arXiv
    2602.18697) views it row-major as ``(d0/groups * k[0], d1*groups * k[1]*...)``, and a rank is min(k) wide;
    "factored" as ``(d0, d1 * k[0]*k[1]*...)``. A kernel of one dimension, and any weight of two or three
    dimensions, has rows d0 in both; a leading 1 in three dimensions, as positions have, is left out.
    """
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    first, rest = shape[0], math.prod(shape[1:])
    if form == "factored" or len(shape) < 4:
        return first, rest, 1
    second, kernel = shape[1], shape[2:]
    return first // groups * kernel[0], second * groups * math.prod(kernel[1:]), min(kernel)


def weight_channels(shape: Shape, groups: int = 1) -> tuple[int, int]:
    """The channels on both sides of a weight, of which Eq. 12 takes its percentage."""
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    return shape[0], shape[1] * groups


def largest_rank(shape: Shape, form: str, groups: int = 1) -> int:
    """The largest rank: Eq. 12's bound for "reshape", the smaller side of the matrix otherwise."""
    rows, columns, inner = matrix_shape(shape, form, groups)
    if form == "factored" or len(shape) < 4:
        return min(rows, columns)
    first, second = weight_channels(shape, groups)
    return max(1, min(first // groups, second))


def factor_shapes(
    shape: Shape, form: str, rank: int, groups: int = 1
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of `lora_up` and `lora_down`."""
    rows, columns, inner = matrix_shape(shape, form, groups)
    return (rows, rank * inner), (rank * inner, columns)
