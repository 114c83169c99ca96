"""The five CASSI kernels in Triton: the formulas of `csrc/common/cassi.h`, as ops of lorun_triton.

A tile that has to sum over the bands lies in measured columns p: band c meets p at column p - o_c of the
cube, and no other p meets that element. So one tile reads each of its elements once, sums, and may write
them in place.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _wide(value):
    """The value in the dtype of a sum."""
    return value if value.dtype == tl.float64 else value.to(tl.float32)


@triton.jit
def _position(height, parts, INDEX):
    """The sample, the row and the part of it that this program owns."""
    program = tl.program_id(0)
    row = (program // parts).to(tl.int64)
    return (program % parts).to(INDEX), row // height, row % height


@triton.jit
def _shifts(band, bands, table, STEP):
    """o_c of a tile's bands, from the table if they are irregular."""
    return tl.load(table + band, mask=band < bands, other=0) if STEP is None else band * STEP


@triton.jit
def _at(data, strides, sample, band, row, column):
    """Pointers into a (B, C, H, W) tensor; sample and row are 64-bit scalars, offsets in a row are INDEX."""
    return data + sample * strides[0] + row * strides[2] + (band * strides[1] + column * strides[3])


@triton.jit
def _at_measured(data, strides, sample, row, column):
    """Pointers into a (B, H, W') tensor."""
    return data + sample * strides[0] + row * strides[1] + column * strides[2]


@triton.jit
def _factor(weight, scale, sample, scale_strides, HQS: tl.constexpr):
    """The factor of the residual: rho, or 1 / (diag(Phi Phi^T) + mu) in pixels that measure anything."""
    factor = tl.load(scale + sample * scale_strides[0])
    if HQS:
        gram = tl.sum(weight * weight, 0)
        factor = tl.where(gram > 0, 1.0 / (gram + factor), 0.0)
    return factor


