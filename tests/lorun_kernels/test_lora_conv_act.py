"""lora_conv2d_act: activation, residual and second input, on CPU and through every transform."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lorun_kernels import ConvAct, FusedLoRAConv2d, lora_conv2d_act, reference, use_backend

OP = torch.ops.lorun.lora_conv2d.default
ACTIVATIONS = [None, "relu", "gelu", "leaky_relu"]
PLAIN = {None: lambda z: z, "relu": F.relu, "gelu": F.gelu, "leaky_relu": lambda z: F.leaky_relu(z, 0.1)}
CHANNELS = {"one input": 0, "two inputs": 3}


class Case:
    """A sample whose last channels come as a second input, and a residual for its result."""

    def __init__(self, sample, second: int, dtype=torch.float64, requires_grad=False):
        image, self.weight, self.up, self.down, self.bias = sample.tensors(dtype, requires_grad)
        first = sample.in_channels - second
        parts = [image.detach()[..., :first, :, :], image.detach()[..., first:, :, :]]
        self.input, self.input2 = (
            part.clone(memory_format=torch.preserve_format).requires_grad_(requires_grad) for part in parts
        )
        self.input2 = self.input2 if second else None
        self.options = sample.options
        shape = reference.lora_conv2d(image, *self.parameters, *self.options).shape
        generator = torch.Generator().manual_seed(1)
        self.residual = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        self.residual.requires_grad_(requires_grad)

    @property
    def parameters(self):
        return [self.weight, self.up, self.down, self.bias]

    @property
    def tensors(self):
        tensors = [self.input, *self.parameters, self.residual, self.input2]
        return [tensor for tensor in tensors if tensor is not None]

    def __call__(self, activation, function=lora_conv2d_act):
        return function(
            self.input,
            *self.parameters,
            *self.options,
            activation=activation,
            negative_slope=0.1,
            residual=self.residual,
            input2=self.input2,
        )

    def op_args(self, activation):
        return (self.input, *self.parameters, *self.options, self.input2, self.residual, activation, 0.1)


@pytest.mark.parametrize("second", CHANNELS.values(), ids=CHANNELS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_its_definition_in_separate_steps(conv_sample, activation, second):
    case = Case(conv_sample, min(second, conv_sample.in_channels - 1), requires_grad=True)
    both = case.input if case.input2 is None else torch.cat([case.input, case.input2], -3)
    merged = reference.merge_lora(case.weight, case.up, case.down, case.options[4])
    plain = PLAIN[activation](F.conv2d(both, merged, case.bias, *case.options[:4])) + case.residual
    fused = case(activation)
    grad = torch.linspace(-1, 2, plain.numel(), dtype=plain.dtype).view(plain.shape)
    expected = [plain, *torch.autograd.grad(plain, case.tensors, grad)]
    for value, definition in zip(
        [fused, *torch.autograd.grad(fused, case.tensors, grad)], expected, strict=True
    ):
        torch.testing.assert_close(value, definition, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ["gelu", "leaky_relu"])
def test_gradcheck(make_conv_sample, activation):
    case = Case(make_conv_sample(layout=torch.channels_last), 3, requires_grad=True)

    def function(input, weight, up, down, bias, residual, input2):
        return OP(input, weight, up, down, bias, *case.options, input2, residual, activation, 0.1)

    assert torch.autograd.gradcheck(function, case.tensors, fast_mode=True)


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize("second", CHANNELS.values(), ids=CHANNELS)
def test_opcheck(make_conv_sample, activation, second):
    case = Case(make_conv_sample(layout=torch.channels_last), second, torch.float32, requires_grad=True)
    torch.library.opcheck(OP, case.op_args(activation))


def test_opcheck_of_the_ops_that_autograd_calls(make_conv_sample):
    case = Case(make_conv_sample(layout=torch.channels_last), 3, torch.float32)
    torch.library.opcheck(torch.ops.lorun.lora_conv2d_preactivation.default, case.op_args("gelu"))
    args = (torch.ones_like(case.residual), case.input, *case.parameters[:3], *case.options)
    for mask in ([True] * 6, [False, False, True, True, False, True]):
        torch.library.opcheck(
            torch.ops.lorun.lora_conv2d_backward.default, (*args, mask, case.input2, "aten")
        )


def test_second_order_is_refused_by_name(make_conv_sample):
    case = Case(make_conv_sample(), 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="lora_conv2d: second-order gradients are not supported"):
        torch.autograd.grad(case("gelu").sum(), case.up, create_graph=True)


def test_autocast_rounds_every_image_and_no_parameter(make_conv_sample):
    case = Case(make_conv_sample(layout=torch.channels_last), 3, torch.float32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = case("gelu")
        grads = torch.autograd.grad(output.float().sum(), case.tensors)
    assert output.dtype == torch.bfloat16
    assert {grad.dtype for grad in grads} == {torch.float32}
    exact = case("gelu", reference.lora_conv2d_act)
    torch.testing.assert_close(output.float(), exact, rtol=0.05, atol=0.3)


def test_keeps_the_two_inputs_and_the_preactivation_but_no_concatenation(make_conv_sample):
    case = Case(make_conv_sample(layout=torch.channels_last), 3, torch.float32, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output = case("gelu")
    given = {t.untyped_storage().data_ptr() for t in case.tensors}
    fresh = [t for t in kept if t is not None and t.untyped_storage().data_ptr() not in given]
    assert [tuple(t.shape) for t in fresh] == [tuple(output.shape)]


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, None, 0)])
def test_vmap_equals_a_loop(make_conv_sample, in_dims):
    case = Case(make_conv_sample(), 3, torch.float32)
    given = [case.input, case.input2, case.residual]
    stacked = [t if dim is None else torch.stack([t, -t]) for t, dim in zip(given, in_dims, strict=True)]

    def function(input, input2, residual):
        return OP(input, *case.parameters, *case.options, input2, residual, "relu")

    mapped = torch.vmap(function, in_dims)(*stacked)
    for index in range(2):
        one = [t if dim is None else t[index] for t, dim in zip(stacked, in_dims, strict=True)]
        torch.testing.assert_close(mapped[index], function(*one))


REFUSED = {
    "activation": ({"activation": "tanh"}, ValueError, "activation must be one of None, 'relu'"),
    "input2's size": ({"input2": torch.ones(2, 3, 7, 6)}, ValueError, "input2 must have the shape of input"),
    "input2's type": ({"input2": 1.0}, TypeError, "input2 must be a torch.Tensor or None"),
    "input2's dtype": ({"input2": torch.ones(2, 3, 7, 5).half()}, TypeError, "input2 must have the dtype"),
    "channels": ({"input2": torch.ones(2, 2, 7, 5)}, ValueError, "input must have 4 channels"),
    "residual": ({"residual": torch.ones(2, 6, 7, 1)}, ValueError, "residual must have the output's shape"),
    "residual's rank": ({"residual": torch.ones(6, 7, 5)}, ValueError, "residual must have 4 dimensions"),
    "residual's dtype": ({"residual": torch.ones(2, 6, 7, 5).double()}, TypeError, "residual must have the"),
}


@pytest.mark.parametrize("replaced, error, message", REFUSED.values(), ids=REFUSED)
def test_refuses_by_name(make_conv_sample, replaced, error, message):
    case = Case(make_conv_sample(), 3, torch.float32)
    given = {"activation": "relu", "input2": case.input2, "residual": case.residual} | replaced
    with pytest.raises(error, match=message):
        lora_conv2d_act(case.input, *case.parameters, *case.options, **given)


def layer_case():
    layer = FusedLoRAConv2d(5, 4, 3, padding=1, activation="leaky_relu", negative_slope=0.1)
    torch.nn.init.normal_(layer.lora_up)
    return layer, torch.randn(2, 2, 6, 5), torch.randn(2, 3, 6, 5), torch.randn(2, 4, 6, 5)


@pytest.mark.parametrize("backend", ["cpu", "aten", "reference"])
def test_the_layer_is_the_function(backend):
    layer, input, input2, residual = layer_case()
    expected = F.conv2d(torch.cat([input, input2], 1), layer.merged_weight(), layer.bias, padding=1)
    expected = F.leaky_relu(expected, 0.1) + residual
    with use_backend(backend):
        torch.testing.assert_close(layer(input, input2, residual), expected)


@pytest.mark.parametrize("padding, mode", [("same", "zeros"), (1, "reflect"), ((1, 0), "circular")])
def test_the_layer_pads_both_inputs(padding, mode):
    layer = FusedLoRAConv2d(5, 4, 3, padding=padding, padding_mode=mode, activation="gelu")
    plain = torch.nn.Conv2d(5, 4, 3, padding=padding, padding_mode=mode)
    plain.load_state_dict({"weight": layer.base_weight, "bias": layer.bias})
    input, input2 = torch.randn(2, 2, 6, 5), torch.randn(2, 3, 6, 5)
    torch.testing.assert_close(layer(input, input2), F.gelu(plain(torch.cat([input, input2], 1))))


def test_a_layer_without_a_low_rank_adapter_has_the_same_options():
    layer = FusedLoRAConv2d(4, 4, 3, padding=1, groups=4, activation="relu")
    assert layer.rank is None
    input, input2, residual = torch.randn(1, 1, 5, 5), torch.randn(1, 3, 5, 5), torch.randn(1, 4, 5, 5)
    plain = F.conv2d(torch.cat([input, input2], 1), layer.base_weight, layer.bias, padding=1, groups=4)
    torch.testing.assert_close(layer(input, input2, residual), plain.relu() + residual)
    with pytest.raises(ValueError, match="residual must have the output's shape"):
        layer(input, input2, residual[..., :1])
    with pytest.raises(TypeError, match="residual must be a torch.Tensor"):
        layer(input, input2, 2.0)


def test_from_conv_takes_the_options_and_shows_them():
    layer = FusedLoRAConv2d.from_conv(torch.nn.Conv2d(2, 3, 1), activation="gelu")
    assert "activation='gelu'" in repr(layer)
    named = ConvAct(2, 3, 1, activation="relu")
    assert FusedLoRAConv2d.from_conv(named).activation == "relu"
    # A note of the user's, which nn.Conv2d does not read.
    noted = torch.nn.Conv2d(2, 3, 1)
    noted.activation = "relu"
    assert FusedLoRAConv2d.from_conv(noted).activation is None
    with pytest.raises(ValueError, match="activation must be one of"):
        FusedLoRAConv2d(2, 3, 1, activation="swish")
    with pytest.raises(TypeError, match="negative_slope must be a number"):
        FusedLoRAConv2d(2, 3, 1, activation="leaky_relu", negative_slope="a")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_inductor_trains_a_layer_of_either_layout(layout):
    layer, *images = layer_case()
    layer.to(memory_format=layout)
    images = [image.to(memory_format=layout).requires_grad_() for image in images]
    results = []
    for function in (layer, torch.compile(layer, fullgraph=True)):
        output = function(*images)
        results.append([output, *torch.autograd.grad(output.square().sum(), [*images, *layer.parameters()])])
    for value, eager in zip(*results, strict=True):
        torch.testing.assert_close(value, eager)


def test_compiles_to_one_graph_and_exports():
    layer, *images = layer_case()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for function in (layer, compiled):
        output = function(*images)
        grads = torch.autograd.grad(output.square().sum(), list(layer.parameters()))
        if function is layer:
            expected = [output, *grads]
    for value, eager in zip([output, *grads], expected, strict=True):
        torch.testing.assert_close(value, eager)
    program = torch.export.export(layer, tuple(images))
    torch.testing.assert_close(program.module()(*images), expected[0])
