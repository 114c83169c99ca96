from __future__ import annotations

import loralib
import pytest
import torch
import torch.nn.functional as F

from lorun_kernels import lora_conv2d, reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def run(function, tensors, options):
    """The output and the gradients of every tensor that wants one, for a fixed output gradient."""
    output = function(*tensors, *options)
    wanted = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    grad = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view(output.shape)
    return [output.detach(), *torch.autograd.grad(output, wanted, grad)]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_the_float64_definition_forward_and_backward(conv_sample, dtype, relative_error):
    tensors = conv_sample.tensors(dtype, requires_grad=True)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    values = run(lora_conv2d, tensors, conv_sample.options)
    expected = run(reference.lora_conv2d, exact, conv_sample.options)
    for value, definition in zip(values, expected, strict=True):
        assert value.dtype == dtype
        assert value.shape == definition.shape
        assert relative_error(value, definition) <= TOLERANCE[dtype]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "in_channels, out_channels, kernel, groups, rank",
    [
        (2, 28, 3, 1, 1),
        (28, 28, 3, 1, 3),
        (28, 56, 3, 1, 3),
        (84, 28, 3, 1, 3),
        (28, 1, 1, 1, 1),
        (12, 8, 5, 4, 2),
        (8, 8, 3, 8, 1),
    ],
)
def test_equals_loralib_to_1e_6(
    in_channels, out_channels, kernel, groups, rank, stride, layout, relative_error
):
    torch.manual_seed(0)
    peer = loralib.Conv2d(
        in_channels,
        out_channels,
        kernel,
        r=rank,
        lora_alpha=2 * rank,
        stride=stride,
        padding=kernel // 2,
        groups=groups,
    )
    torch.nn.init.normal_(peer.lora_B)
    peer = peer.to(memory_format=layout)
    image = torch.randn(2, in_channels, 17, 15).to(memory_format=layout).requires_grad_()
    theirs = peer(image)
    ours = lora_conv2d(
        image,
        peer.conv.weight,
        peer.lora_B,
        peer.lora_A,
        peer.conv.bias,
        stride,
        kernel // 2,
        groups=groups,
        scaling=2.0,
    )
    wanted = [image, peer.lora_B, peer.lora_A, peer.conv.bias]
    grad = torch.randn_like(theirs)
    expected = [theirs, *torch.autograd.grad(theirs, wanted, grad)]
    for value, peer_value in zip([ours, *torch.autograd.grad(ours, wanted, grad)], expected, strict=True):
        assert relative_error(value, peer_value) <= 1e-6


def assert_same_bits(image, weight, up, down, bias, options):
    plain = F.conv2d(image, weight, bias, *options[:4])
    fused = lora_conv2d(image, weight, torch.zeros_like(up), down, bias, *options)
    assert torch.equal(fused, plain)
    assert fused.stride() == plain.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("weight_layout", LAYOUTS)
