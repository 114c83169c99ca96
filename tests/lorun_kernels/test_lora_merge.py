from __future__ import annotations

import pytest
import torch

from lorun_kernels import lora_linear, merge_lora, reference


def test_equals_the_definition_and_keeps_the_layout(conv_sample, relative_error):
    _, weight, up, down, _ = conv_sample.tensors()
    merged = merge_lora(weight, up, down, conv_sample.scaling, conv_sample.form)
    exact = reference.merge_lora(weight.double(), up.double(), down.double(), conv_sample.scaling)
    assert relative_error(merged, exact) <= 1e-6
    assert merged.stride() == weight.stride()


def test_is_exact_while_up_is_zero(conv_sample):
    _, weight, up, down, _ = conv_sample.tensors()
    assert torch.equal(merge_lora(weight, torch.zeros_like(up), down, form=conv_sample.form), weight)


def test_half_precision_is_rounded_once(make_conv_sample):
    sample = make_conv_sample(rank=4)
    _, weight, up, down, _ = sample.tensors(torch.bfloat16)
    exact = reference.merge_lora(weight.double(), up.double(), down.double())
    torch.testing.assert_close(merge_lora(weight, up, down).double(), exact, rtol=2**-8, atol=1e-6)


def test_linear_weight():
    weight, up, down = torch.randn(5, 4), torch.randn(5, 2), torch.randn(2, 4)
    image = torch.randn(3, 4)
    expected = lora_linear(image, weight, up, down, scaling=0.5)
    torch.testing.assert_close(image @ merge_lora(weight, up, down, 0.5).T, expected)


def test_gradcheck_and_opcheck(conv_sample):
    tensors = conv_sample.tensors(torch.float64, requires_grad=True)[1:4]
    options = (conv_sample.scaling, conv_sample.form)
    assert torch.autograd.gradcheck(lambda *args: merge_lora(*args, *options), tensors, fast_mode=True)
    torch.library.opcheck(torch.ops.lorun.merge_lora.default, (*tensors, *options))
    weight, up, down = (t.detach() for t in tensors)
    for mask in ([True, True], [False, True]):
        args = (weight, up, down, conv_sample.scaling, mask)
        torch.library.opcheck(torch.ops.lorun.merge_lora_backward.default, args)


def test_vmap_equals_a_loop(make_conv_sample):
    _, weight, up, down, _ = make_conv_sample().tensors()
    mapped = torch.vmap(merge_lora, in_dims=(None, 0, None))(weight, torch.stack([up, -up]), down)
    torch.testing.assert_close(mapped[1], merge_lora(weight, -up, down))


def test_second_order_gradients_are_refused_by_name(make_conv_sample):
    _, weight, up, down, _ = make_conv_sample().tensors(requires_grad=True)
    with pytest.raises(RuntimeError, match="merge_lora: second-order gradients are not supported"):
        torch.autograd.grad(merge_lora(weight, up, down).sum(), up, create_graph=True)


@pytest.mark.parametrize(
    "shapes, form, message",
    [
        ([(6, 4, 3, 3), (18, 6), (6, 13)], "reshape", r"lora_down must have shape \[6, 12\]"),
        ([(6, 4, 3, 3), (18, 6), (6, 12)], "factored", "lora_up must have shape"),
        ([(6, 4, 3, 3), (18, 6), (6, 12)], "low", "form must be"),
        ([(6, 4, 3), (18, 6), (6, 12)], "reshape", "weight must have 2 or 4 dimensions"),
    ],
)
def test_merge_lora_refuses_by_name(shapes, form, message):
    with pytest.raises(ValueError, match=message):
        merge_lora(*map(torch.randn, shapes), form=form)
