"""csrc/cuda/lora/bindings.cpp: what reaches a launcher, and what a wrong direct call is told.

The bindings are compiled for CPU tensors, with launchers that record their arguments.
"""

from pathlib import Path

import pytest
import torch

from .. import bindings_on_cpu

pytestmark = bindings_on_cpu.NEEDS_NVCC

STREAM = 77
B, H, W, IN, SECOND, OUT, KH, KW, RANK = 2, 9, 8, 6, 2, 4, 3, 2, 5
OUT_H, OUT_W = 6, 7
STRIDE, PADDING, DILATION = [2, 1], [3, 0], [2, 1]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    source = Path(__file__).with_name("bindings_on_cpu.cpp")
    return bindings_on_cpu.load(source, tmp_path_factory.mktemp("bindings"))


@pytest.fixture
def ops(library):
    return torch.ops.lorun_cuda_on_cpu


def last_call(library) -> list[float]:
    return [float(word) for word in library.last_call().split()]


def image(channels, height=H, width=W, dtype=torch.float32):
    """Sliced, so that no two strides are alike."""
    return torch.randn(B, height + 1, width + 2, channels + 3, dtype=dtype)[:, 1:, 2:, 3:].permute(0, 3, 1, 2)


def address(tensor):
    return 0 if tensor is None else tensor.data_ptr()


def view(tensor):
    if tensor is None:
        return [0] * 4
    strides = tensor.stride()
    return [tensor.data_ptr(), strides[0], strides[2], strides[3]]


def weight_view(weight, up, down, scaling):
    strides = [0] * 4 if weight is None else weight.stride()
    adapter = [0] * 5 if down is None else [address(up), address(down), *down.shape, scaling]
    dtype = (up if weight is None else weight).dtype
    return [address(weight), *strides, *adapter, DTYPES.index(dtype)]


def problem(dtype, second=SECOND, tf32=True):
    geometry = [1, KH, KW, *STRIDE, *PADDING, *DILATION]
    return [B, H, W, OUT_H, OUT_W, IN, second, OUT, *geometry, DTYPES.index(dtype), tf32]


def factors(dtype=torch.float32):
    """A weight with odd strides, and the factors of Eq. 4."""
    weight = torch.randn(KW, KH, IN, OUT, dtype=dtype).permute(3, 2, 1, 0)
    return weight, torch.randn(OUT * KH, RANK, dtype=dtype), torch.randn(RANK, IN * KW, dtype=dtype)


def conv_arguments(dtype=torch.float32):
    weight, up, down = factors()
    return {
        "input": image(IN - SECOND, dtype=dtype),
        "input2": image(SECOND, dtype=dtype),
        "weight": weight,
        "lora_up": up,
        "lora_down": down,
        "bias": torch.randn(OUT, dtype=dtype),
        "residual": image(OUT, OUT_H, OUT_W, dtype),
        "stride": STRIDE,
        "padding": PADDING,
        "dilation": DILATION,
        "groups": 1,
        "scaling": 0.5,
        "activation": "gelu",
        "slope": 0.25,
        "tf32": True,
        "output": image(OUT, OUT_H, OUT_W, dtype),
        "preactivation": image(OUT, OUT_H, OUT_W, dtype),
    }


def expected_conv(a, dtype):
    second = 0 if a["input2"] is None else SECOND
    numbers = [*problem(dtype, second), *view(a["input"]), *view(a["input2"])]
    numbers += weight_view(a["weight"], a["lora_up"], a["lora_down"], 0.5)
    activation = ["none", "relu", "gelu", "leaky_relu"].index(a["activation"])
    numbers += [address(a["bias"]), activation, 0.25, *view(a["residual"])]
    return [*numbers, *view(a["output"]), *view(a["preactivation"]), STREAM]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "leaky_relu"])
def test_a_convolution_reaches_its_launcher(ops, library, dtype, activation):
    arguments = conv_arguments(dtype) | {"activation": activation}
    ops.lora_conv2d(**arguments)
    assert last_call(library) == expected_conv(arguments, dtype)


def test_a_convolution_without_options_reaches_its_launcher(ops, library):
    absent = ("input2", "lora_up", "lora_down", "bias", "residual", "preactivation")
    arguments = conv_arguments(torch.bfloat16) | dict.fromkeys(absent)
    arguments |= {"input": image(IN, dtype=torch.bfloat16), "weight": factors(torch.bfloat16)[0]}
    ops.lora_conv2d(**arguments)
    assert last_call(library) == expected_conv(arguments, torch.bfloat16)


@pytest.mark.parametrize("second", [0, SECOND])
def test_an_input_gradient_reaches_its_launcher(ops, library, second):
    grad, weight, up, down = image(OUT, OUT_H, OUT_W), *factors()
    first, other = image(IN - second), image(second) if second else None
    ops.lora_conv2d_grad_input(grad, weight, up, down, STRIDE, PADDING, DILATION, 1, 0.5, False, first, other)
    numbers = [*problem(torch.float32, second, False), *view(grad), *weight_view(weight, up, down, 0.5)]
    assert last_call(library) == [*numbers, *view(first), *view(other), STREAM]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("wanted", ["up", "down", "both"])
