"""First- and second-order gradients of the CASSI ops, what they keep, and what they refuse."""

from __future__ import annotations

import pytest
import torch

import lorun_kernels as lk
from lorun_kernels import reference

STEPS = {"pgd": lk.cassi_pgd_step, "hqs": lk.cassi_hqs_step}
REFERENCES = {"pgd": reference.cassi_pgd_step, "hqs": reference.cassi_hqs_step}
OFFSETS = {"step 2": 2, "step 0": 0, "irregular": (3, 0, 7, 3)}
MASK_SHAPES = [(3, 5), (4, 3, 5), (2, 4, 3, 5)]


def draw(mask_shape, step, dtype=torch.float64, scale_shape=(2,)):
    """x, y, mask and rho or mu, all of them leaves that want a gradient; the mask has closed elements."""
    offsets = reference.band_offsets(step, 4)
    x = torch.randn(2, 4, 3, 5, dtype=dtype)
    y = torch.randn(2, 3, 5 + max(offsets), dtype=dtype)
    mask = torch.rand(mask_shape, dtype=dtype)
    mask[..., 0, :] = 0
    accumulator = dtype if dtype == torch.float64 else torch.float32
    scale = 0.2 + torch.rand(scale_shape, dtype=accumulator)
    return [t.requires_grad_() for t in (x, y, mask, scale)]


@pytest.fixture(params=OFFSETS.values(), ids=OFFSETS.keys())
def step(request):
    return request.param


@pytest.fixture(params=MASK_SHAPES, ids=["(H, W)", "(C, H, W)", "(B, C, H, W)"])
def mask_shape(request):
    return request.param


def test_forward_and_adjoint_gradcheck_twice(mask_shape, step):
    x, y, mask, _ = draw(mask_shape, step)
    assert torch.autograd.gradcheck(lambda x, m: lk.cassi_forward(x, m, step), (x, mask))
    assert torch.autograd.gradgradcheck(lambda x, m: lk.cassi_forward(x, m, step), (x, mask))
    assert torch.autograd.gradcheck(lambda y, m: lk.cassi_adjoint(y, m, 4, step), (y, mask))
    assert torch.autograd.gradgradcheck(lambda y, m: lk.cassi_adjoint(y, m, 4, step), (y, mask))


def test_gram_gradcheck(mask_shape, step):
    mask = draw(mask_shape, step)[2]
    assert torch.autograd.gradcheck(lambda m: lk.cassi_gram(m, 4, step), (mask,))


