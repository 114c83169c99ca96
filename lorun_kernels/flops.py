"""What torch's FlopCounterMode counts for the low-rank layers, forward and backward.

It is the convolution or the matrix product itself, 2 * multiply-accumulates, as torch counts the plain layer.
Left out is the merge of W, which is small: relative to the layer's forward pass it is ``r / positions``, and
``r * min(kh, kw) / positions`` in the reshape form of a convolution, where `positions` are all pixels
``N * H' * W'`` of the result, or all rows of a linear layer's input. A backward pass leaves out at most three
products of that size.

Gradients count as they are computed:

- A convolution's adapter gets its gradients from that of W. They count as the weight's gradient does, once,
  also while the base is frozen: a plain frozen layer computes none, an adapted one does.
- A linear layer's adapter gets its gradients through its rank, without that of W: each factor counts
  ``2 * rows * r * (in + out)``, and the weight's own gradient only if the base is trained.

A layer that merges W outside of these ops counts as torch's own ops do. A full additive weight is a sum and
counts nothing. Factors count as a matrix product: those of a module that keeps its forward in `add_adapter`,
and all of them under ``use_backend("reference")``.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from math import prod
from types import ModuleType
from typing import Any

import torch

from lorun_kernels._extension import _C  # noqa: F401  (registers torch.ops.lorun)

COUNTER = "torch.utils.flop_counter"

Shape = list[int]


def conv_flops(input: Shape, weight: Shape, *_: Any, out_shape: Any, **__: Any) -> int:
    """Of lora_conv2d; `out_shape` is the shape of the result, with a batch or without one."""
    return 2 * prod(weight[1:]) * prod(out_shape)


def conv_preactivation_flops(input: Shape, weight: Shape, *_: Any, out_shape: Any, **__: Any) -> int:
    """Of lora_conv2d_preactivation, which returns the activation's input as well."""
    return conv_flops(input, weight, out_shape=out_shape[0])


def conv_backward_flops(
    grad: Shape, input: Shape, weight: Shape, lora_up: Shape, lora_down: Shape, stride: Any, padding: Any,
    dilation: Any, groups: int, scaling: float, form: str, output_mask: list[bool],
    input2: Shape | None = None, *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Of lora_conv2d_backward, by torch's formula for a convolution of both inputs as one image."""
    need_input, need_weight, need_up, need_down, _need_bias, need_input2 = output_mask
    channels = input[-3] + (0 if input2 is None else input2[-3])
    both = [*_batched(input)[:1], channels, *input[-2:]]
    computed = [need_input or need_input2, need_weight or need_up or need_down, False]
    plain: Any = sys.modules[COUNTER].flop_registry[torch.ops.aten.convolution_backward]
    arguments = (stride, padding, dilation, False, [0, 0], groups, computed)
    return plain(_batched(grad), both, weight, None, *arguments, out_val=(both, weight, None))


def linear_flops(input: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """Of lora_linear, for an input of any number of dimensions."""
    return 2 * prod(input) * weight[0]


def linear_backward_flops(
    grad: Shape, input: Shape, weight: Shape, lora_up: Shape, lora_down: Shape, scaling: float,
    output_mask: list[bool], *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Of lora_linear_backward: whole products for input and weight, two through the rank for each factor."""
    need_input, need_weight, need_up, need_down, _need_bias = output_mask
    through_rank = 2 * prod(input[:-1]) * lora_down[0] * (weight[0] + weight[1])
    whole = linear_flops(input, weight)
    return (need_input + need_weight) * whole + (need_up + need_down) * through_rank


def _batched(image: Shape) -> Shape:
    return [1, *image] if len(image) == 3 else image


FORMULAS = {
    torch.ops.lorun.lora_conv2d: conv_flops,
    torch.ops.lorun.lora_conv2d_preactivation: conv_preactivation_flops,
    torch.ops.lorun.lora_conv2d_backward: conv_backward_flops,
    torch.ops.lorun.lora_linear: linear_flops,
    torch.ops.lorun.lora_linear_backward: linear_backward_flops,
}


def register(counter: ModuleType) -> None:
    """Tell `torch.utils.flop_counter` these formulas, in place of those that it may have been told before."""
    for op, formula in FORMULAS.items():
        counter.flop_registry.pop(op, None)
        counter.register_flop_formula(op)(formula)


class RegisterAtImport:
    """A finder in `sys.meta_path` that registers the formulas when somebody imports torch's counter.

    Importing the counter here would import Triton, where it is installed, for everybody.
    """

    @staticmethod
    def find_spec(name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == COUNTER else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                register(module)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


# Once, also if this module is reloaded.
sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__module__", None) != __name__]
sys.meta_path.insert(0, RegisterAtImport)
if COUNTER in sys.modules:
    register(sys.modules[COUNTER])
