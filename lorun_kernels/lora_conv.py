"""Low-rank adapted convolution: W is merged on the fly, never stored and never kept for backward."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from lorun_kernels import reference
from lorun_kernels._checks import check_input, check_tensors
from lorun_kernels._extension import _C  # noqa: F401  (registers torch.ops.lorun)
from lorun_kernels._vmap import loop_rule
from lorun_kernels.backends import lora_backend, uses_reference

_op = torch.ops.lorun.lora_conv2d.default
_preactivation_op = torch.ops.lorun.lora_conv2d_preactivation.default
_backward_op = torch.ops.lorun.lora_conv2d_backward.default
_aten_convolution = torch.ops.aten.convolution.default
_aten_convolution_backward = torch.ops.aten.convolution_backward.default

ACTIVATIONS = (None, "relu", "gelu", "leaky_relu")


def _batched(image: Tensor) -> Tensor:
    return image.unsqueeze(0) if image.dim() == 3 else image


@torch.library.register_fake("lorun::lora_conv2d")
def _lora_conv2d_fake(
    input,
    weight,
    lora_up,
    lora_down,
    bias,
    stride,
    padding,
    dilation,
    groups,
    scaling,
    form,
    input2=None,
    residual=None,
    activation="none",
    slope=0.01,
    backend="aten",
    merged=None,
):
    batch = _batched(input)
    if input2 is not None:
        batch = torch.cat([batch, _batched(input2)], 1)
    weight = weight.to(input.dtype)
    output = _aten_convolution(batch, weight, bias, stride, padding, dilation, False, [0, 0], groups)
    return output.squeeze(0) if input.dim() == 3 else output


@torch.library.register_fake("lorun::lora_conv2d_preactivation")
def _lora_conv2d_preactivation_fake(*args):
    output = _lora_conv2d_fake(*args)
    return output, torch.empty_like(output)


@torch.library.register_fake("lorun::lora_conv2d_backward")
def _lora_conv2d_backward_fake(
    grad,
    input,
    weight,
    lora_up,
    lora_down,
    stride,
    padding,
    dilation,
    groups,
    scaling,
    form,
    output_mask,
    input2=None,
    backend="aten",
):
    need_input, need_weight, need_up, need_down, need_bias, need_input2 = output_mask
    batch = _batched(input)
    both = batch if input2 is None else torch.cat([batch, _batched(input2)], 1)
    grad_both, _, grad_bias = _aten_convolution_backward(
        _batched(grad),
        both,
        weight.to(input.dtype),
        [weight.shape[0]],
        stride,
        padding,
        dilation,
        False,
        [0, 0],
        groups,
        [need_input or need_input2, False, need_bias],
    )

    def like(image, wanted):
        if not wanted:
            return None
        channels = image.shape[-3]
        part = grad_both if input2 is None else torch.empty_like(grad_both[:, :channels])
        return part.squeeze(0) if input.dim() == 3 else part

    return (
        like(input, need_input),
        torch.empty_like(weight, dtype=input.dtype) if need_weight else None,
        torch.empty_like(lora_up) if need_up else None,
        torch.empty_like(lora_down) if need_down else None,
        grad_bias,
        like(input2, need_input2),
    )


def _lora_conv2d_vmap(info, in_dims, input, *args):
    if in_dims[0] is None or any(isinstance(dim, int) for dim in in_dims[1:]):
        return _lora_conv2d_loop(info, in_dims, input, *args)
    batch = input.movedim(in_dims[0], 0)
    if any(isinstance(arg, Tensor) for arg in args[10:]):
        # A second input or a residual that the samples share has no batch dimension to fold into.
        return _lora_conv2d_loop(info, in_dims, input, *args)
    if batch.dim() == 4:
        return _op(batch, *args), 0
    return _op(batch.flatten(0, 1), *args).unflatten(0, batch.shape[:2]), 0


_lora_conv2d_loop = loop_rule(_op)
torch.library.register_vmap("lorun::lora_conv2d", _lora_conv2d_vmap)
torch.library.register_vmap("lorun::lora_conv2d_preactivation", loop_rule(_preactivation_op))
torch.library.register_vmap("lorun::lora_conv2d_backward", loop_rule(_backward_op))


def resolve_padding(
    input: Tensor, weight: Tensor, stride: Sequence[int], padding: str, dilation: Sequence[int]
) -> tuple[Tensor, list[int]]:
    """What F.conv2d makes of padding="valid" and "same"; of an odd total, the end gets one more."""
    if padding == "valid":
        return input, [0, 0]
    if padding != "same":
        raise ValueError(f'lora_conv2d: padding must be an int, a pair, "same" or "valid", got {padding!r}')
    if any(s != 1 for s in stride):
        raise ValueError(
            f'lora_conv2d: padding="same" needs stride 1, got {stride}; give padding as a number'
        )
    total_h, total_w = (d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True))
    if total_h % 2 or total_w % 2:
        input = F.pad(input, [0, total_w % 2, 0, total_h % 2])
    return input, [total_h // 2, total_w // 2]


def _pair(name: str, value: int | Sequence[int], least: int) -> list[int]:
    pair = [value, value] if isinstance(value, int) else list(value) if isinstance(value, Sequence) else []
    if len(pair) != 2 or any(not isinstance(v, int) or v < least for v in pair):
        raise ValueError(f"lora_conv2d: {name} must be an int >= {least} or a pair of them, got {value!r}")
    return pair


def lora_conv2d(
    input: Tensor,
    weight: Tensor,
    lora_up: Tensor,
    lora_down: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    scaling: float = 1.0,
    form: str = "reshape",
) -> Tensor:
    """Convolve with ``W = weight + scaling * (lora_up @ lora_down).view_as(weight)``.

    Equation 4 of arXiv 2602.18697. W is merged for the call, in the layout that the convolution wants, and
    is not kept after it. Autograd keeps `input`, `weight`, `lora_up` and `lora_down` (references, no copies)
    and computes only the gradients that are asked for. While ``lora_up`` is zero the result equals
    ``F.conv2d(input, weight, ...)``, on CPU bit for bit.

    Args:
        input: ``(N, Cin, H, W)`` or ``(Cin, H, W)``; float64, float32, bfloat16 or float16, any values, any
            layout. The result has the layout that ``F.conv2d`` would give it.
        weight: the base weight W0, ``(Cout, Cin/groups, kh, kw)``, in the dtype of `input`.
        lora_up: the left factor, zero at the start of training. With rank r and k0 = min(kh, kw), its shape
            is ``(Cout/groups*kh, r*k0)`` for ``form="reshape"`` and ``(Cout, r)`` for ``form="factored"``.
        lora_down: the right factor, ``(r*k0, Cin*kw)`` or ``(r, Cin/groups*kh*kw)``.
        bias: ``(Cout,)`` or None.
        stride, padding, dilation, groups: as in ``F.conv2d``, ``padding="same"`` and ``"valid"`` included.
        scaling: any float; multiplies the product of the factors.
        form: ``"reshape"`` is Eq. 4; ``"factored"`` is a k x k convolution to r channels, then a 1 x 1.

    Returns:
        ``(N, Cout, H', W')``, or ``(Cout, H', W')`` for an input without a batch.

    Raises:
        ValueError: a shape, rank, device, form or convolution argument that does not fit; the message names
            it. The rank is at least 1 and at most ``min(Cout/groups, Cin)`` (Eq. 12) for ``"reshape"``, the
            smaller side of the factored matrix for ``"factored"``.
        TypeError: an argument that is not a tensor, or dtypes that differ outside ``torch.autocast``.

    On a GPU, the kernels of ``use_backend("cuda")`` or ``"triton"`` merge W on the chip or, if it does not
    fit there, into a scratch for the call. They never form d W of a frozen base in device memory, except of a
    depthwise layer, whose adapter is no smaller than d W. float32 is exact in them unless
    ``torch.backends.cuda.matmul.allow_tf32`` is set; ``torch.use_deterministic_algorithms`` makes the
    gradients of the adapter the same bits in every run.

    Under ``torch.autocast`` the input and the bias are converted as for ``F.conv2d``; W is merged in the
    parameters' own dtype and rounded once. ``torch.compile(fullgraph=True)``, ``torch.export`` and
    ``torch.vmap`` work. Second-order gradients and ``torch.func.grad`` do not, and say so:
    ``lorun_kernels.reference.lora_conv2d`` is the differentiable definition.
    """
    return lora_conv2d_act(
        input, weight, lora_up, lora_down, bias, stride, padding, dilation, groups, scaling, form
    )


def activation_name(owner: str, activation: str | None) -> str:
    """The name that the ops have for an activation; refuses (ValueError) one that they do not know."""
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{owner}: activation must be one of {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}"
        )
    return activation or "none"


def check_activation(owner: str, activation: str | None, negative_slope: float) -> None:
    """Refuse an unknown activation (ValueError) or a slope that is not a number (TypeError)."""
    activation_name(owner, activation)
    if not isinstance(negative_slope, Real):
        raise TypeError(f"{owner}: negative_slope must be a number, got {negative_slope!r}")


def add_residual(output: Tensor, residual: Tensor | None) -> Tensor:
    """output + residual, which must have the output's shape (ValueError)."""
    if residual is None:
        return output
    if residual.shape != output.shape:
        raise ValueError(
            f"lora_conv2d: residual must have the output's shape, {list(output.shape)}, "
            f"got {list(residual.shape)}"
        )
    return output + residual


