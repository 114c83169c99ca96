"""The CASSI kernels in Triton's interpreter against their definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.lorun_kernels.triton.cassi_checks import LAYOUTS, MASKS, Problem

CHECKS = "tests.lorun_kernels.triton.cassi_checks:"
IRREGULAR = (7, 0, 3, 3, 12)
PROBLEMS = {
    **{f"mask {mask}, {layout}": Problem(mask=mask, layout=layout) for mask in MASKS for layout in LAYOUTS},
    **{f"step {step}": Problem(step=step, mask="CHW") for step in range(4)},
    "irregular offsets": Problem(step=IRREGULAR),
    "irregular offsets, CHW": Problem(step=IRREGULAR, mask="CHW", layout="channels_last"),
    "offsets from 3": Problem(step=(3, 5, 7, 9, 11), mask="BCHW"),
    "falling offsets": Problem(step=(8, 6, 4, 2, 0)),
    **{f"W = {width}": Problem(width=width, bands=7, mask="CHW") for width in (1, 5, 33, 64)},
    **{f"C = {bands}": Problem(bands=bands, height=2, width=33) for bands in (1, 2, 28, 29, 31, 33)},
    "C = 28, several tiles": Problem(bands=28, height=2, width=64, step=3, layout="channels_last"),
    "C = 256": Problem(bands=256, height=1, width=5, mask="CHW"),
    "C = 256, irregular": Problem(bands=256, height=2, width=3, step=tuple(c * c % 11 for c in range(256))),
    "one sample": Problem(batch=1, scale=0.4),
    "shared scale": Problem(batch=3, scale=0.4, mask="CHW"),
    "expanded cubes": Problem(expanded=True, mask="CHW"),
    "1 x 1 x 1": Problem(batch=1, bands=1, height=1, width=1, scale=0.4),
    **{
        f"{dtype}, {layout}": Problem(dtype=dtype, layout=layout, bands=28, width=17, mask=mask)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for layout, mask in (("contiguous", "HW"), ("channels_last", "CHW"))
    },
}


@pytest.fixture(params=PROBLEMS.values(), ids=PROBLEMS.keys())
def problem(request) -> Problem:
    return request.param


def test_projections_equal_the_definition(interpret, problem):
    interpret(CHECKS + "check_projections", problem)


@pytest.mark.parametrize("hqs", [False, True], ids=["pgd", "hqs"])
def test_step_and_its_gradients_equal_the_definition(interpret, problem, hqs):
    interpret(CHECKS + "check_step", problem, hqs)


@pytest.mark.parametrize("hqs", [False, True], ids=["pgd", "hqs"])
@pytest.mark.parametrize("mask", MASKS)
def test_each_gradient_can_be_had_alone(interpret, mask, hqs):
    interpret(CHECKS + "check_optional_outputs", Problem(mask=mask), hqs)


def test_undamped_hqs_equals_the_definition(interpret):
    interpret(CHECKS + "check_step", Problem(mask="CHW", scale=0.0), True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_undamped_hqs_leaves_alone_what_nothing_measures(interpret, dtype):
    interpret(CHECKS + "check_nothing_measured", replace(Problem(), dtype=dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wide_indices_equal_the_definition(interpret, layout):
    interpret(CHECKS + "check_wide_indices", Problem(layout=layout, mask="CHW", step=IRREGULAR))
