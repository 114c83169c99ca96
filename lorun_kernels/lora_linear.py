"""Low-rank adapted linear layer: W is merged on the fly, never stored and never kept for backward."""

from __future__ import annotations

import torch
from torch import Tensor

from lorun_kernels import reference
from lorun_kernels._checks import check_input, check_tensors
from lorun_kernels._extension import _C  # noqa: F401  (registers torch.ops.lorun)
from lorun_kernels._vmap import loop_rule
from lorun_kernels.backends import lora_backend, uses_reference

_op = torch.ops.lorun.lora_linear.default


@torch.library.register_fake("lorun::lora_linear")
def _lora_linear_fake(input, weight, lora_up, lora_down, bias, scaling, backend="aten"):
    return input.new_empty([*input.shape[:-1], weight.shape[0]])


@torch.library.register_fake("lorun::lora_linear_backward")
def _lora_linear_backward_fake(grad, input, weight, lora_up, lora_down, scaling, output_mask, backend="aten"):
    need_input, need_weight, need_up, need_down, need_bias = output_mask
    return (
        input.new_empty(input.shape) if need_input else None,
        weight.new_empty(weight.shape) if need_weight else None,
        lora_up.new_empty(lora_up.shape) if need_up else None,
        lora_down.new_empty(lora_down.shape) if need_down else None,
        grad.new_empty([weight.shape[0]]) if need_bias else None,
    )


def _lora_linear_vmap(info, in_dims, input, *args):
    if in_dims[0] is None or any(isinstance(dim, int) for dim in in_dims[1:]):
        return _lora_linear_loop(info, in_dims, input, *args)
    return _op(input.movedim(in_dims[0], 0), *args), 0


_lora_linear_loop = loop_rule(_op)
torch.library.register_vmap("lorun::lora_linear", _lora_linear_vmap)
torch.library.register_vmap(
    "lorun::lora_linear_backward", loop_rule(torch.ops.lorun.lora_linear_backward.default)
)


def lora_linear(
    input: Tensor,
    weight: Tensor,
    lora_up: Tensor,
    lora_down: Tensor,
    bias: Tensor | None = None,
    scaling: float = 1.0,
) -> Tensor:
    """Apply the linear layer ``W = weight + scaling * lora_up @ lora_down``.

    The linear form of equation 4 of arXiv 2602.18697. W is merged for the call and not kept after it.
    Autograd keeps `input`, `weight`, `lora_up` and `lora_down` (references, no copies) and computes only the
    gradients that are asked for. While ``lora_up`` is zero the result equals ``F.linear(input, weight,
    bias)``, on CPU bit for bit.

    Args:
        input: ``(..., in)``; float64, float32, bfloat16 or float16, any values.
        weight: the base weight W0, ``(out, in)``, in the dtype of `input`.
        lora_up: the left factor, ``(out, r)``, zero at the start of training; 1 <= r <= min(out, in).
        lora_down: the right factor, ``(r, in)``.
        bias: ``(out,)`` or None.
        scaling: any float; multiplies the product of the factors.

    Returns:
        ``(..., out)``, in the dtype of `input`.

    Raises:
        ValueError: a shape, rank or device that does not fit; the message names it.
        TypeError: an argument that is not a tensor, or dtypes that differ outside ``torch.autocast``.

    Autocast, ``torch.compile``, ``torch.export``, ``torch.vmap`` and second-order gradients behave as in
    :func:`lorun_kernels.lora_conv2d`.
    """
    check_tensors("lora_linear", weight=weight, lora_up=lora_up, lora_down=lora_down)
    check_input("lora_linear", input, weight)
    if uses_reference():
        return reference.lora_linear(input, weight, lora_up, lora_down, bias, scaling)
    return _op(input, weight, lora_up, lora_down, bias, scaling, lora_backend(input, weight))
