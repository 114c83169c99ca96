"""Bad input: an error at the call names the argument, what was expected and what came."""

from __future__ import annotations

import pytest
import torch

from lorun_kernels import FusedLoRAConv2d, lora_conv2d

OPERANDS = {
    "input": (2, 4, 7, 7),
    "weight": (6, 4, 3, 3),
    "lora_up": (18, 6),
    "lora_down": (6, 12),
    "bias": (6,),
}


def operands(**replaced) -> dict:
    return {name: torch.randn(shape) for name, shape in OPERANDS.items()} | replaced


@pytest.mark.parametrize(
    "replaced, error, message",
    [
        (
            {"input": torch.randn(2, 3, 7, 7)},
            ValueError,
            r"input must have 4 channels .* got shape \[2, 3, 7, 7\]",
        ),
        ({"input": torch.randn(7, 7)}, ValueError, r"input must be \(C, H, W\) or \(N, C, H, W\)"),
        ({"input": torch.randn(2, 4, 7, 7).double()}, TypeError, "input must have the dtype of weight"),
        ({"input": [1.0]}, TypeError, "input must be a torch.Tensor, got list"),
        (
            {"input": torch.empty(2, 4, 7, 7, device="meta")},
            ValueError,
            "input must be on the device of weight",
        ),
        ({"weight": torch.randn(6, 4, 3)}, ValueError, "weight must have 4 dimensions"),
        ({"weight": torch.ones(6, 4, 3, 3).int()}, TypeError, "dtype"),
        ({"weight": torch.randn(6, 4, 0, 3)}, ValueError, "weight must not be empty"),
        (
            {"lora_up": torch.randn(18, 0), "lora_down": torch.randn(0, 12)},
            ValueError,
            "between 1 and 4 .* got 0",
        ),
        (
            {"lora_up": torch.randn(18, 15), "lora_down": torch.randn(15, 12)},
            ValueError,
            "between 1 and 4 .* got 5",
        ),
        ({"lora_up": torch.randn(18, 5)}, ValueError, r"lora_up must have rank \* 3 columns"),
        ({"lora_up": torch.randn(17, 6)}, ValueError, r"lora_up must have shape \[18, 6\]"),
        ({"lora_up": torch.randn(18)}, ValueError, "lora_up must be a matrix"),
        ({"lora_up": torch.randn(18, 6).double()}, TypeError, "lora_up must have the dtype of weight"),
        ({"lora_down": torch.randn(6, 11)}, ValueError, r"lora_down must have shape \[6, 12\]"),
        ({"lora_down": None}, TypeError, "lora_down must be a torch.Tensor, got NoneType"),
        ({"bias": torch.randn(5)}, ValueError, r"bias must have shape \[6\]"),
        ({"bias": torch.randn(6).double()}, TypeError, "bias must have the dtype of input"),
        ({"form": "low"}, ValueError, "form must be"),
        ({"form": "factored"}, ValueError, "lora_up must have shape"),
        ({"groups": 0}, ValueError, "groups must divide the 6 output channels"),
        ({"groups": 4}, ValueError, "groups must divide the 6 output channels"),
        ({"stride": 0}, ValueError, "stride must be an int >= 1"),
        ({"stride": (1, 1, 1)}, ValueError, "stride must be an int >= 1 or a pair"),
        ({"padding": -1}, ValueError, "padding must be an int >= 0"),
        ({"padding": "full"}, ValueError, 'padding must be an int, a pair, "same" or "valid"'),
        ({"padding": "same", "stride": 2}, ValueError, 'padding="same" needs stride 1'),
        ({"dilation": 1.5}, ValueError, "dilation must be an int >= 1"),
    ],
)
def test_lora_conv2d_refuses_by_name(replaced, error, message):
    with pytest.raises(error, match=message) as caught:
        lora_conv2d(**operands(**replaced))
    assert "\n" not in str(caught.value)


def test_an_image_smaller_than_the_kernel_is_refused():
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        lora_conv2d(**operands(input=torch.randn(1, 4, 1, 1)))


def test_the_module_names_the_wrong_channel_count():
    with pytest.raises(ValueError, match="input must have 4 channels"):
        FusedLoRAConv2d(4, 6, 3)(torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (18, 6), (6, 4, 3, 3), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("position", range(6))
def test_the_backward_op_called_directly_with_any_shape_raises_and_never_crashes(shape, position):
    args = [torch.randn(s) for s in [(2, 6, 5, 5), *list(OPERANDS.values())[:4]]]
    options = [[1, 1], [0, 0], [1, 1], 1, 1.0, "reshape", [True] * 6]
    if position < 5 and args[position].shape != shape:
        args[position] = torch.randn(shape)
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            torch.ops.lorun.lora_conv2d_backward(*args, *options)
