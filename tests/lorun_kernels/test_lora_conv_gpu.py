"""The low-rank layers on a GPU, on every backend that runs there, against the reference in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lorun_kernels as lk
from lorun_kernels import reference

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
BACKENDS = ["cuda", "triton", "aten"]
# Two sums of some hundred products each, rounded to the dtype once; float32 exactly, not as TF32.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
ALL_DTYPES = list(TOLERANCES)

# Keyword arguments of ConvSample: the layers of the U-Net, and shapes that no tile divides.
UNET = {
    f"{i}->{o} {k}x{k}": {
        "in_channels": i, "out_channels": o, "kernel": (k, k), "padding": (k // 2,) * 2, "rank": r,
        "size": (2, s, s),
    }
    for i, o, k, r, s in [
        (2, 28, 3, 1, 64), (28, 28, 3, 3, 64), (28, 56, 3, 3, 32), (56, 56, 3, 6, 32), (56, 112, 3, 6, 16),
        (112, 112, 3, 12, 16), (168, 56, 3, 6, 32), (84, 28, 3, 3, 64), (28, 1, 1, 1, 64),
    ]
}  # fmt: skip
ODD = {
    "29->31": {"in_channels": 29, "out_channels": 31, "size": (3, 17, 23)},
    "one channel": {"in_channels": 1, "out_channels": 1, "rank": 1, "size": (1, 5, 3)},
    "5x5": {"in_channels": 12, "out_channels": 20, "kernel": (5, 5), "padding": (2, 2), "size": (1, 19, 33)},
    "strided": {"in_channels": 28, "out_channels": 31, "stride": (2, 2), "size": (2, 21, 18)},
    "dilated": {"in_channels": 28, "out_channels": 28, "dilation": (2, 2), "padding": (2, 2)},
    "no padding": {"in_channels": 28, "out_channels": 9, "padding": (0, 0), "size": (2, 21, 18)},
    "factored": {"in_channels": 28, "out_channels": 28, "form": "factored", "rank": 3, "size": (2, 33, 31)},
    "depthwise": {"in_channels": 56, "out_channels": 56, "groups": 56, "rank": 1, "size": (2, 33, 31)},
    "depthwise factored": {
        "in_channels": 29, "out_channels": 29, "groups": 29, "rank": 2, "form": "factored", "size": (2, 9, 9),
    },
    "512->512": {"in_channels": 512, "out_channels": 512, "rank": 2, "size": (1, 9, 9)},
    "grouped": {"in_channels": 8, "out_channels": 8, "groups": 2, "size": (2, 9, 11)},
}  # fmt: skip
CASES = {
    f"{name}, {dtype}": (options, dtype)
    for table, dtypes in ((UNET, [torch.bfloat16]), (ODD, ALL_DTYPES))
    for name, options in table.items()
    for dtype in dtypes
} | {"28->28 3x3, float32": (UNET["28->28 3x3"], torch.float32)}


@pytest.fixture(params=BACKENDS)
def backend(request):
    with lk.use_backend(request.param):
        yield request.param


NAMES = ["output", "input", "up", "down", "bias", "residual", "input2"]


class Layer:
    """A layer's operands on the GPU, and in float64: a frozen base, a residual, and a second input."""

    def __init__(self, sample, dtype: torch.dtype):
        image, weight, up, down, bias = sample.tensors()
        first = sample.in_channels - sample.in_channels // 3
        residual = torch.randn(reference.lora_conv2d(image, weight, up, down, bias, *sample.options).shape)
        # Values as large as those of trained networks: this is not about the range of a dtype.
        tensors = [image[:, :first], weight / weight[0].numel() ** 0.5, up / 10, down, bias, residual]
        tensors += [image[:, first:]] if first < sample.in_channels else []
        self.options = sample.options
        self.values = [self._on_gpu(t, dtype) for t in tensors]
        self.exact = [t.double() for t in self.values]
        for operands in (self.values, self.exact):
            for index, tensor in enumerate(operands):
                tensor.requires_grad_(index != 1)

    @staticmethod
    def _on_gpu(tensor, dtype):
        layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
        return tensor.to(DEVICE, dtype).contiguous(memory_format=layout)

    def forward(self, function, operands, activation=None):
        input, weight, up, down, bias, residual, *input2 = operands
        return function(
            input,
            weight,
            up,
            down,
            bias,
            *self.options,
            activation=activation,
            negative_slope=0.1,
            residual=residual,
            input2=input2[0] if input2 else None,
        )

    def run(self, function, operands, activation=None):
        """The output and the gradient of every operand but the base, for a fixed gradient of the output."""
        output = self.forward(function, operands, activation)
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output)
        wanted = [tensor for tensor in operands if tensor.requires_grad]
        return [output.detach(), *torch.autograd.grad(output, wanted, grad)]


@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_and_gradients_agree_with_the_reference(
    backend, make_conv_sample, case, activation, relative_error
):
    options, dtype = case
    layer = Layer(make_conv_sample(layout=torch.channels_last, **options), dtype)
    found = layer.run(lk.lora_conv2d_act, layer.values, activation)
    expected = layer.run(reference.lora_conv2d_act, layer.exact, activation)
    for name, value, definition in zip(NAMES, found, expected, strict=False):
        assert value.dtype == dtype and value.shape == definition.shape, name
        # In half precision the activation's gradient is rounded before it is summed over all pixels.
        assert relative_error(value, definition) <= TOLERANCES[dtype] * (2 if activation else 1), name


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_the_other_activations(backend, make_conv_sample, activation, relative_error):
    layer = Layer(make_conv_sample(**ODD["29->31"], layout=torch.channels_last), torch.float32)
    found = layer.run(lk.lora_conv2d_act, layer.values, activation)
    expected = layer.run(reference.lora_conv2d_act, layer.exact, activation)
    for value, definition in zip(found, expected, strict=True):
        assert relative_error(value, definition) <= 1e-4


