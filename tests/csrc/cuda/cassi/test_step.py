"""csrc/cuda/cassi/step.cu, executed on the CPU by the emulation in on_host.

Every input and output lies between NaN guards, and so does shared memory, which starts as NaN.
"""

from __future__ import annotations

import pytest
import torch

from lorun_kernels import reference

from .cases import Case, assert_close, loop_forward, shrink_shared_memory
from .launchers import accumulator

STEP = {"pgd": reference.cassi_pgd_step, "hqs": reference.cassi_hqs_step}


def check_step(cassi, kind, case, dtype):
    x, mask, scale = case.cube(dtype), case.mask_values(dtype), case.scales(dtype)
    y = torch.randn(case.measured).to(dtype)
    expected = expected_step(kind, case, x, y, mask, scale)
    given = mask.expand(case.shape)
    for like in (torch.empty_like(x), x.new_empty(case.shape)):
        out, residual = cassi.step(kind, x, y, given, scale, case.offsets, like)
        assert_close(out, expected)
        assert_close(residual, loop_forward(x, mask, case.offsets) - y.double())


def expected_step(kind, case, x, y, mask, scale):
    x, y, mask, scale = (value.double() for value in (x, y, mask.expand(case.shape), scale))
    return STEP[kind](x, y, mask, scale, case.offsets)


def backward_operands(kind, case, dtype):
    """(grad, residual, x, mask, scale) and the gradients by name, from autograd in float64."""
    x, mask, scale = case.cube(dtype), case.mask_values(dtype), case.scales(dtype)
    y = torch.randn(case.measured).to(dtype)
    grad = case.cube(dtype)
    leaves = [value.double().detach().clone().requires_grad_() for value in (x, y, mask, scale)]
    expected_step(kind, case, *leaves).backward(grad.double())
    residual = (loop_forward(x, mask, case.offsets) - y.double()).to(accumulator(dtype))
    expected = dict(zip(("x", "y", "mask", "scale"), (leaf.grad for leaf in leaves), strict=True))
    return (grad, residual, x, mask, scale), expected


def check_step_backward(cassi, kind, case, dtype):
    (grad, residual, x, mask, scale), expected = backward_operands(kind, case, dtype)
    likes = {
        "x": torch.empty_like(grad),
        "y": torch.empty(case.measured, dtype=dtype),
        "mask": mask.to(accumulator(dtype)).expand(case.shape),
        "scale": scale.new_empty(case.shape[0], case.shape[2]),
    }
    arguments = (kind, grad, residual, x, mask.expand(case.shape), scale, case.offsets)
    gradients = cassi.step_backward(*arguments, likes)
    assert_close(gradients["x"], expected["x"])
    assert_close(gradients["y"], expected["y"])
    assert_close(gradients["mask"], expected["mask"].expand(case.shape))
    assert_close(gradients["scale"].sum(1), expected["scale"])


def test_step(cassi, kind, case, dtype):
    check_step(cassi, kind, case, dtype)


def test_step_backward(cassi, kind, case, dtype):
    check_step_backward(cassi, kind, case, dtype)


def test_rows_that_do_not_fit_in_shared_memory(library, cassi, large_case, kind, dtype):
    case = large_case
    shrink_shared_memory(library, case, dtype)
    check_step(cassi, kind, case, dtype)
    check_step_backward(cassi, kind, case, dtype)
    given = (
        case.cube(dtype),
        torch.randn(case.measured).to(dtype),
        case.mask_values(dtype),
        case.scales(dtype),
    )
    x, y, mask, scale = given
    out, _ = cassi.step(kind, x, y, mask.expand(case.shape), scale, case.offsets)
    assert_close(out, expected_step(kind, case, *given))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "sliced channels_last"])
def test_step_in_place(cassi, kind, layout, dtype):
    case = Case(layout=layout)
    given = (
        case.cube(dtype),
        torch.randn(case.measured).to(dtype),
        case.mask_values(dtype),
        case.scales(dtype),
    )
    x, y, mask, scale = given
    out, residual = cassi.step(kind, x, y, mask.expand(case.shape), scale, case.offsets, with_residual=False)
    assert residual is None
    assert_close(out, expected_step(kind, case, *given))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_256_bands(cassi, kind, layout):
    case = Case((1, 256, 1, 3), step=1, layout=layout)
    check_step(cassi, kind, case, torch.float32)
    check_step_backward(cassi, kind, case, torch.float32)


def test_hqs_leaves_alone_what_no_open_mask_reaches(cassi):
    """With mu = 0 the weight of such a pixel is 1 / 0."""
    case = Case((1, 3, 1, 9))
    x, y = torch.randn(case.shape), torch.randn(case.measured)
    mask = torch.zeros(1, 9)
    mask[0, :3] = 0.5
    scale = torch.zeros(1)
    out, residual = cassi.step("hqs", x, y, mask.expand(case.shape), scale, case.offsets, torch.empty_like(x))
    assert torch.equal(out[..., 3:], x[..., 3:])
    # With mu = 0, what was measured is explained in full.
    reached = torch.zeros(case.measured, dtype=torch.bool)
    reached[..., :7] = True
    explained = loop_forward(out, mask, case.offsets)
    torch.testing.assert_close(explained[reached], y[reached].double(), rtol=0, atol=1e-5)
    likes = {
        "x": torch.empty_like(x),
        "mask": torch.empty(1, 9).expand(case.shape),
        "scale": torch.empty(1, 1),
    }
    arguments = ("hqs", torch.ones_like(x), residual, x, mask.expand(case.shape), scale, case.offsets)
    gradients = cassi.step_backward(*arguments, likes)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())


def test_one_scale_for_all_samples(cassi, kind):
    case = Case()
    x, mask, y = case.cube(torch.float32), case.mask_values(torch.float32), torch.randn(case.measured)
    scale = torch.tensor([0.7]).expand(case.shape[0])
    out, _ = cassi.step(kind, x, y, mask.expand(case.shape), scale, case.offsets, torch.empty_like(x))
    assert scale.stride() == (0,)
    assert_close(out, expected_step(kind, case, x, y, mask, scale))


@pytest.mark.parametrize("wanted", ["x", "y", "mask", "scale"])
def test_gradients_that_are_not_wanted(cassi, kind, wanted):
    """One output alone, and none of the inputs that it does not need."""
    case = Case(layout="channels_last")
    (grad, residual, x, mask, scale), expected = backward_operands(kind, case, torch.float32)
    likes = {
        "x": torch.empty_like(grad),
        "y": torch.empty(case.measured),
        "mask": torch.empty(mask.shape).expand(case.shape),
        "scale": scale.new_empty(case.shape[0], case.shape[2]),
    }
    needs_residual = wanted in ("mask", "scale")
    gradients = cassi.step_backward(
        kind,
        grad,
        residual if needs_residual else None,
        x if wanted == "mask" else None,
        mask.expand(case.shape),
        scale,
        case.offsets,
        {wanted: likes[wanted]},
    )
    value = gradients[wanted].sum(1) if wanted == "scale" else gradients[wanted]
    assert_close(value, expected[wanted].expand(value.shape))
