"""torch.vmap for the CASSI ops: the mapped dimension joins the batch, so that a call stays one pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lorun_kernels._vmap import loop_rule

_ops = torch.ops.lorun


def _folded(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """(V * B, ...) from a tensor whose dimension `dim` is mapped, or from one that all V calls share."""
    tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.flatten(0, 1)


def _folded_mask(mask: Tensor, dim: int | None, cube: tuple[int, ...], size: int) -> Tensor:
    """A mask for the folded batch; `cube` is (B, C, H, W), of one call."""
    mapped = mask if dim is None else mask.movedim(dim, 0)
    shape = mapped.shape if dim is None else mapped.shape[1:]
    if not 2 <= len(shape) <= 4 or shape != torch.Size(cube[4 - len(shape) :]):
        raise ValueError(
            f"cassi under torch.vmap: mask must be (H, W), (C, H, W) or (B, C, H, W) in each call, where "
            f"(B, C, H, W) = {list(cube)}, got shape {list(shape)}"
        )
    if dim is None:
        return mask if len(shape) < 4 else _folded(mask, None, size)
    full = mapped.reshape(size, *[1] * (4 - len(shape)), *shape)
    return full.expand(size, *cube).flatten(0, 1)


def _folded_scale(scale: Tensor, dim: int | None, batch: int, size: int) -> Tensor:
    if dim is None and scale.dim() == 0:
        return scale
    mapped = scale.expand(size, *scale.shape) if dim is None else scale.movedim(dim, 0)
    if mapped.shape[1:] not in (torch.Size(), torch.Size([batch])):
        raise ValueError(
            f"cassi under torch.vmap: rho or mu must be one value or one for each of the {batch} samples in "
            f"each call, got shape {list(mapped.shape[1:])}"
        )
    return mapped.reshape(size, -1).expand(size, batch).flatten()


def _forward(info, in_dims, x, mask, offsets, backend):
    size = info.batch_size
    cube = _folded(x, in_dims[0], size)
    shape = (cube.shape[0] // size, *cube.shape[1:])
    mask = _folded_mask(mask, in_dims[1], shape, size)
    return _ops.cassi_forward(cube, mask, offsets, backend).unflatten(0, (size, shape[0])), 0


def _adjoint(info, in_dims, y, mask, offsets, channels_last, backend):
    size = info.batch_size
    batch = _folded(y, in_dims[0], size)
    shape = (batch.shape[0] // size, len(offsets), batch.shape[1], batch.shape[2] - max(offsets))
    mask = _folded_mask(mask, in_dims[1], shape, size)
    return _ops.cassi_adjoint(batch, mask, offsets, channels_last, backend).unflatten(0, (size, shape[0])), 0


def _step_arguments(info, in_dims, x, y, mask, scale):
    size = info.batch_size
    cube = _folded(x, in_dims[0], size)
    shape = (cube.shape[0] // size, *cube.shape[1:])
    return (
        cube,
        _folded(y, in_dims[1], size),
        _folded_mask(mask, in_dims[2], shape, size),
        _folded_scale(scale, in_dims[3], shape[0], size),
    ), (size, shape[0])


def _step(info, in_dims, x, y, mask, scale, *options):
    arguments, sizes = _step_arguments(info, in_dims, x, y, mask, scale)
    return _ops.cassi_step(*arguments, *options).unflatten(0, sizes), 0


def _step_residual(info, in_dims, x, y, mask, scale, *options):
    arguments, sizes = _step_arguments(info, in_dims, x, y, mask, scale)
    out, residual = _ops.cassi_step_residual(*arguments, *options)
    return (out.unflatten(0, sizes), residual.unflatten(0, sizes)), (0, 0)


def _step_inplace(info, in_dims, x, y, mask, scale, *options):
    if in_dims[0] is None:
        raise RuntimeError("vmap: an in-place CASSI step of a cube that is not mapped cannot hold V results")
    # Folding may copy a cube whose mapped dimension is not the first, so each sample is stepped in place.
    for index, sample in enumerate(x.unbind(in_dims[0])):
        others = zip((y, mask, scale), in_dims[1:4], strict=True)
        _ops.cassi_step_(sample, *[t if d is None else t.select(d, index) for t, d in others], *options)
    return None, None


def register_vmap_rules() -> None:
    rules: dict[str, Callable] = {
        "cassi_forward": _forward,
        "cassi_adjoint": _adjoint,
        "cassi_mask_grad": loop_rule(_ops.cassi_mask_grad.default),
        "cassi_step": _step,
        "cassi_step_residual": _step_residual,
        "cassi_step_": _step_inplace,
        "cassi_step_backward": loop_rule(_ops.cassi_step_backward.default),
    }
    for name, rule in rules.items():
        torch.library.register_vmap(f"lorun::{name}", rule)