@pytest.mark.parametrize("scale_shape", [(), (1,), (1, 1, 1, 1), (2,), (2, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_steps_gradcheck_in_every_tensor(name, mask_shape, step, scale_shape):
    x, y, mask, scale = draw(mask_shape, step, scale_shape=scale_shape)
    # If the gram is 0, mu does nothing, and the HQS step has a kink at which a closed mask opens.
    open_mask = (mask.detach() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *args: STEPS[name](*args, step), (x, y, open_mask, scale))


@pytest.mark.parametrize("name", STEPS)
def test_steps_gradgradcheck_in_cube_measurement_and_incoming_gradient(name, mask_shape, step):
    x, y, mask, scale = draw(mask_shape, step)
    fixed = mask.detach(), scale.detach()
    assert torch.autograd.gradgradcheck(lambda x, y: STEPS[name](x, y, *fixed, step), (x, y))
    assert torch.autograd.gradgradcheck(lambda x: STEPS[name](x, y.detach(), *fixed, step), (x,))
    assert torch.autograd.gradgradcheck(lambda y: STEPS[name](x.detach(), y, *fixed, step), (y,))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_gradients_agree_with_the_reference_in_float64(name, layout, dtype, tolerance, relative_error):
    x, y, scale = torch.randn(2, 12, 9, 17), torch.randn(2, 9, 39), torch.rand(2)
    for mask_shape in [(9, 17), (12, 9, 17), (2, 12, 9, 17)]:
        mask = 0.1 + torch.rand(mask_shape)
        values = [x.to(dtype).to(memory_format=layout), y.to(dtype), mask.to(dtype), scale]
        leaves = [v.clone().requires_grad_() for v in values]
        exact = [v.double().requires_grad_() for v in values]
        grad = torch.randn_like(x).to(dtype)
        got = torch.autograd.grad(STEPS[name](*leaves), leaves, grad)
        expected = torch.autograd.grad(REFERENCES[name](*exact), exact, grad.double())
        for value, leaf, true in zip(got, leaves, expected, strict=True):
            assert value.dtype == leaf.dtype
            assert relative_error(value, true) < tolerance


@pytest.mark.parametrize("name", STEPS)
def test_backward_keeps_what_its_gradients_need_and_no_more(name):
    x, y, mask, scale = draw((3, 5), 2, torch.float32)
    cube, measurement = x.numel() * 4, y.numel() * 4

    def kept_bytes(mask_wants, scale_wants):
        kept = {}

        def pack(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            STEPS[name](x * 1, y, mask if mask_wants else mask.detach(), scale if scale_wants else 0.5)
        return sum(kept.values())

    small = mask.numel() * 4 + 8
    assert kept_bytes(False, False) <= small
    assert kept_bytes(False, True) <= small + measurement
    assert kept_bytes(True, True) <= small + measurement + cube


@pytest.mark.parametrize("name, scale_name", [("pgd", "rho"), ("hqs", "mu")])
def test_second_order_in_mask_and_scale_is_refused(name, scale_name):
    x, y, mask, scale = draw((3, 5), 2)
    message = f"second-order gradients in mask and {scale_name} are not supported; detach them"

    def first(wanted):
        out = STEPS[name](x, y, mask, scale).square().sum()
        return torch.autograd.grad(out, wanted, create_graph=True)[0]

    for of, by in [(x, mask), (x, scale), (mask, x), (scale, x), (scale, scale), (mask, y)]:
        with pytest.raises(RuntimeError, match=message):
            torch.autograd.grad(first(of).sum(), by)
    # The same graph gives the gradients that are supported.
    assert torch.isfinite(torch.autograd.grad(first(x).square().sum(), [x, y])[0]).all()


@pytest.mark.parametrize("step_", [lk.cassi_pgd_step_, lk.cassi_hqs_step_])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_in_place_steps_refuse_to_be_recorded(step_, backend):
    x, y, mask, scale = draw((3, 5), 2)
    with lk.use_backend(backend):
        with pytest.raises(RuntimeError, match="is for inference; call it under torch.no_grad"):
            step_(x * 1, y, mask, scale)
        with torch.no_grad():
            step_(x, y, mask, scale)


def test_autograd_sees_a_cube_that_inference_mode_changed():
    x, y, mask, scale = (t.detach() for t in draw((3, 5), 2))
    factor = torch.rand_like(x).requires_grad_()
    loss = (x * factor).sum()
    with torch.inference_mode():
        lk.cassi_pgd_step_(x, y, mask, scale)
        made_there = x.clone()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    before = made_there.clone()
    with pytest.raises(RuntimeError, match="was made in torch.inference_mode"), torch.no_grad():
        lk.cassi_pgd_step_(made_there, y, mask, scale)
    assert torch.equal(made_there, before)


def test_an_in_place_step_leaves_a_lazy_copy_alone():
    x, y, mask, scale = (t.detach() for t in draw((3, 5), 2))
    before, copy = x.clone(), torch._lazy_clone(x)
    lk.cassi_hqs_step_(copy, y, mask, scale)
    assert torch.equal(x, before) and not torch.equal(copy, before)


def test_gradients_of_an_empty_batch_are_empty_or_zero():
    x, y = torch.rand(0, 4, 3, 5, requires_grad=True), torch.rand(0, 3, 11, requires_grad=True)
    for mask_shape in [(3, 5), (4, 3, 5)]:
        mask, scale = torch.rand(mask_shape, requires_grad=True), torch.rand((), requires_grad=True)
        for step in STEPS.values():
            grads = torch.autograd.grad(step(x, y, mask, scale).sum(), [x, y, mask, scale])
            assert [g.shape for g in grads] == [x.shape, y.shape, mask.shape, scale.shape]
            assert grads[2].eq(0).all() and grads[3] == 0
        assert torch.autograd.grad(lk.cassi_forward(x, mask).sum(), mask)[0].eq(0).all()


def test_changing_the_mask_in_place_before_backward_is_caught():
    x, y, mask, scale = draw((3, 5), 2)
    mask = mask.detach()
    out = lk.cassi_hqs_step(x, y, mask, scale)
    mask.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("forward, backward", [("cpu", "reference"), ("reference", "cpu")])
def test_backward_runs_on_the_backend_of_forward(forward, backward):
    called = set()

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "lorun":
                called.add((func.overloadpacket.__name__, args[-1]))
            return func(*args, **(kwargs or {}))

    x, y, mask, scale = draw((3, 5), 2)
    with lk.use_backend(forward):
        outputs = [
            lk.cassi_hqs_step(x, y, mask, scale),
            lk.cassi_forward(x, mask),
            lk.cassi_adjoint(y, mask, 4),
        ]
    with Spy(), lk.use_backend(backward):
        torch.autograd.backward([out.sum() for out in outputs])
    ops = ("cassi_step_backward", "cassi_forward", "cassi_adjoint", "cassi_mask_grad")
    assert called == ({(op, "cpu") for op in ops} if forward == "cpu" else set())
