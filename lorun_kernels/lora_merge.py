"""The full weight of a low-rank adapted layer."""

from __future__ import annotations

import torch
from torch import Tensor

from lorun_kernels import reference
from lorun_kernels._checks import check_tensors
from lorun_kernels._extension import _C  # noqa: F401  (registers torch.ops.lorun)
from lorun_kernels._vmap import loop_rule
from lorun_kernels.backends import uses_reference

_op = torch.ops.lorun.merge_lora.default


@torch.library.register_fake("lorun::merge_lora")
def _merge_lora_fake(weight, lora_up, lora_down, scaling, form):
    return torch.empty_like(weight)


@torch.library.register_fake("lorun::merge_lora_backward")
def _merge_lora_backward_fake(grad, lora_up, lora_down, scaling, output_mask):
    need_up, need_down = output_mask
    return (
        lora_up.new_empty(lora_up.shape) if need_up else None,
        lora_down.new_empty(lora_down.shape) if need_down else None,
    )


torch.library.register_vmap("lorun::merge_lora", loop_rule(_op))
torch.library.register_vmap(
    "lorun::merge_lora_backward", loop_rule(torch.ops.lorun.merge_lora_backward.default)
)


def merge_lora(
    weight: Tensor, lora_up: Tensor, lora_down: Tensor, scaling: float = 1.0, form: str = "reshape"
) -> Tensor:
    """Return ``W = weight + scaling * (lora_up @ lora_down).view_as(weight)``, for export.

    Equation 4 of arXiv 2602.18697. A plain convolution or linear layer with the weight W computes what
    :func:`lorun_kernels.lora_conv2d` or :func:`lorun_kernels.lora_linear` computes from the parts.

    Args:
        weight: the base weight W0, ``(Cout, Cin/groups, kh, kw)`` or, for a linear layer, ``(out, in)``;
            float64, float32, bfloat16 or float16.
        lora_up, lora_down: the factors, in the dtype of `weight` and the shapes that `lora_conv2d` and
            `lora_linear` document.
        scaling: any float; multiplies the product of the factors.
        form: ``"reshape"`` or ``"factored"``; a linear layer has one form and ignores it.

    Returns:
        W, in the shape, dtype and layout of `weight`. Differentiable once in every tensor.

    Raises:
        ValueError: a shape, rank, device or form that does not fit; the message names it.
        TypeError: an argument that is not a tensor, or dtypes that differ.
    """
    check_tensors("merge_lora", weight=weight, lora_up=lora_up, lora_down=lora_down)
    if uses_reference():
        return reference.merge_lora(weight, lora_up, lora_down, scaling, form)
    return _op(weight, lora_up, lora_down, scaling, form)
