from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lorun_kernels import lora_linear, reference

# (leading shape of the input, in, out, rank, scaling, bias)
SAMPLES = {
    "matrix": ((5,), 6, 9, 2, 1.0, True),
    "sequence": ((2, 3), 9, 4, 4, -0.5, True),
    "vector": ((), 6, 5, 1, 1.0, False),
    "empty": ((0, 3), 6, 5, 1, 1.0, True),
}


@pytest.fixture(params=SAMPLES.values(), ids=SAMPLES.keys())
def sample(request):
    leading, in_features, out_features, rank, scaling, bias = request.param
    generator = torch.Generator().manual_seed(0)
    shapes = [(*leading, in_features), (out_features, in_features), (out_features, rank), (rank, in_features)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [*tensors, torch.randn(out_features, dtype=torch.float64) if bias else None], scaling


def cast(tensors, dtype, requires_grad=False):
    return [None if t is None else t.to(dtype, copy=True).requires_grad_(requires_grad) for t in tensors]


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
def test_equals_the_float64_definition_forward_and_backward(sample, dtype, tolerance, relative_error):
    tensors, scaling = sample
    results = []
    for function, kind in ((lora_linear, dtype), (reference.lora_linear, torch.float64)):
        operands = cast([None if t is None else t.to(dtype) for t in tensors], kind, requires_grad=True)
        output = function(*operands, scaling)
        wanted = [t for t in operands if t is not None]
        grad = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view(output.shape)
        results.append([output, *torch.autograd.grad(output, wanted, grad)])
    for value, definition in zip(*results, strict=True):
        assert value.dtype == dtype
        assert relative_error(value, definition) <= tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_linear_bit_for_bit_while_up_is_zero(sample, dtype):
    image, weight, up, down, bias = cast(sample[0], dtype)
    assert torch.equal(
        lora_linear(image, weight, torch.zeros_like(up), down, bias), F.linear(image, weight, bias)
    )


def test_gradcheck(sample):
    tensors, scaling = sample
    operands = cast(tensors, torch.float64, requires_grad=True)
    if operands[0].numel() == 0:
        # There is nothing to difference: the gradients of an empty sum are zero.
        grads = torch.autograd.grad(lora_linear(*operands, scaling).sum(), operands)
        assert not any(grad.any() for grad in grads)
        return
    assert torch.autograd.gradcheck(lambda *args: lora_linear(*args, scaling), operands)


def test_opcheck(sample):
    tensors, scaling = sample
    for requires_grad in (False, True):
        args = (*cast(tensors, torch.float32, requires_grad), scaling)
        torch.library.opcheck(torch.ops.lorun.lora_linear.default, args)
    image, weight, up, down, _ = cast(tensors, torch.float32)
    grad = torch.ones_like(F.linear(image, weight))
    for mask in ([True] * 5, [True, False, True, True, False]):
        args = (grad, image, weight, up, down, scaling, mask)
        torch.library.opcheck(torch.ops.lorun.lora_linear_backward.default, args)


def test_autocast_casts_as_linear_and_keeps_the_parameters_precision():
    image, weight, up, down = (torch.randn(s, requires_grad=True) for s in [(3, 6), (5, 6), (5, 2), (2, 6)])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lora_linear(image, weight, torch.zeros_like(up), down), F.linear(image, weight))
        output = lora_linear(image, weight, up, down)
        grads = torch.autograd.grad(output.float().sum(), [image, weight, up, down])
    assert output.dtype == torch.bfloat16
    assert [grad.dtype for grad in grads] == [torch.float32] * 4


@pytest.mark.parametrize("batched", [(0, None, None, None), (None, 0, 1, None)])
def test_vmap_equals_a_loop(batched):
    tensors = [torch.randn(s) for s in [(3, 6), (5, 6), (5, 2), (2, 6)]]
    stacked = [
        t if dim is None else torch.stack([t, -t], dim) for t, dim in zip(tensors, batched, strict=True)
    ]
    mapped = torch.vmap(lora_linear, in_dims=batched)(*stacked)
    for index in range(2):
        one = [t if dim is None else t.select(dim, index) for t, dim in zip(stacked, batched, strict=True)]
        torch.testing.assert_close(mapped[index], lora_linear(*one))


def test_second_order_gradients_are_refused_by_name():
    tensors = [torch.randn(s, requires_grad=True) for s in [(3, 6), (5, 6), (5, 2), (2, 6)]]
    with pytest.raises(RuntimeError, match="lora_linear: second-order gradients are not supported"):
        torch.autograd.grad(lora_linear(*tensors).sum(), tensors[0], create_graph=True)


@pytest.mark.parametrize(
    "shapes, message",
    [
        ([(3, 7), (5, 6), (5, 2), (2, 6)], "input must have 6 features"),
        ([(3, 6), (5, 6), (5, 0), (0, 6)], "between 1 and 5 .* got 0"),
        ([(3, 6), (5, 6), (5, 6), (6, 6)], "between 1 and 5 .* got 6"),
        ([(3, 6), (5, 6), (4, 2), (2, 6)], r"lora_up must have shape \[5, 2\]"),
        ([(3, 6), (5, 6), (5, 2), (3, 6)], r"lora_down must have shape \[2, 6\]"),
        ([(3, 6), (5, 6, 1), (5, 2), (2, 6)], "weight must have 2 dimensions"),
    ],
)
def test_lora_linear_refuses_by_name(shapes, message):
    with pytest.raises(ValueError, match=message):
        lora_linear(*map(torch.randn, shapes))
