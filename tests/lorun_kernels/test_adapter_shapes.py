"""The shapes of factors: Eq. 4 for convolutions, and its like for weights of other dimensions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lorun_kernels.adapter_shapes import (
    FORMS,
    check_form,
    factor_shapes,
    largest_rank,
    matrix_shape,
    weight_channels,
)

# Of Eq. 4, worked out by hand: Cin, Cout, kernel, groups, rank; then the shapes of up and down.
EQ_4 = [
    (28, 30, (3, 3), 1, 3, (90, 9), (9, 84)),
    (4, 6, (3, 3), 1, 1, (18, 3), (3, 12)),
    (4, 6, (3, 3), 2, 2, (9, 6), (6, 12)),
    (6, 4, (5, 5), 2, 2, (10, 10), (10, 30)),
    (8, 8, (3, 3), 8, 1, (3, 3), (3, 24)),
    (5, 7, (1, 1), 1, 2, (7, 2), (2, 5)),
    (5, 7, (3, 1), 1, 2, (21, 2), (2, 5)),
    (5, 7, (1, 3), 1, 2, (7, 2), (2, 15)),
    (5, 7, (2, 5), 1, 4, (14, 8), (8, 25)),
    (6, 9, (4, 3), 3, 2, (12, 6), (6, 18)),
]


@pytest.mark.parametrize("in_channels, out_channels, kernel, groups, rank, up, down", EQ_4)
def test_factors_of_a_conv2d_have_the_shapes_of_eq_4(
    in_channels, out_channels, kernel, groups, rank, up, down
):
    shape = tuple(nn.Conv2d(in_channels, out_channels, kernel, groups=groups).weight.shape)
    assert factor_shapes(shape, "reshape", rank, groups) == (up, down)


@pytest.mark.parametrize("in_channels, out_channels, kernel, groups, rank, up, down", EQ_4)
def test_the_factored_form_is_a_convolution_to_the_rank_and_one_of_1x1(
    in_channels, out_channels, kernel, groups, rank, up, down
):
    shape = tuple(nn.Conv2d(in_channels, out_channels, kernel, groups=groups).weight.shape)
    inner = in_channels // groups * kernel[0] * kernel[1]
    assert factor_shapes(shape, "factored", rank, groups) == ((out_channels, rank), (rank, inner))
    assert largest_rank(shape, "factored", groups) == min(out_channels, inner)


# A module's weight and its groups; then the matrices of "reshape" and "factored", the width of one rank of
# "reshape" and its largest rank.
WEIGHTS = {
    "Conv1d": (nn.Conv1d(5, 7, 3), 1, (7, 15), (7, 15), 1, 7),
    "Conv1d grouped": (nn.Conv1d(6, 4, 5, groups=2), 2, (4, 15), (4, 15), 1, 4),
    "Conv1d of one channel": (nn.Conv1d(1, 1, 3), 1, (1, 3), (1, 3), 1, 1),
    "Conv3d": (nn.Conv3d(3, 4, (3, 2, 5)), 1, (12, 30), (4, 90), 2, 3),
    "Conv3d grouped": (nn.Conv3d(4, 6, 3, groups=2), 2, (9, 36), (6, 54), 3, 3),
    "ConvTranspose1d": (nn.ConvTranspose1d(5, 3, 4), 1, (5, 12), (5, 12), 1, 5),
    "ConvTranspose2d": (nn.ConvTranspose2d(5, 3, (4, 3)), 1, (20, 9), (5, 36), 3, 3),
    "ConvTranspose2d grouped": (nn.ConvTranspose2d(6, 4, 3, groups=2), 2, (9, 12), (6, 18), 3, 3),
    "ConvTranspose3d": (nn.ConvTranspose3d(5, 3, 2), 1, (10, 12), (5, 24), 2, 3),
    "Linear": (nn.Linear(7, 5), 1, (5, 7), (5, 7), 1, 5),
    "Bilinear": (nn.Bilinear(3, 4, 5), 1, (5, 12), (5, 12), 1, 5),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), 8, (3, 24), (8, 9), 3, 1),
}


@pytest.mark.parametrize("module, groups, reshape, factored, inner, largest", WEIGHTS.values(), ids=WEIGHTS)
def test_the_matrix_of_a_weight_has_its_rows_and_columns(module, groups, reshape, factored, inner, largest):
    shape = tuple(module.weight.shape)
    assert matrix_shape(shape, "reshape", groups) == (*reshape, inner)
    assert matrix_shape(shape, "factored", groups) == (*factored, 1)
    assert largest_rank(shape, "reshape", groups) == largest
    assert largest_rank(shape, "factored", groups) == min(factored)


@pytest.mark.parametrize("form", ["reshape", "factored"])
@pytest.mark.parametrize("module, groups", [row[:2] for row in WEIGHTS.values()], ids=WEIGHTS)
def test_the_product_has_exactly_the_elements_of_the_weight(module, groups, form):
    shape = tuple(module.weight.shape)
    for rank in range(1, largest_rank(shape, form, groups) + 1):
        up, down = factor_shapes(shape, form, rank, groups)
        product = torch.zeros(up, dtype=torch.float64) @ torch.zeros(down, dtype=torch.float64)
        assert product.numel() == module.weight.numel()
        assert up[1] == rank * matrix_shape(shape, form, groups)[2]


@pytest.mark.parametrize("form", ["reshape", "factored"])
def test_a_table_of_positions_is_a_matrix(form):
    assert matrix_shape((1, 16, 8), form) == (16, 8, 1)
    assert factor_shapes((1, 16, 8), form, 2) == ((16, 2), (2, 8))
    assert largest_rank((1, 5, 8), form) == 5 and weight_channels((1, 5, 8)) == (5, 8)


@pytest.mark.parametrize(
    "shape, groups, channels",
    [((6, 4, 3, 3), 1, (6, 4)), ((6, 2, 3, 3), 2, (6, 4)), ((5, 3), 1, (5, 3)), ((2, 3, 4), 1, (2, 3))],
)
def test_the_channels_of_a_weight_are_those_of_its_layer(shape, groups, channels):
    assert weight_channels(shape, groups) == channels


@pytest.mark.parametrize("form", ["reshape", "factored"])
@pytest.mark.parametrize("channels", [(3, 5), (5, 3), (4, 4), (1, 6)])
@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_the_largest_rank_of_a_square_kernel_every_weight_can_be_made(dtype, kernel, channels, form):
    torch.manual_seed(0)
    target = torch.randn(*channels, kernel, kernel, dtype=dtype)
    shape = tuple(target.shape)
    up, down = factor_shapes(shape, form, largest_rank(shape, form))
    assert up[1] == down[0] == min(up[0], down[1])
    u, s, v = torch.linalg.svd(target.reshape(up[0], down[1]), full_matrices=False)
    torch.testing.assert_close(((u * s) @ v).view(shape), target)
    if form == "reshape" and min(channels) > 1:
        # One rank less does not suffice.
        smaller = factor_shapes(shape, form, largest_rank(shape, form) - 1)[0][1]
        assert (((u * s)[:, :smaller] @ v[:smaller]).view(shape) - target).abs().max() > 0.01


def test_grouped_square_kernels_are_spanned_too():
    shape, groups = (6, 2, 3, 3), 2
    (rows, inner), (_, columns) = factor_shapes(
        shape, "reshape", largest_rank(shape, "reshape", groups), groups
    )
    assert inner == min(rows, columns) == 9 and rows * columns == math.prod(shape)


def test_unknown_forms_are_refused():
    for form in FORMS:
        check_form(form)
    with pytest.raises(ValueError, match=r"form must be one of \('reshape', 'factored', 'full'\), got 'low'"):
        check_form("low")