@pytest.mark.parametrize("image_layout", LAYOUTS)
def test_equals_conv2d_bit_for_bit_while_up_is_zero(conv_sample, image_layout, weight_layout, dtype):
    image, weight, *rest = conv_sample.tensors(dtype)
    if image.dim() == 4:
        image = image.to(memory_format=image_layout)
    assert_same_bits(image, weight.to(memory_format=weight_layout), *rest, conv_sample.options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "in_channels, out_channels, kernel, size",
    [(2, 28, 3, 96), (28, 28, 3, 96), (56, 112, 3, 64), (168, 56, 3, 48), (28, 1, 1, 96)],
)
def test_equals_conv2d_bit_for_bit_at_the_unet_layers(
    make_conv_sample, in_channels, out_channels, kernel, size, layout
):
    sample = make_conv_sample(
        in_channels,
        out_channels,
        (kernel, kernel),
        (1, size, size),
        rank=1,
        padding=(kernel // 2,) * 2,
        layout=layout,
    )
    assert_same_bits(*sample.tensors(), sample.options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_returns_the_layout_of_conv2d_and_of_its_gradients(make_conv_sample, layout):
    sample = make_conv_sample(layout=layout)
    tensors = sample.tensors(requires_grad=True)
    ours = run(lora_conv2d, tensors, sample.options)
    theirs = run(reference.lora_conv2d, tensors, sample.options)
    assert [value.stride() for value in ours] == [value.stride() for value in theirs]


@pytest.mark.parametrize("kernel", [(3, 3), (2, 4)])
@pytest.mark.parametrize("padding", ["same", "valid", 1, (0, 2)])
def test_padding_is_read_as_conv2d_reads_it(make_conv_sample, padding, kernel):
    tensors = make_conv_sample(kernel=kernel).tensors()
    expected = reference.lora_conv2d(*tensors, 1, padding, 1)
    torch.testing.assert_close(lora_conv2d(*tensors, 1, padding, 1), expected)


def test_gradcheck(conv_sample):
    tensors = conv_sample.tensors(torch.float64, requires_grad=True)
    if tensors[0].numel() == 0:
        # There is nothing to difference: the gradients of an empty sum are zero.
        assert not any(grad.any() for grad in run(lora_conv2d, tensors, conv_sample.options))
        return
    assert torch.autograd.gradcheck(
        lambda *args: lora_conv2d(*args, *conv_sample.options), tensors, fast_mode=True
    )


def test_opcheck_forward(conv_sample):
    args = (*conv_sample.tensors(requires_grad=True), *conv_sample.options)
    torch.library.opcheck(torch.ops.lorun.lora_conv2d.default, args)


@pytest.mark.parametrize("mask", [[True] * 5, [False, False, True, True, False]], ids=["all", "adapter"])
def test_opcheck_backward(conv_sample, mask):
    image, weight, up, down, bias = conv_sample.tensors()
    grad = torch.ones_like(lora_conv2d(image, weight, up, down, bias, *conv_sample.options))
    mask = [*mask[:5], False]
    args = (grad, image, weight, up, down, *conv_sample.options, mask)
    torch.library.opcheck(torch.ops.lorun.lora_conv2d_backward.default, args)


@pytest.mark.parametrize("wanted", range(5))
def test_computes_no_gradient_that_nobody_asked_for(make_conv_sample, wanted):
    sample = make_conv_sample()
    image, weight, up, down, bias = sample.tensors()
    grad = torch.ones_like(lora_conv2d(image, weight, up, down, bias, *sample.options))
    mask = [index == wanted for index in range(6)]
    results = torch.ops.lorun.lora_conv2d_backward(grad, image, weight, up, down, *sample.options, mask)
    assert [result is not None for result in results] == mask


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_as_conv2d_and_keeps_the_parameters_precision(make_conv_sample, dtype):
    sample = make_conv_sample(layout=torch.channels_last)
    image, weight, up, down, bias = sample.tensors(requires_grad=True)
    with torch.autocast("cpu", dtype):
        fused = lora_conv2d(image, weight, torch.zeros_like(up), down, bias, *sample.options)
        assert torch.equal(fused, F.conv2d(image, weight, bias, *sample.geometry))
        output = lora_conv2d(image, weight, up, down, bias, *sample.options)
        grads = torch.autograd.grad(output.float().square().sum(), [image, weight, up, down, bias])
    assert output.dtype == dtype
    assert [grad.dtype for grad in grads] == [torch.float32] * 5
    expected = reference.lora_conv2d(image, weight, up, down, bias, *sample.options)
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.3)


def test_forward_needs_no_grad_mode(make_conv_sample):
    sample = make_conv_sample()
    tensors = sample.tensors(requires_grad=True)
    expected = lora_conv2d(*tensors, *sample.options).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(lora_conv2d(*tensors, *sample.options), expected)


@pytest.mark.parametrize(
    "batched", [(0, None, None, None, None), (1, None, 0, 0, None), (None, 0, None, 1, 0)]
)
def test_vmap_equals_a_loop(make_conv_sample, batched):
    sample = make_conv_sample()
    tensors = sample.tensors()
    stacked = [
        t if dim is None else torch.stack([t, 2 * t, -t], dim)
        for t, dim in zip(tensors, batched, strict=True)
    ]
    mapped = torch.vmap(lambda *args: lora_conv2d(*args, *sample.options), in_dims=batched)(*stacked)
    for index in range(3):
        one = [t if dim is None else t.select(dim, index) for t, dim in zip(stacked, batched, strict=True)]
        torch.testing.assert_close(mapped[index], lora_conv2d(*one, *sample.options))


def test_what_autograd_cannot_do_is_refused_by_name(make_conv_sample):
    sample = make_conv_sample()
    tensors = sample.tensors(requires_grad=True)
    output = lora_conv2d(*tensors, *sample.options).sum()
    with pytest.raises(RuntimeError, match="lora_conv2d: second-order gradients are not supported"):
        torch.autograd.grad(output, tensors[2], create_graph=True)
    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.grad(lambda up: lora_conv2d(*tensors[:2], up, *tensors[3:], *sample.options).sum())(
            tensors[2]
        )