def lora_conv2d_act(
    input: Tensor,
    weight: Tensor,
    lora_up: Tensor,
    lora_down: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    scaling: float = 1.0,
    form: str = "reshape",
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    input2: Tensor | None = None,
) -> Tensor:
    """``activation(lora_conv2d(cat([input, input2], 1), ...)) + residual``, in one kernel if there is one.

    The GPU kernels read the second input in place, and apply bias, activation and residual before they store
    the result: each of these would otherwise be another pass over memory. Through ATen it is the same
    function in several passes. Under ``torch.autocast``, `input2` and `residual` are converted as `input` is.
    Autograd keeps the activation's input besides what :func:`lora_conv2d` keeps, and never the concatenation.

    Args:
        input, weight, lora_up, lora_down, bias, stride, padding, dilation, groups, scaling, form: as in
            :func:`lora_conv2d`; the channels of `input` and `input2` together are Cin.
        activation: None, ``"relu"``, ``"gelu"`` (the exact one, ``F.gelu(x)``) or ``"leaky_relu"``.
        negative_slope: the slope of the leaky ReLU below zero, any number.
        residual: a tensor of the shape, dtype and device of the result, or None.
        input2: a tensor of the shape of `input`, except in its channels, or None.

    Returns:
        As :func:`lora_conv2d`.

    Raises:
        ValueError, TypeError: as for :func:`lora_conv2d`, and for an argument that is not as said above.
    """
    check_tensors("lora_conv2d", weight=weight, lora_up=lora_up, lora_down=lora_down)
    check_input("lora_conv2d", input, weight)
    check_images(residual=residual, input2=input2)
    name = activation_name("lora_conv2d", activation)
    stride = _pair("stride", stride, 1)
    dilation = _pair("dilation", dilation, 1)
    if isinstance(padding, str):
        input, input2, padding = resolve_padding_of_both(input, input2, weight, stride, padding, dilation)
    else:
        padding = _pair("padding", padding, 0)
    args = (input, weight, lora_up, lora_down, bias, stride, padding, dilation, groups, scaling, form)
    if uses_reference():
        return reference.lora_conv2d_act(
            *args, activation=activation, negative_slope=negative_slope, residual=residual, input2=input2
        )
    return _op(*args, input2, residual, name, negative_slope, lora_backend(input, weight))


def check_images(**images: Tensor | None) -> None:
    """Name the first image that is neither a tensor nor absent."""
    for name, image in images.items():
        if image is not None and not isinstance(image, Tensor):
            raise TypeError(f"lora_conv2d: {name} must be a torch.Tensor or None, got {type(image).__name__}")


def resolve_padding_of_both(
    input: Tensor,
    input2: Tensor | None,
    weight: Tensor,
    stride: Sequence[int],
    padding: str,
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor | None, list[int]]:
    """`resolve_padding` for two inputs that count as one image."""
    if input2 is not None:
        input2, _ = resolve_padding(input2, weight, stride, padding, dilation)
    input, pair = resolve_padding(input, weight, stride, padding, dilation)
    return input, input2, pair