@triton.jit
def _forward_kernel(
    x, x_strides, mask, mask_strides, y, y_strides, table, height, bands, width, measured, parts,
    STEP: tl.constexpr, INDEX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    part, sample, row = _position(height, parts, INDEX)
    band = tl.arange(0, BLOCK_C)[:, None].to(INDEX)
    p = part * BLOCK_P + tl.arange(0, BLOCK_P)
    # [BLOCK_C, BLOCK_P]
    w = p[None, :] - _shifts(band, bands, table, STEP)
    inside = (band < bands) & (w >= 0) & (w < width)
    value = _wide(tl.load(_at(x, x_strides, sample, band, row, w), mask=inside, other=0.0))
    weight = _wide(tl.load(_at(mask, mask_strides, sample, band, row, w), mask=inside, other=0.0))
    tl.store(_at_measured(y, y_strides, sample, row, p), tl.sum(value * weight, 0), mask=p < measured)


@triton.jit
def _adjoint_kernel(
    y, y_strides, mask, mask_strides, x, x_strides, table, height, bands, width, parts,
    STEP: tl.constexpr, INDEX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    part, sample, row = _position(height, parts, INDEX)
    band = tl.arange(0, BLOCK_C)[:, None].to(INDEX)
    # [1, BLOCK_P]
    w = part * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    inside = (band < bands) & (w < width)
    p = w + _shifts(band, bands, table, STEP)
    value = _wide(tl.load(_at_measured(y, y_strides, sample, row, p), mask=inside, other=0.0))
    weight = _wide(tl.load(_at(mask, mask_strides, sample, band, row, w), mask=inside, other=0.0))
    tl.store(_at(x, x_strides, sample, band, row, w), weight * value, mask=inside)


@triton.jit
def _step_kernel(
    x, x_strides, y, y_strides, mask, mask_strides, scale, scale_strides, out, out_strides,
    residual, residual_strides, table, height, bands, width, measured, parts,
    HQS: tl.constexpr, STEP: tl.constexpr, INDEX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    part, sample, row = _position(height, parts, INDEX)
    band = tl.arange(0, BLOCK_C)[:, None].to(INDEX)
    p = part * BLOCK_P + tl.arange(0, BLOCK_P)
    # [BLOCK_C, BLOCK_P]
    w = p[None, :] - _shifts(band, bands, table, STEP)
    inside = (band < bands) & (w >= 0) & (w < width)
    value = _wide(tl.load(_at(x, x_strides, sample, band, row, w), mask=inside, other=0.0))
    weight = _wide(tl.load(_at(mask, mask_strides, sample, band, row, w), mask=inside, other=0.0))
    seen = _wide(tl.load(_at_measured(y, y_strides, sample, row, p), mask=p < measured, other=0.0))
    difference = tl.sum(value * weight, 0) - seen
    if residual is not None:
        tl.store(_at_measured(residual, residual_strides, sample, row, p), difference, mask=p < measured)
    correction = _factor(weight, scale, sample, scale_strides, HQS) * difference
    tl.store(_at(out, out_strides, sample, band, row, w), value - weight * correction[None, :], mask=inside)


@triton.jit
def _step_backward_kernel(
    grad, grad_strides, residual, residual_strides, mask, mask_strides, scale, scale_strides,
    grad_x, grad_x_strides, grad_y, grad_y_strides, t, t_strides, v, v_strides,
    grad_scale, grad_scale_strides,
    table, height, bands, width, measured, parts,
    HQS: tl.constexpr, STEP: tl.constexpr, INDEX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    part, sample, row = _position(height, parts, INDEX)
    band = tl.arange(0, BLOCK_C)[:, None].to(INDEX)
    if grad_scale is not None:
        total = tl.zeros([BLOCK_P], scale.dtype.element_ty)
    # If grad_scale is wanted, a row has one part, and its program owns the row.
    for start in range(part * BLOCK_P, measured, parts * BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        # [BLOCK_C, BLOCK_P]
        w = p[None, :] - _shifts(band, bands, table, STEP)
        inside = (band < bands) & (w >= 0) & (w < width)
        value = _wide(tl.load(_at(grad, grad_strides, sample, band, row, w), mask=inside, other=0.0))
        weight = _wide(tl.load(_at(mask, mask_strides, sample, band, row, w), mask=inside, other=0.0))
        # u = Phi grad, t = factor * residual, v = factor * u
        u = tl.sum(value * weight, 0)
        factor = _factor(weight, scale, sample, scale_strides, HQS)
        if grad_x is not None:
            tl.store(
                _at(grad_x, grad_x_strides, sample, band, row, w),
                value - weight * (factor * u)[None, :],
                mask=inside,
            )
        if grad_y is not None:
            tl.store(_at_measured(grad_y, grad_y_strides, sample, row, p), factor * u, mask=p < measured)
        if residual is not None:
            at = _at_measured(residual, residual_strides, sample, row, p)
            difference = tl.load(at, mask=p < measured, other=0.0)
            if t is not None:
                tl.store(_at_measured(t, t_strides, sample, row, p), factor * difference, mask=p < measured)
                tl.store(_at_measured(v, v_strides, sample, row, p), factor * u, mask=p < measured)
            if grad_scale is not None:
                total += (factor * difference) * (factor * u) if HQS else -difference * u
    if grad_scale is not None:
        tl.store(grad_scale + sample * grad_scale_strides[0] + row * grad_scale_strides[1], tl.sum(total, 0))


@triton.jit
def _mask_grad_kernel(
    grad, grad_strides, x, x_strides, mask, mask_strides, t, t_strides, v, v_strides, out, out_strides,
    table, batch, height, bands, width, parts,
    HQS: tl.constexpr, SUM_BATCH: tl.constexpr, SUM_BANDS: tl.constexpr,
    STEP: tl.constexpr, INDEX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    part, first, row = _position(height, parts, INDEX)
    band = tl.arange(0, BLOCK_C)[:, None].to(INDEX)
    # [1, BLOCK_P]
    w = part * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    inside = (band < bands) & (w < width)
    p = w + _shifts(band, bands, table, STEP)
    total = tl.zeros([BLOCK_C, BLOCK_P], out.dtype.element_ty)
    for sample in range(first, batch if SUM_BATCH else first + 1):
        value = _wide(tl.load(_at(x, x_strides, sample, band, row, w), mask=inside, other=0.0))
        v_at = _wide(tl.load(_at_measured(v, v_strides, sample, row, p), mask=inside, other=0.0))
        if grad is None:
            total += value * v_at
        else:
            slope = _wide(tl.load(_at(grad, grad_strides, sample, band, row, w), mask=inside, other=0.0))
            t_at = tl.load(_at_measured(t, t_strides, sample, row, p), mask=inside, other=0.0)
            total -= slope * t_at + value * v_at
            if HQS:
                at = _at(mask, mask_strides, sample, band, row, w)
                total += 2.0 * _wide(tl.load(at, mask=inside, other=0.0)) * t_at * v_at
    if SUM_BANDS:
        column = part * BLOCK_P + tl.arange(0, BLOCK_P)
        at = out + first * out_strides[0] + row * out_strides[2] + column * out_strides[3]
        tl.store(at, tl.sum(total, 0), mask=column < width)
    else:
        tl.store(_at(out, out_strides, first, band, row, w), total, mask=inside)


@functools.lru_cache(maxsize=64)
def _device_table(offsets: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(offsets, dtype=torch.int32, device=device)


def _shift(offsets: list[int], device: torch.device) -> dict:
    """STEP, a constant with which loads can be vectorised, or the table of offsets."""
    step = offsets[1] if len(offsets) > 1 else offsets[0]
    if all(offset == step * band for band, offset in enumerate(offsets)):
        return {"STEP": step, "table": None}
    return {"STEP": None, "table": _device_table(tuple(offsets), device)}


def _tile(bands: int, columns: int) -> dict:
    """All bands and a power of two of columns: 2048 elements, 8 a thread, if that leaves 16 columns."""
    block_c = triton.next_power_of_2(bands)
    block_p = min(max(2048 // block_c, 16), 256, triton.next_power_of_2(columns))
    warps = min(max(block_c * block_p // 256, 1), 16)
    return {"BLOCK_C": block_c, "BLOCK_P": block_p, "num_warps": warps}


def _index(tensors: list[Tensor | None]) -> tl.dtype:
    """The integer type for an element's offset in a row, over all bands; 32 bits save registers."""
    reach = max(
        (tensor.shape[1] - 1) * tensor.stride(1) + (tensor.shape[-1] - 1) * tensor.stride(-1)
        for tensor in tensors
        if tensor is not None and tensor.dim() > 2
    )
    return tl.int32 if reach < 2**31 else tl.int64


def _view(tensor: Tensor | None) -> tuple:
    return (None, None) if tensor is None else (tensor, tensor.stride())


def _launch(kernel, samples: int, cube: Tensor, tensors: list[Tensor | None], offsets: list[int], **options):
    """Start `kernel` over all rows of `samples` samples; a kernel that takes W' tiles the measurement."""
    _, bands, height, width = cube.shape
    columns = options.get("measured", width)
    tile = _tile(bands, columns)
    parts = options.pop("parts", triton.cdiv(columns, tile["BLOCK_P"]))
    views = [part for tensor in tensors for part in _view(tensor)]
    with torch.cuda.device_of(cube):
        kernel[(samples * height * parts,)](
            *views,
            height=height,
            bands=bands,
            width=width,
            parts=parts,
            INDEX=_index(tensors),
            **_shift(offsets, cube.device),
            **tile,
            **options,
        )


def cassi_forward(x: Tensor, mask: Tensor, offsets: list[int], y: Tensor) -> None:
    _launch(_forward_kernel, len(x), x, [x, mask, y], offsets, measured=y.shape[-1])


def cassi_adjoint(y: Tensor, mask: Tensor, offsets: list[int], x: Tensor) -> None:
    _launch(_adjoint_kernel, len(x), x, [y, mask, x], offsets)


def cassi_step(
    x: Tensor,
    y: Tensor,
    mask: Tensor,
    scale: Tensor,
    offsets: list[int],
    hqs: bool,
    out: Tensor,
    residual: Tensor | None = None,
) -> None:
    tensors = [x, y, mask, scale, out, residual]
    _launch(_step_kernel, len(x), x, tensors, offsets, measured=y.shape[-1], HQS=hqs)


def _sum_mask_grad(grad, x, mask, t, v, grad_mask, offsets, hqs) -> None:
    sum_batch, sum_bands = (stride == 0 for stride in grad_mask.stride()[:2])
    _launch(
        _mask_grad_kernel,
        1 if sum_batch else len(x),
        x,
        [grad, x, mask, t, v, grad_mask],
        offsets,
        batch=len(x),
        HQS=hqs,
        SUM_BATCH=sum_batch,
        SUM_BANDS=sum_bands,
    )


def cassi_mask_grad(x: Tensor, y: Tensor, offsets: list[int], grad_mask: Tensor) -> None:
    _sum_mask_grad(None, x, None, None, y, grad_mask, offsets, hqs=False)


def cassi_step_backward(
    grad: Tensor,
    residual: Tensor | None,
    x: Tensor | None,
    mask: Tensor,
    scale: Tensor,
    offsets: list[int],
    hqs: bool,
    grad_x: Tensor | None = None,
    grad_y: Tensor | None = None,
    grad_mask: Tensor | None = None,
    grad_scale: Tensor | None = None,
) -> None:
    measured = grad.shape[-1] + max(offsets)
    t, v = None, None
    # The gradient of a mask that all bands share sums across tiles, so t and v go through memory.
    if grad_mask is not None:
        t, v = scale.new_empty((2, *grad.shape[::2], measured))
    options = {"measured": measured, "HQS": hqs}
    if grad_scale is not None:
        options["parts"] = 1
    tensors = [grad, residual, mask, scale, grad_x, grad_y, t, v, grad_scale]
    _launch(_step_backward_kernel, len(grad), grad, tensors, offsets, **options)
    if grad_mask is not None:
        _sum_mask_grad(grad, x, mask, t, v, grad_mask, offsets, hqs)


_library = torch.library.Library("lorun_triton", "DEF")
for _schema, _launcher in {
    "cassi_forward(Tensor x, Tensor mask, int[] offsets, Tensor(a!) y) -> ()": cassi_forward,
    "cassi_adjoint(Tensor y, Tensor mask, int[] offsets, Tensor(a!) x) -> ()": cassi_adjoint,
    "cassi_mask_grad(Tensor x, Tensor y, int[] offsets, Tensor(a!) grad_mask) -> ()": cassi_mask_grad,
    "cassi_step(Tensor x, Tensor y, Tensor mask, Tensor scale, int[] offsets, bool hqs, Tensor(a!) out, "
    "Tensor(b!)? residual) -> ()": cassi_step,
    "cassi_step_backward(Tensor grad, Tensor? residual, Tensor? x, Tensor mask, Tensor scale, int[] offsets, "
    "bool hqs, Tensor(a!)? grad_x, Tensor(b!)? grad_y, Tensor(c!)? grad_mask, Tensor(d!)? grad_scale) "
    "-> ()": cassi_step_backward,
}.items():
    _library.define(_schema)
    for _key in ("CUDA", "CPU"):
        _library.impl(_schema.split("(")[0], _launcher, _key)
