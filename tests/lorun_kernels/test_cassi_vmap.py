"""torch.vmap of the CASSI ops: one pass, and the results of a loop."""

import pytest
import torch

import lorun_kernels as lk

CUBE, MEASURED, MASK = (2, 4, 3, 5), (2, 3, 11), (3, 5)
MASK_SHAPES = [(3, 5), (4, 3, 5), (2, 4, 3, 5)]
STEPS = {"pgd": lk.cassi_pgd_step, "hqs": lk.cassi_hqs_step}


def draw(mask_shape=(3, 5), dtype=torch.float32):
    shapes = [(2, 4, 3, 5), (2, 3, 11), mask_shape, (2,)]
    return [torch.rand(shape).to(dtype) if len(shape) > 1 else torch.rand(shape) for shape in shapes]


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("mapped_mask", [False, True])
@pytest.mark.parametrize("mask_shape", MASK_SHAPES, ids=str)
def test_vmap_is_a_loop(name, mapped_mask, mask_shape):
    x, y, scale = torch.rand(3, 2, 4, 3, 5), torch.rand(2, 3, 3, 11), torch.rand(3, 2)
    mask = torch.rand(*((3,) if mapped_mask else ()), *mask_shape)
    in_dims = (0, 1, 0 if mapped_mask else None, 0)
    mapped = torch.vmap(STEPS[name], in_dims)(x, y, mask, scale)
    for i in range(3):
        torch.testing.assert_close(
            mapped[i], STEPS[name](x[i], y[:, i], mask[i] if mapped_mask else mask, scale[i])
        )
    forward = torch.vmap(lk.cassi_forward, (0, in_dims[2]))(x, mask)
    adjoint = torch.vmap(lambda y, m: lk.cassi_adjoint(y, m, 4), (1, in_dims[2]))(y, mask)
    for i in range(3):
        each = mask[i] if mapped_mask else mask
        torch.testing.assert_close(forward[i], lk.cassi_forward(x[i], each))
        torch.testing.assert_close(adjoint[i], lk.cassi_adjoint(y[:, i], each, 4))


def test_vmap_over_unbatched_samples_and_one_scale_each():
    x, y, mask = torch.rand(6, 4, 3, 5), torch.rand(6, 3, 11), torch.rand(3, 5)
    scale = torch.rand(6)
    mapped = torch.vmap(lk.cassi_hqs_step, (0, 0, None, 0))(x, y, mask, scale)
    torch.testing.assert_close(mapped, lk.cassi_hqs_step(x, y, mask, scale))
    fixed = torch.vmap(lambda x, y: lk.cassi_hqs_step(x, y, mask, 0.5))(x, y)
    torch.testing.assert_close(fixed, lk.cassi_hqs_step(x, y, mask, 0.5))


def test_vmap_in_place_steps_each_sample():
    x, y, mask = torch.rand(6, 4, 3, 5), torch.rand(6, 3, 11), torch.rand(3, 5)
    expected = lk.cassi_hqs_step(x, y, mask, 0.5)
    torch.vmap(lambda x, y: lk.cassi_hqs_step_(x, y, mask, 0.5))(x, y)
    torch.testing.assert_close(x, expected)


def test_gradients_pass_through_vmap():
    x, y, mask, scale = (t.requires_grad_() for t in draw())
    mapped = torch.vmap(lk.cassi_hqs_step, (0, 0, None, 0))(x, y, mask, scale)
    got = torch.autograd.grad(mapped.square().sum(), [x, y, mask, scale])
    expected = torch.autograd.grad(lk.cassi_hqs_step(x, y, mask, scale).square().sum(), [x, y, mask, scale])
    for value, true in zip(got, expected, strict=True):
        torch.testing.assert_close(value, true)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (1, 4, 3, 5)], ids=str)
def test_vmap_refuses_a_mask_that_a_call_would_refuse(shape):
    x = torch.rand(3, *CUBE)
    with pytest.raises(ValueError, match=r"mask must be \(H, W\), .* in each call"):
        torch.vmap(lk.cassi_forward)(x, torch.rand(3, *shape))
    with pytest.raises(ValueError, match="rho or mu must be one value or one for each of the 2 samples"):
        torch.vmap(lk.cassi_pgd_step, (0, 0, None, 0))(
            x, torch.rand(3, *MEASURED), torch.rand(MASK), torch.rand(3, 3)
        )