def test_adapter_gradients_reach_their_launcher(ops, library, deterministic, wanted):
    half = torch.float16
    grad, first, second = (
        image(OUT, OUT_H, OUT_W, half),
        image(IN - SECOND, dtype=half),
        image(SECOND, dtype=half),
    )
    _, up, down = factors(half)
    grad_up = None if wanted == "down" else torch.zeros(up.shape)
    grad_down = None if wanted == "up" else torch.zeros(down.shape)
    ops.lora_conv2d_grad_adapter(
        *(grad, first, second, up, down, [KH, KW], STRIDE, PADDING, DILATION, 1, 0.5, True),
        *(deterministic, grad_up, grad_down),
    )
    numbers = [*problem(half), *view(grad), *view(first), *view(second), *weight_view(None, up, down, 0.5)]
    numbers += [address(grad_up), address(grad_down), deterministic, deterministic]
    assert last_call(library) == [*numbers, STREAM]


def test_depthwise_factors_reach_their_launcher(ops, library):
    """The rows of Eq. 4's factors belong to no single output channel."""
    input, output = image(IN), image(IN, OUT_H, OUT_W)
    weight, up, down = torch.randn(IN, 1, KH, KW), torch.randn(KH, RANK), torch.randn(RANK, IN * KW)
    arguments = conv_arguments() | dict.fromkeys(("input2", "bias", "residual", "preactivation"))
    tensors = {"input": input, "weight": weight, "lora_up": up, "lora_down": down, "output": output}
    ops.lora_conv2d(**arguments | tensors | {"groups": IN})
    assert last_call(library)[5:9] == [IN, 0, IN, IN]
    with pytest.raises(
        RuntimeError, match="groups must be 1, or equal both the 6 input and the 6 output channels, got 2"
    ):
        ops.lora_conv2d(**arguments | tensors | {"groups": 2})


@pytest.mark.parametrize("merged_dtype", DTYPES, ids=str)
def test_merges_reach_their_launchers(ops, library, merged_dtype):
    weight, up, down = factors(torch.float16)
    merged = torch.empty(KH, OUT, KW, IN, dtype=merged_dtype).permute(1, 3, 0, 2)
    ops.lora_merge(weight, up, down, 0.5, merged)
    numbers = [*weight_view(weight, up, down, 0.5), OUT, IN, KH, KW, address(merged), *merged.stride()]
    assert last_call(library) == [*numbers, DTYPES.index(merged_dtype), STREAM]

    table, flat = torch.zeros(3, 16, dtype=torch.int64), torch.empty(90, dtype=merged_dtype)
    ops.lora_merge_stage(table, up.flatten(), down.flatten(), 60, flat)
    numbers = [
        address(table),
        3,
        60,
        address(up),
        address(down),
        1,
        address(flat),
        DTYPES.index(merged_dtype),
    ]
    assert last_call(library) == [*numbers, STREAM]

    ups, downs = up.flatten(), down.flatten()
    grads = torch.empty_like(ups), torch.empty_like(downs)
    ops.lora_merge_stage_backward(table, ups, downs, 12, 34, flat, *grads)
    numbers = [address(table), 3, 12, 34, address(up), address(down), 1]
    numbers += [address(flat), DTYPES.index(merged_dtype), *map(address, grads)]
    assert last_call(library) == [*numbers, STREAM]


