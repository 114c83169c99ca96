"""The CASSI ops against a dense Phi built by brute force, on every mask form, dtype, layout and backend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import lorun_kernels as lk
from lorun_kernels import reference
from tests.lorun_kernels.cassi_samples import CassiSample

MASK_FORMS = {2: "(H, W)", 3: "(C, H, W)", 4: "(B, C, H, W)"}
# The error of one rounding of a sum in float32, or of the result to half precision.
TOLERANCES = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@pytest.fixture(params=MASK_FORMS, ids=MASK_FORMS.values())
def mask_dim(request) -> int:
    return request.param


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with lk.use_backend(request.param):
        yield request.param


def times(phi: Tensor, cube: Tensor) -> Tensor:
    return torch.einsum("bpx,bx->bp", phi, cube.double().flatten(1))


def transposed_times(phi: Tensor, y: Tensor) -> Tensor:
    return torch.einsum("bpx,bp->bx", phi, y.double().flatten(1))


def test_forward_and_adjoint_are_the_dense_phi(backend, sample, mask_dim, relative_error):
    x, y, mask = sample.draw(mask_dim)
    phi = sample.dense_phi(mask)
    forward = lk.cassi_forward(x, mask, sample.step)
    adjoint = lk.cassi_adjoint(y, mask, sample.bands, sample.step)
    assert forward.shape == y.shape and adjoint.shape == x.shape
    assert relative_error(forward.flatten(1), times(phi, x)) < 1e-13
    assert relative_error(adjoint.flatten(1), transposed_times(phi, y)) < 1e-13
    dot = (forward * y).sum()
    assert abs(dot - (x * adjoint).sum()) <= 1e-12 * max(1, abs(dot))


def test_gram_is_the_diagonal_of_phi_phi_t_which_has_no_other_entries(backend, sample, mask_dim):
    _, _, mask = sample.draw(mask_dim)
    phi = sample.dense_phi(mask)
    product = phi @ phi.mT
    gram = lk.cassi_gram(mask, sample.bands, sample.step)
    expected_shape = (sample.height, sample.measured)
    assert gram.shape == ((sample.batch, *expected_shape) if mask_dim == 4 else expected_shape)
    diagonal = gram.expand(sample.batch, *expected_shape).flatten(1)
    torch.testing.assert_close(torch.diag_embed(diagonal), product, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("per_sample", [False, True])
def test_pgd_step_is_equation_5(backend, sample, mask_dim, per_sample, relative_error):
    x, y, mask = sample.draw(mask_dim)
    rho = torch.rand(sample.batch, dtype=torch.float64) if per_sample else torch.tensor(0.7).double()
    phi = sample.dense_phi(mask)
    gradient = transposed_times(phi, times(phi, x) - y.flatten(1))
    expected = x.flatten(1) - rho.reshape(-1, 1) * gradient
    assert relative_error(lk.cassi_pgd_step(x, y, mask, rho, sample.step).flatten(1), expected) < 1e-13


@pytest.mark.parametrize("per_sample", [False, True])
def test_hqs_step_solves_equation_9(backend, sample, mask_dim, per_sample, relative_error):
    w, y, mask = sample.draw(mask_dim)
    mu = 0.1 + torch.rand(sample.batch, dtype=torch.float64) if per_sample else torch.tensor(0.3).double()
    phi = sample.dense_phi(mask)
    each = mu.expand(sample.batch)
    system = phi.mT @ phi + torch.diag_embed(each[:, None].expand(-1, phi.shape[2]))
    right = transposed_times(phi, y) + each[:, None] * w.flatten(1)
    # One by one: torch 2.13 solves batches wrongly once a process has set its number of threads.
    expected = torch.stack([torch.linalg.solve(*one) for one in zip(system, right, strict=True)])
    assert relative_error(lk.cassi_hqs_step(w, y, mask, mu, sample.step).flatten(1), expected) < 1e-12


def test_hqs_step_leaves_unmeasured_pixels_alone_also_for_mu_zero(backend, sample, mask_dim):
    w, y, mask = sample.draw(mask_dim)
    step = lk.cassi_hqs_step(w, y, mask, 0.0, sample.step)
    assert torch.isfinite(step).all()
    # Row 0 of the mask is closed, and so is a third of the rest.
    closed = (mask == 0).expand_as(w)
    assert torch.equal(step[closed], w[closed])
    measured = lk.cassi_gram(mask, sample.bands, sample.step).expand_as(y) > 0
    torch.testing.assert_close(lk.cassi_forward(step, mask, sample.step)[measured], y[measured])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("width", [1, 7, 16, 33])
@pytest.mark.parametrize("bands", [3, 8, 28, 31])
def test_every_dtype_and_layout_agrees_with_the_reference_in_float64(
    mask_dim, dtype, layout, width, bands, relative_error
):
    sample = CassiSample(bands=bands, height=2, width=width)
    x, y, mask = sample.draw(mask_dim, dtype)
    x = x.to(memory_format=layout)
    if mask_dim == 4:
        mask = mask.to(memory_format=layout)
    exact = [t.double() for t in (x, y, mask)]
    results = {
        "forward": (lk.cassi_forward(x, mask), reference.cassi_forward(exact[0], exact[2])),
        "adjoint": (
            lk.cassi_adjoint(y, mask, bands, memory_format=layout),
            reference.cassi_adjoint(exact[1], exact[2], bands),
        ),
        "pgd": (lk.cassi_pgd_step(x, y, mask, 0.4), reference.cassi_pgd_step(*exact, 0.4)),
        "hqs": (lk.cassi_hqs_step(x, y, mask, 0.4), reference.cassi_hqs_step(*exact, 0.4)),
    }
    for name, (value, expected) in results.items():
        assert value.dtype == dtype, name
        assert relative_error(value, expected) < TOLERANCES[dtype], name
        if value.dim() == 4:
            assert value.is_contiguous(memory_format=layout), name


def strided_views(tensor: Tensor) -> dict[str, Tensor]:
    """The same values in other memory."""
    wide = torch.full([*tensor.shape[:-1], 2 * tensor.shape[-1] + 3], float("nan"), dtype=tensor.dtype)
    sliced, every_second = wide.clone(), wide
    sliced[..., 2 : 2 + tensor.shape[-1]] = tensor
    every_second[..., 1 : 2 * tensor.shape[-1] : 2] = tensor
    return {
        "sliced": sliced[..., 2 : 2 + tensor.shape[-1]],
        "every second column": every_second[..., 1 : 2 * tensor.shape[-1] : 2],
        "transposed": tensor.mT.contiguous().mT,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_strides_give_the_same_result_bit_for_bit(mask_dim, dtype):
    sample = CassiSample(bands=9, height=4, width=11)
    x, y, mask = sample.draw(mask_dim, dtype)
    expected = lk.cassi_hqs_step(x, y, mask, 0.2)
    views = zip(*(strided_views(t).values() for t in (x, y, mask)), strict=True)
    for other_x, other_y, other_mask in views:
        assert torch.equal(lk.cassi_hqs_step(other_x, other_y, other_mask, 0.2), expected)
        assert torch.equal(lk.cassi_forward(other_x, other_mask), lk.cassi_forward(x, mask))


def test_expanded_tensors_are_read_in_place(mask_dim):
    sample = CassiSample(batch=3)
    _, y, mask = sample.draw(mask_dim)
    x = torch.randn(1, 1, 1, sample.width, dtype=torch.float64).expand(sample.cube_shape)
    y = y[:1].expand_as(y)
    torch.testing.assert_close(
        lk.cassi_pgd_step(x, y, mask, 0.5), lk.cassi_pgd_step(x.contiguous(), y.contiguous(), mask, 0.5)
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_steps_in_place_are_the_steps(backend, mask_dim, layout, dtype):
    sample = CassiSample(bands=9, width=10)
    x, y, mask = sample.draw(mask_dim, dtype)
    x = x.to(memory_format=layout)
    for step, step_ in [
        (lk.cassi_pgd_step, lk.cassi_pgd_step_),
        (lk.cassi_hqs_step, lk.cassi_hqs_step_),
    ]:
        changed = x.clone()
        version = changed._version
        expected = step(x, y, mask, 0.6)
        assert step_(changed, y, mask, 0.6) is changed
        assert torch.equal(changed, expected) and changed._version > version


def test_an_in_place_step_reaches_a_view(mask_dim):
    sample = CassiSample()
    x, y, mask = sample.draw(mask_dim)
    stack = torch.stack([x, x])
    lk.cassi_hqs_step_(stack[1], y, mask, 0.5)
    assert torch.equal(stack[0], x) and torch.equal(stack[1], lk.cassi_hqs_step(x, y, mask, 0.5))


def test_without_a_batch(backend):
    sample = CassiSample(batch=1)
    x, y, mask = sample.draw(3)
    assert torch.equal(lk.cassi_forward(x[0], mask), lk.cassi_forward(x, mask)[0])
    assert torch.equal(lk.cassi_adjoint(y[0], mask, 5), lk.cassi_adjoint(y, mask, 5)[0])
    for step in (lk.cassi_pgd_step, lk.cassi_hqs_step):
        assert torch.equal(step(x[0], y[0], mask, 0.5), step(x, y, mask, 0.5)[0])
    changed = x[0].clone()
    assert torch.equal(lk.cassi_pgd_step_(changed, y[0], mask, 0.5), lk.cassi_pgd_step(x, y, mask, 0.5)[0])


def test_an_empty_batch_gives_an_empty_result(backend):
    sample = CassiSample(batch=0)
    x, y, mask = sample.draw(2)
    assert lk.cassi_forward(x, mask).shape == y.shape
    assert lk.cassi_adjoint(y, mask, 5).shape == x.shape
    assert lk.cassi_hqs_step(x, y, mask, 0.5).shape == x.shape


@pytest.mark.parametrize("step", [[0, 2, 4, 6, 8], (0, 2, 4, 6, 8), torch.arange(0, 10, 2)], ids=type)
def test_offsets_may_be_given_one_by_one(backend, step):
    x, y, mask = CassiSample().draw(2)
    assert torch.equal(lk.cassi_forward(x, mask, step), lk.cassi_forward(x, mask, 2))
    assert torch.equal(lk.cassi_hqs_step(x, y, mask, 0.5, step), lk.cassi_hqs_step(x, y, mask, 0.5, 2))


def test_256_bands():
    sample = CassiSample(batch=1, bands=256, height=1, width=3, step=1)
    x, y, mask = sample.draw(3)
    torch.testing.assert_close(lk.cassi_forward(x, mask, 1), reference.cassi_forward(x, mask, 1))
    torch.testing.assert_close(
        lk.cassi_hqs_step(x, y, mask, 0.5, 1), reference.cassi_hqs_step(x, y, mask, 0.5, 1)
    )


def test_one_thread_and_two_give_the_same_bits():
    x, y, mask = CassiSample(bands=28, height=64, width=64).draw(2, torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(lk.cassi_hqs_step(x, y, mask, 0.5))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_a_nan_stays_in_its_row():
    x, y, mask = CassiSample(bands=9, height=3, width=20).draw(2, torch.float32)
    x[0, 4, 1, 3] = float("nan")
    out = lk.cassi_hqs_step(x, y, mask, 0.5)
    assert out[0, :, 1].isnan().any()
    assert torch.isfinite(out[0, :, ::2]).all() and torch.isfinite(out[1]).all()
