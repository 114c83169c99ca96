"""The CASSI operators and data steps, each in a single pass over the cube."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lorun_kernels import reference
from lorun_kernels._cassi_arguments import accumulator, checked_bands, offsets_of, step_size, with_batch
from lorun_kernels._cassi_vmap import register_vmap_rules
from lorun_kernels._checks import check_tensors
from lorun_kernels._extension import _C  # noqa: F401  (registers torch.ops.lorun)
from lorun_kernels.backends import cassi_backend

_forward_op = torch.ops.lorun.cassi_forward.default
_adjoint_op = torch.ops.lorun.cassi_adjoint.default
_step_op = torch.ops.lorun.cassi_step.default
_step_inplace_op = torch.ops.lorun.cassi_step_.default


@torch.library.register_fake("lorun::cassi_forward")
def _forward_fake(x, mask, offsets, backend):
    return x.new_empty([x.shape[0], x.shape[2], x.shape[3] + max(offsets)])


@torch.library.register_fake("lorun::cassi_adjoint")
def _adjoint_fake(y, mask, offsets, channels_last, backend):
    shape = [y.shape[0], len(offsets), y.shape[1], y.shape[2] - max(offsets)]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=layout)


@torch.library.register_fake("lorun::cassi_mask_grad")
def _mask_grad_fake(x, y, mask_dim, offsets, backend):
    return x.new_empty(x.shape[4 - mask_dim :])


@torch.library.register_fake("lorun::cassi_step")
def _step_fake(x, y, mask, scale, offsets, hqs, backend):
    return torch.empty_like(x)


@torch.library.register_fake("lorun::cassi_step_residual")
def _step_residual_fake(x, y, mask, scale, offsets, hqs, backend):
    return torch.empty_like(x), y.new_empty(y.shape, dtype=accumulator(x.dtype))


@torch.library.register_fake("lorun::cassi_step_")
def _step_inplace_fake(x, y, mask, scale, offsets, hqs, backend):
    return None


@torch.library.register_fake("lorun::cassi_step_backward")
def _step_backward_fake(grad, residual, x, mask, scale, offsets, hqs, output_mask, backend):
    need_x, need_y, need_mask, need_scale = output_mask
    measured = [grad.shape[0], grad.shape[2], grad.shape[3] + max(offsets)]
    return (
        torch.empty_like(grad) if need_x else None,
        grad.new_empty(measured) if need_y else None,
        mask.new_empty(mask.shape) if need_mask else None,
        scale.new_empty(scale.shape) if need_scale else None,
    )


register_vmap_rules()


def cassi_forward(x: Tensor, mask: Tensor, step: reference.Step = 2) -> Tensor:
    """The measurement ``y = Phi x`` of a coded-aperture snapshot: code, disperse, add.

    ``y[b, h, p] = sum_c mask[b, c, h, p - o_c] * x[b, c, h, p - o_c]``, where band c is shifted to the right
    by ``o_c = step * c`` columns (Wagadarikar et al. 2008, "Single disperser design for coded aperture
    snapshot spectral imaging"). One pass over the cube, sums in float32 (float64 for float64).

    Args:
        x: the cube, ``(B, C, H, W)`` or ``(C, H, W)`` with 1 to 256 bands; float32, float64, bfloat16 or
            float16, any values, any strides.
        mask: ``(H, W)``, ``(C, H, W)`` or ``(B, C, H, W)`` in unshifted coordinates, any values, in the dtype
            of `x`. A stored shifted mask (C, H, W') is brought to (C, H, W) by :func:`unshift`.
        step: an int >= 0, or the offsets o_c >= 0 themselves, one integer for each band, as a sequence or a
            tensor; a tensor is read on every call: keep it on the CPU, and give a sequence to a function
            that `torch.compile` sees.

    Returns:
        ``(B, H, W')`` or ``(H, W')`` in the dtype of `x`, with ``W' = W + max(o_c)``.

    Raises:
        ValueError: a shape, device or step that does not fit; the message names it.
        TypeError: an argument that is not a tensor or not floating point, or dtypes that differ outside
            ``torch.autocast`` (inside, the widest wins).

    Differentiable in `x` and `mask` as often as wanted. ``torch.compile(fullgraph=True)``, ``torch.export``
    and ``torch.vmap`` work; ``torch.func.grad`` does not pass through it.
    """
    op = "cassi_forward"
    check_tensors(op, x=x, mask=mask)
    cube = with_batch(op, "x", x)
    offsets = offsets_of(op, step, cube.shape[1])
    backend = cassi_backend(cube)
    if backend == "reference":
        torch.ops.lorun.cassi_check_forward(cube, mask, offsets)
        y = reference.cassi_forward(cube, mask, offsets)
    else:
        y = _forward_op(cube, mask, offsets, backend)
    return y if x.dim() == 4 else y.squeeze(0)


def cassi_adjoint(
    y: Tensor,
    mask: Tensor,
    bands: int,
    step: reference.Step = 2,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """The transpose ``Phi^T y`` of :func:`cassi_forward`: shift back and code.

    ``x[b, c, h, w] = mask[b, c, h, w] * y[b, h, w + o_c]``, in one pass.

    Args:
        y: the measurement, ``(B, H, W')`` or ``(H, W')``; dtypes as in :func:`cassi_forward`.
        mask, step: as in :func:`cassi_forward`.
        bands: the number of bands C, 1 to 256.
        memory_format: the layout of a 4-dimensional result, ``torch.contiguous_format`` or
            ``torch.channels_last``.

    Returns:
        ``(B, C, H, W)`` or ``(C, H, W)`` in the dtype of `y`, with ``W = W' - max(o_c)``.

    Raises:
        ValueError, TypeError: as for :func:`cassi_forward`.

    Differentiable in `y` and `mask` as often as wanted.
    """
    op = "cassi_adjoint"
    check_tensors(op, y=y, mask=mask)
    if y.dim() not in (2, 3):
        raise ValueError(f"{op}: y must be (B, H, W') or (H, W'), got shape {list(y.shape)}")
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(
            f"{op}: memory_format must be torch.contiguous_format or torch.channels_last, got {memory_format}"
        )
    offsets = offsets_of(op, step, checked_bands(op, bands))
    batch = y if y.dim() == 3 else y.unsqueeze(0)
    backend = cassi_backend(batch)
    if backend == "reference":
        torch.ops.lorun.cassi_check_adjoint(batch, mask, offsets)
        x = reference.cassi_adjoint(batch, mask, bands, offsets).contiguous(memory_format=memory_format)
    else:
        x = _adjoint_op(batch, mask, offsets, memory_format == torch.channels_last, backend)
    return x if y.dim() == 3 else x.squeeze(0)


def cassi_gram(mask: Tensor, bands: int, step: reference.Step = 2) -> Tensor:
    """The diagonal of ``Phi Phi^T``, its only entries: the sum of the squared mask values in each pixel.

    Args:
        mask, step: as in :func:`cassi_forward`.
        bands: the number of bands C, 1 to 256; if the mask has bands, their number.

    Returns:
        ``(H, W')``, or ``(B, H, W')`` for a mask of each sample, in the dtype of `mask`.

    Raises:
        ValueError, TypeError: as for :func:`cassi_forward`.
    """
    op = "cassi_gram"
    check_tensors(op, mask=mask)
    if mask.dim() not in (2, 3, 4) or mask.shape[-1] == 0:
        raise ValueError(
            f"{op}: mask must be (H, W), (C, H, W) or (B, C, H, W) with W >= 1, got shape {list(mask.shape)}"
        )
    if not mask.is_floating_point():
        raise TypeError(f"{op}: mask must be floating point, got {mask.dtype}; convert it with .float()")
    offsets = offsets_of(op, step, checked_bands(op, bands))
    if mask.dim() > 2 and mask.shape[-3] != bands:
        raise ValueError(
            f"{op}: bands must be the mask's own, {mask.shape[-3]} for shape {list(mask.shape)}, got {bands}"
        )
    cube = mask.expand(bands, *mask.shape) if mask.dim() == 2 else mask
    return cassi_forward(cube, mask, offsets)


def _step(
    op: str,
    names: tuple[str, str],
    x: Tensor,
    y: Tensor,
    mask: Tensor,
    scale: float | Tensor,
    step: reference.Step,
    hqs: bool,
) -> tuple:
    """The arguments of the op, in its order."""
    cube_name, scale_name = names
    check_tensors(op, **{cube_name: x}, y=y, mask=mask)
    cube = with_batch(op, cube_name, x)
    if y.dim() != x.dim() - 1:
        raise ValueError(
            f"{op}: y must be {'(B, H, W' if x.dim() == 4 else '(H, W'}') for {cube_name} of shape "
            f"{list(x.shape)}, got shape {list(y.shape)}"
        )
    batch = y if x.dim() == 4 else y.unsqueeze(0)
    per_sample = step_size(op, scale_name, scale, cube, 0 if hqs else -math.inf)
    return cube, batch, mask, per_sample, offsets_of(op, step, cube.shape[1]), hqs, cassi_backend(cube)


def cassi_pgd_step(
    x: Tensor, y: Tensor, mask: Tensor, rho: float | Tensor, step: reference.Step = 2
) -> Tensor:
    """The proximal-gradient data step ``x - rho * Phi^T (Phi x - y)``, in one read and one write of the cube.

    Equation 5 of arXiv 2602.18697; Phi is that of :func:`cassi_forward`.

    Args:
        x: the estimate, ``(B, C, H, W)`` or ``(C, H, W)``, as in :func:`cassi_forward`.
        y: the measurement, ``(B, H, W')`` or ``(H, W')``, in the dtype of `x`.
        mask, step: as in :func:`cassi_forward`.
        rho: the step size: a finite float, or a floating-point tensor of one value or of one value per
            sample, ``(B,)`` or ``(B, 1, 1, 1)``.

    Returns:
        The new estimate, in the shape, dtype and layout of `x`.

    Raises:
        ValueError, TypeError: as for :func:`cassi_forward`.

    Differentiable once in every tensor, and twice in `x`, `y` and the incoming gradient. A second-order
    gradient in `mask` or `rho` is an error: a gradient penalty with a learned `rho` asks for the gradients
    that it needs with ``inputs=``. Autograd keeps the mask and, if `rho` or `mask` wants a gradient, the
    residual, which has the measurement's size; it keeps `x` only for a mask that wants one.
    """
    args = _step("cassi_pgd_step", ("x", "rho"), x, y, mask, rho, step, hqs=False)
    out = _reference_step(*args[:6]) if args[-1] == "reference" else _step_op(*args)
    return out if x.dim() == 4 else out.squeeze(0)


def cassi_hqs_step(
    w: Tensor, y: Tensor, mask: Tensor, mu: float | Tensor, step: reference.Step = 2
) -> Tensor:
    """The half-quadratic data step ``(Phi^T Phi + mu I)^-1 (Phi^T y + mu w)``, in closed form and one pass.

    Equation 9 of arXiv 2602.18697. ``Phi Phi^T`` is diagonal, so by Woodbury the step is
    ``w + Phi^T ((y - Phi w) / (diag(Phi Phi^T) + mu))``; a measured pixel that no open mask element reaches
    changes nothing, also for ``mu = 0``.

    Args:
        w: the denoised estimate, ``(B, C, H, W)`` or ``(C, H, W)``, as in :func:`cassi_forward`.
        y, mask, step: as in :func:`cassi_pgd_step`.
        mu: the penalty: a finite float >= 0, or a floating-point tensor of one value or of one value per
            sample, ``(B,)`` or ``(B, 1, 1, 1)``; a tensor's sign is not checked.

    Returns:
        The new estimate, in the shape, dtype and layout of `w`.

    Raises:
        ValueError, TypeError: as for :func:`cassi_forward`.

    Differentiable as :func:`cassi_pgd_step` is.
    """
    args = _step("cassi_hqs_step", ("w", "mu"), w, y, mask, mu, step, hqs=True)
    out = _reference_step(*args[:6]) if args[-1] == "reference" else _step_op(*args)
    return out if w.dim() == 4 else out.squeeze(0)


def cassi_pgd_step_(
    x: Tensor, y: Tensor, mask: Tensor, rho: float | Tensor, step: reference.Step = 2
) -> Tensor:
    """:func:`cassi_pgd_step` in place, for inference: `x` becomes the new estimate, and is returned.

    Raises:
        RuntimeError: autograd would record the call.
        ValueError, TypeError: as for :func:`cassi_pgd_step`, and if `x` is expanded or shares memory with
            another argument. Dtypes must agree inside ``torch.autocast`` too.
    """
    args = _step("cassi_pgd_step_", ("x", "rho"), x, y, mask, rho, step, hqs=False)
    return _in_place(x, args)


def cassi_hqs_step_(
    w: Tensor, y: Tensor, mask: Tensor, mu: float | Tensor, step: reference.Step = 2
) -> Tensor:
    """:func:`cassi_hqs_step` in place, with `w` for `x`, as :func:`cassi_pgd_step_` is; the same errors."""
    args = _step("cassi_hqs_step_", ("w", "mu"), w, y, mask, mu, step, hqs=True)
    return _in_place(w, args)


def _in_place(x: Tensor, args: tuple) -> Tensor:
    if args[-1] != "reference":
        _step_inplace_op(*args)
        return x
    name = "cassi_hqs_step" if args[5] else "cassi_pgd_step"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in args[:4]):
        raise RuntimeError(
            f"{name}_: the in-place step is for inference; call it under torch.no_grad(), or use {name}"
        )
    *arguments, _ = args
    return x.copy_(_reference_step(*arguments, in_place=True).view_as(x))


def _reference_step(
    cube: Tensor,
    y: Tensor,
    mask: Tensor,
    scale: Tensor,
    offsets: list[int],
    hqs: bool,
    *,
    in_place: bool = False,
) -> Tensor:
    torch.ops.lorun.cassi_check_step(cube, y, mask, scale, offsets, hqs, in_place)
    step = reference.cassi_hqs_step if hqs else reference.cassi_pgd_step
    return step(cube, y, mask, scale, offsets)