WRONG = {
    "integer images": ({"input": image(4).int()}, "input must be Float, Half or BFloat16, got Int"),
    "three dimensions": ({"input": image(4)[0]}, r"input must be \(B, C, H, W\), each below 2\^31, got"),
    "contiguous images": ({"input": image(4).contiguous()}, "input must have contiguous channels, stride 1"),
    "another second size": ({"input2": image(2)[:, :, 1:]}, r"input2 must be Float \(2, 2, 9, 8\), got"),
    "another second dtype": ({"input2": image(2).half()}, "input2 must be Float .*, got Half"),
    "five dimensions of weight": ({"weight": torch.ones(4, 6, 3, 2, 1)}, "weight must have 4 dimensions"),
    "too few weights": ({"weight": factors()[0][:, 1:]}, r"weight must be Float \(4, 6, 3, 2\), got"),
    "a double weight": ({"weight": factors()[0].double()}, "weight must be Float, got Double"),
    "half a pair": ({"lora_up": None}, "lora_up and lora_down must be given together"),
    "half factors": ({"lora_up": factors()[1].half()}, r"lora_up must be Float \(12, 5\), got Half"),
    "short up": ({"lora_up": factors()[1][1:]}, r"lora_up must be Float \(12, 5\), got Float \(11, 5\)"),
    "columns across rows": (
        {"lora_up": torch.ones(6, 5), "lora_down": torch.ones(5, 24)},
        "the columns of lora_down must divide an output channel's 36 weights, got 24",
    ),
    "columns that do not divide": ({"lora_down": torch.ones(5, 7)}, "columns must divide W's 144 elements"),
    "transposed up": ({"lora_up": torch.ones(5, 12).T}, "lora_up must be contiguous"),
    "a long bias": ({"bias": torch.ones(5)}, r"bias must be Float \(4\), got Float \(5\)"),
    "every other bias": ({"bias": torch.ones(8)[::2]}, "bias must be contiguous"),
    "a residual of the input's size": ({"residual": image(4)}, r"residual must be Float \(2, 4, 6, 7\), got"),
    "a small output": ({"output": image(4, 5, 7)}, r"output must be Float \(2, 4, 6, 7\), got"),
    "a small preactivation": ({"preactivation": image(4, 6, 6)}, "preactivation must be Float"),
    "one stride": ({"stride": [2]}, r"stride must be two numbers from 1 to 2\^15 - 1, got Long \(2\)"),
    "no stride": ({"stride": [0, 1]}, r"stride must be two numbers from 1"),
    "negative padding": ({"padding": [-1, 1]}, r"padding must be two numbers from 0"),
    "no dilation": ({"dilation": [1, 0]}, r"dilation must be two numbers from 1"),
    "a kernel beyond the image": ({"dilation": [9, 1]}, "the padded input must be from 19"),
    "another activation": ({"activation": "tanh"}, "must be none, relu, gelu or leaky_relu, got tanh"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_argument_is_named(ops, change, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        ops.lora_conv2d(**conv_arguments() | change)


def test_wrong_gradients_are_named(ops):
    grad, weight, up, down = image(OUT, OUT_H, OUT_W), *factors()
    geometry = (STRIDE, PADDING, DILATION, 1, 0.5, False)
    with pytest.raises(RuntimeError, match=r"grad must be Float \(2, 4, 6, 7\), got"):
        ops.lora_conv2d_grad_input(grad[..., 1:], weight, up, down, *geometry, image(IN), None)
    call = [grad, image(IN), None, up, down, [KH, KW], *geometry, False]
    with pytest.raises(RuntimeError, match=r"grad_up must be Float \(12, 5\), got Half"):
        ops.lora_conv2d_grad_adapter(*call, torch.zeros(12, 5).half(), None)
    with pytest.raises(RuntimeError, match=r"grad_down must be contiguous"):
        ops.lora_conv2d_grad_adapter(*call, None, torch.zeros(12, 5).T)
    call[5] = [KH, 0]
    with pytest.raises(RuntimeError, match=r"kernel_size must be two numbers from 1"):
        ops.lora_conv2d_grad_adapter(*call, None, None)


def test_wrong_merges_are_named(ops):
    weight, up, down = factors()
    with pytest.raises(RuntimeError, match=r"merged must be Float \(4, 6, 3, 2\), got Float \(4, 6, 3, 1\)"):
        ops.lora_merge(weight, up, down, 1.0, torch.empty(4, 6, 3, 1))
    with pytest.raises(RuntimeError, match="merged must be Float, Half or BFloat16, got Double"):
        ops.lora_merge(weight, up, down, 1.0, torch.empty(4, 6, 3, 2).double())
    table, stack = torch.zeros(3, 16, dtype=torch.int64), torch.ones(90)
    for index, value, sentence in (
        (0, torch.zeros(3, 15, dtype=torch.int64), r"table must be Long \(3, 16\), got Long \(3, 15\)"),
        (0, torch.zeros(16, dtype=torch.int64), r"table must be \(layers, 16\)"),
        (0, torch.zeros(0, 16, dtype=torch.int64), "table must have a row for each layer"),
        (1, torch.ones(2, 3), "ups must have one dimension"),
        (2, stack.half(), "downs must be Float like ups, got Half"),
        (3, 91, "elements must be from 1 to the number of elements of merged, got 91"),
        (4, torch.ones(180)[::2], "merged must be contiguous"),
    ):
        arguments = [table, stack, stack, 60, stack.clone()]
        arguments[index] = value
        with pytest.raises(RuntimeError, match=sentence):
            ops.lora_merge_stage(*arguments)
    for index, value, sentence in (
        (0, torch.zeros(0, 16, dtype=torch.int64), "table must have a row for each layer"),
        (2, stack.half(), "downs must be Float like ups, got Half"),
        (3, 0, "rows and columns must be from 1 to the number of elements of grad, got 0 and 60"),
        (4, 91, "rows and columns must be from 1 to the number of elements of grad, got 60 and 91"),
        (5, torch.ones(180)[::2], "grad must be contiguous"),
        (6, torch.ones(89), r"grad_ups must be Float \(90\), got Float \(89\)"),
        (7, stack.half(), r"grad_downs must be Float \(90\), got Half"),
        (7, torch.ones(180)[::2], "grad_downs must be contiguous"),
    ):
        arguments = [table, stack, stack, 60, 60, stack, stack.clone(), stack.clone()]
        arguments[index] = value
        with pytest.raises(RuntimeError, match=sentence):
            ops.lora_merge_stage_backward(*arguments)


def test_a_failed_launch_raises(ops, library):
    library.fail_with(1)
    try:
        with pytest.raises(RuntimeError, match="cannot launch a kernel: the launcher's error"):
            ops.lora_conv2d(**conv_arguments())
    finally:
        library.fail_with(0)