@pytest.fixture
def tf32_settings():
    """Switch cuDNN's setting off, and restore both afterwards."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_float32_is_exact_unless_tf32_is_asked_for(backend, make_conv_sample, relative_error, tf32_settings):
    layer = Layer(make_conv_sample(**UNET["112->112 3x3"], layout=torch.channels_last), torch.float32)
    expected = layer.forward(reference.lora_conv2d_act, layer.exact)
    assert relative_error(layer.forward(lk.lora_conv2d_act, layer.values), expected) <= 2e-6
    torch.backends.cuda.matmul.allow_tf32 = True
    assert relative_error(layer.forward(lk.lora_conv2d_act, layer.values), expected) <= 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_gradients_are_the_same_bits_every_time(backend, make_conv_sample, dtype):
    layer = Layer(make_conv_sample(**UNET["28->28 3x3"], layout=torch.channels_last), dtype)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [layer.run(lk.lora_conv2d_act, layer.values, "gelu") for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    for first, second, third in zip(*runs, strict=True):
        assert torch.equal(first, second) and torch.equal(first, third)


def test_a_base_that_is_trained_gets_its_gradient(backend, make_conv_sample, relative_error):
    layer = Layer(make_conv_sample(**ODD["29->31"], layout=torch.channels_last), torch.float32)
    for operands in (layer.values, layer.exact):
        operands[1].requires_grad_()
    found = layer.run(lk.lora_conv2d_act, layer.values)
    expected = layer.run(reference.lora_conv2d_act, layer.exact)
    for value, definition in zip(found, expected, strict=True):
        assert relative_error(value, definition) <= 1e-4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_returns_the_layout_of_conv2d(backend, layout):
    layer = lk.FusedLoRAConv2d(8, 16, 3, padding=1).to(DEVICE, torch.float16, memory_format=layout)
    image = torch.randn(2, 8, 9, 11, device=DEVICE, dtype=torch.float16).to(memory_format=layout)
    plain = F.conv2d(image, layer.base_weight, layer.bias, padding=1)
    fused = layer(image)
    assert fused.stride() == plain.stride()
    torch.testing.assert_close(fused, plain, rtol=2e-3, atol=2e-3)


def test_autocast_merges_in_float32_and_compiles_to_one_graph(backend, relative_error):
    layer = lk.FusedLoRAConv2d(28, 28, 3, padding=1, activation="gelu").to(DEVICE)
    layer.to(memory_format=torch.channels_last)
    nn.init.normal_(layer.lora_up, std=0.1)
    image = torch.randn(2, 28, 32, 32, device=DEVICE).to(memory_format=torch.channels_last)
    expected = F.gelu(
        F.conv2d(image.double(), layer.merged_weight().double(), layer.bias.double(), padding=1)
    )
    compiled = torch.compile(layer, fullgraph=True)
    for function in (layer, compiled):
        with torch.autocast(DEVICE, torch.bfloat16):
            output = function(image)
        grads = torch.autograd.grad(output.float().sum(), list(layer.parameters()))
        assert output.dtype == torch.bfloat16 and {grad.dtype for grad in grads} == {torch.float32}
        assert relative_error(output, expected) <= 1e-2


@pytest.mark.parametrize("shape", [(5, 7, 96), (33, 96), (96,)])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_linear_layers_agree_with_the_reference(backend, shape, dtype, relative_error):
    layer = lk.FusedLoRALinear(96, 40, rank=4).to(DEVICE, dtype)
    nn.init.normal_(layer.lora_up, std=0.1)
    layer.base_weight.requires_grad_(False)
    x = torch.randn(shape, device=DEVICE, dtype=dtype, requires_grad=True)
    operands = [x, layer.base_weight, layer.lora_up, layer.lora_down, layer.bias]
    exact = [t.detach().double().requires_grad_() for t in operands]
    wanted = [0, 2, 3, 4]
    output, expected = layer(x), reference.lora_linear(*exact)
    grads = torch.autograd.grad(output.sum(), [operands[i] for i in wanted])
    exact_grads = torch.autograd.grad(expected.sum(), [exact[i] for i in wanted])
    for value, definition in zip([output, *grads], [expected, *exact_grads], strict=True):
        assert relative_error(value, definition) <= TOLERANCES[dtype]


def test_no_allocation_grows_with_the_number_of_calls(backend):
    layer = lk.FusedLoRAConv2d(56, 56, 3, padding=1).to(
        DEVICE, torch.bfloat16, memory_format=torch.channels_last
    )
    layer.requires_grad_(False)
    image = torch.randn(1, 56, 64, 64, device=DEVICE, dtype=torch.bfloat16)
    image = image.to(memory_format=torch.channels_last)
    output = layer(image)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    outputs = [layer(image) for _ in range(20)]
    kept = torch.cuda.memory_allocated() - before
    assert kept == sum(-(-o.numel() * o.element_size() // 512) * 512 for o in outputs)
    del output
