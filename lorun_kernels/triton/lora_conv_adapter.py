"""The gradients of the low-rank convolution's adapter in Triton: a reduction over pixels, in splits.

A program sums dW of one row of taps and of a block of input and of output channels over its pixels,
multiplies it by its parts of down and of up, and adds the products: dW never is in memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorun_kernels.triton import lora_depthwise
from lorun_kernels.triton import lora_images as images
from lorun_kernels.triton.lora_images import pixel_tile, pixels_at, tap_source

BLOCK_INNER = 16


@triton.jit
def _sum_weight_grads(
    grad, grad_strides, data, strides, ky, channel, out,
    height, width, out_height, out_width, tiles, tiles_h, tiles_w, split, splits,
    CHANNELS: tl.constexpr, OUT: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PADDING: tl.constexpr, DILATION: tl.constexpr, GRAD_ALIGN: tl.constexpr,
    ALIGN: tl.constexpr, INDEX: tl.constexpr, PRECISION: tl.constexpr, TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
):  # fmt: skip
    """dW of the taps of row ky over one split of the pixels: [channels, outs] each."""
    TAPS: tl.constexpr = KERNEL[1]
    totals = ()
    for _ in tl.static_range(TAPS):
        totals = totals + (tl.zeros([channel.shape[0], out.shape[0]], tl.float32),)  # type: ignore[assignment]
    for tile in range(split, tiles, splits):
        sample, y, x = pixel_tile(tile, tiles_h, tiles_w, TILE_H, TILE_W)
        real = (y < out_height) & (x < out_width)
        at = pixels_at(grad, grad_strides, sample, y, x, out, GRAD_ALIGN, INDEX)
        slope = tl.load(at, mask=real[:, None] & (out < OUT)[None, :], other=0.0)
        sums = ()
        for kx in tl.static_range(TAPS):
            at_y, at_x, exists = tap_source(
                y, x, ky, kx, height, width, STRIDE, PADDING, DILATION, False
            )  # fmt: skip
            at = pixels_at(data, strides, sample, at_y, at_x, channel, ALIGN, INDEX)
            value = tl.load(at, mask=exists[:, None] & (channel < CHANNELS)[None, :], other=0.0)
            product = tl.dot(tl.trans(value), slope, totals[kx], input_precision=PRECISION)
            sums = sums + (product,)  # type: ignore[assignment]
        totals = sums
    return totals


@triton.jit
def _add(to, value, inside, ATOMIC: tl.constexpr):
    """Adds to a result that other programs add to as well, or stores to scratch that no other writes."""
    if ATOMIC:
        tl.atomic_add(to, value, mask=inside, sem="relaxed")
    else:
        tl.store(to, value, mask=inside)


@triton.jit(do_not_specialize=images.SIZES)
def _adapter_kernel(
    grad, grad_strides, data, strides, up, down, grad_up, grad_down, up_part, down_part, scaling,
    height, width, out_height, out_width, tiles, tiles_h, tiles_w, splits,
    FIRST: tl.constexpr, CHANNELS: tl.constexpr, OUT: tl.constexpr, KERNEL: tl.constexpr,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, CHUNKS: tl.constexpr,
    COLUMNS: tl.constexpr, INNER: tl.constexpr, ATOMIC: tl.constexpr, GRAD_ALIGN: tl.constexpr,
    ALIGN: tl.constexpr, INDEX: tl.constexpr, PRECISION: tl.constexpr, FACTOR_PRECISION: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """The image's channels are those of W from FIRST on.

    Without ATOMIC, grad_up and grad_down are scratch, in parts of up_part and down_part elements: one of up
    for each split, row of taps and block of channels, and one of down for each split, block of outputs and
    chunk, so that each element is written once.
    """
    TAPS: tl.constexpr = KERNEL[1]
    split, block = tl.program_id(0), tl.program_id(1)
    ky = block % KERNEL[0]
    channel = block // KERNEL[0] * BLOCK_C + tl.arange(0, BLOCK_C)
    out = tl.program_id(2) * BLOCK_O + tl.arange(0, BLOCK_O)
    totals = _sum_weight_grads(
        grad, grad_strides, data, strides, ky, channel, out,
        height, width, out_height, out_width, tiles, tiles_h, tiles_w, split, splits,
        CHANNELS, OUT, KERNEL, STRIDE, PADDING, DILATION, GRAD_ALIGN, ALIGN, INDEX, PRECISION,
        TILE_H, TILE_W,
    )  # fmt: skip
    if not ATOMIC:
        if grad_up is not None:
            grad_up += (split.to(tl.int64) * tl.num_programs(1) + block) * up_part
        if grad_down is not None:
            grad_down += (split.to(tl.int64) * tl.num_programs(2) + tl.program_id(2)) * CHUNKS * down_part
    for start in range(0, INNER, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        for chunk in range(CHUNKS):
            row = (out * CHUNKS + chunk) * INNER
            inside_up = (out < OUT)[:, None] & (j < INNER)[None, :]
            # [outs, inner]
            left = tl.load(up + row[:, None] + j[None, :], mask=inside_up, other=0.0).to(tl.float32)
            sum_up = tl.zeros([BLOCK_O, BLOCK_J], tl.float32)
            for kx in tl.static_range(TAPS):
                place = ((FIRST + channel) * KERNEL[0] + ky) * KERNEL[1] + kx
                here = (channel < CHANNELS) & (place // COLUMNS == chunk)
                at = (j * COLUMNS)[None, :] + (place % COLUMNS)[:, None]
                inside = here[:, None] & (j < INNER)[None, :]
                if grad_up is not None:
                    # [channels, inner]
                    right = tl.load(down + at, mask=inside, other=0.0).to(tl.float32)
                    sum_up = tl.dot(tl.trans(totals[kx]), right, sum_up, input_precision=FACTOR_PRECISION)
                if grad_down is not None:
                    sum_down = tl.dot(totals[kx], left, input_precision=FACTOR_PRECISION)
                    part = 0 if ATOMIC else chunk * down_part
                    _add(grad_down + part + at, scaling * sum_down, inside, ATOMIC)
            if grad_up is not None:
                _add(grad_up + row[:, None] + j[None, :], scaling * sum_up, inside_up, ATOMIC)


@triton.jit
def _sum_parts_kernel(parts, out, count, elements, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr):
    """Adds the parts to out, always in the same order."""
    element = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    total = tl.zeros([BLOCK_P, BLOCK_E], tl.float32)
    for start in range(0, count, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        at = parts + (part.to(tl.int64) * elements)[:, None] + element[None, :]
        total += tl.load(at, mask=(part < count)[:, None] & (element < elements)[None, :], other=0.0)
    before = tl.load(out + element, mask=element < elements, other=0.0)
    tl.store(out + element, before + tl.sum(total, 0), mask=element < elements)


def _sum_parts(parts: Tensor | None, out: Tensor | None) -> None:
    if out is not None and parts is not None:
        grid = (triton.cdiv(out.numel(), 32),)
        _sum_parts_kernel[grid](parts, out, len(parts), out.numel(), BLOCK_P=32, BLOCK_E=32, num_warps=4)


def _tile(dtype: torch.dtype, kernel_w: int, channels: int, out: int) -> dict:
    """Blocks of dW and of pixels; dW of more than one row of taps does not fit in registers."""
    most = 32 if dtype.itemsize == 2 and kernel_w <= 5 else 16
    return {
        "BLOCK_C": min(max(16, triton.next_power_of_2(channels)), most),
        "BLOCK_O": min(max(16, triton.next_power_of_2(out)), 32),
        "pixels": 64 if dtype.itemsize == 2 else 32,
        "num_warps": 8,
    }


def _launch(
    grad, data, first, lora_up, lora_down, grad_up, grad_down, scaling, tf32, deterministic, geometry
):
    """One input's part of the gradients: its channels are those of W from `first` on."""
    channels, out, dtype = data.shape[1], grad.shape[1], data.dtype
    inner, columns = lora_down.shape
    tile = _tile(dtype, geometry["KERNEL"][1], channels, out)
    tile_h, tile_w = images.tile_shape(*grad.shape[2:], tile.pop("pixels"))
    tiles_h, tiles_w = triton.cdiv(grad.shape[2], tile_h), triton.cdiv(grad.shape[3], tile_w)
    tiles = len(grad) * tiles_h * tiles_w
    blocks = geometry["KERNEL"][0] * triton.cdiv(channels, tile["BLOCK_C"])
    out_blocks = triton.cdiv(out, tile["BLOCK_O"])
    splits = min(tiles, max(1, 2 * images.processors(data.device) // (blocks * out_blocks)))
    chunks = len(lora_up) // out
    parts = grad_up, grad_down
    if deterministic:
        counts = splits * blocks, splits * out_blocks * chunks
        # With two inputs, a part of down also has the other's elements, which add nothing.
        parts = [
            None if result is None else result.new_zeros((count, *result.shape))
            for result, count in zip(parts, counts, strict=True)
        ]
    grad_align, align = images.alignment([grad]), images.alignment([data])
    _adapter_kernel[splits, blocks, out_blocks](
        *images.view(grad, grad_align),
        *images.view(data, align),
        lora_up,
        lora_down,
        *parts,
        lora_up.numel(),
        lora_down.numel(),
        scaling,
        data.shape[2],
        data.shape[3],
        grad.shape[2],
        grad.shape[3],
        tiles,
        tiles_h,
        tiles_w,
        splits,
        FIRST=first,
        CHANNELS=channels,
        OUT=out,
        CHUNKS=chunks,
        COLUMNS=columns,
        INNER=inner,
        ATOMIC=not deterministic,
        GRAD_ALIGN=grad_align,
        ALIGN=align,
        INDEX=images.index([grad, data]),
        PRECISION=images.precision(tf32),
        # TF32 keeps at least as many bits of dW as a 16-bit dtype would.
        FACTOR_PRECISION=images.precision(tf32 or dtype.itemsize == 2),
        TILE_H=tile_h,
        TILE_W=tile_w,
        BLOCK_J=BLOCK_INNER,
        **geometry,
        **tile,
    )
    if deterministic:
        for part, result in zip(parts, (grad_up, grad_down), strict=True):
            _sum_parts(part, result)


def lora_conv2d_grad_adapter(
    grad: Tensor,
    input: Tensor,
    input2: Tensor | None,
    lora_up: Tensor,
    lora_down: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    scaling: float,
    tf32: bool,
    deterministic: bool,
    grad_up: Tensor | None = None,
    grad_down: Tensor | None = None,
) -> None:
    geometry = images.geometry(kernel_size, stride, padding, dilation)
    with torch.cuda.device_of(grad):
        if groups > 1:
            lora_depthwise.grad_adapter(
                grad, input, lora_up, lora_down, grad_up, grad_down, scaling, geometry
            )
            return
        first = 0
        for data in (input, input2):
            if data is not None:
                _launch(
                    *(grad, data, first, lora_up, lora_down, grad_up, grad_down),
                    *(scaling, tf32, deterministic, geometry),
                )
                first += data.shape[1]


_library = images.register(
    {
        "lora_conv2d_grad_adapter(Tensor grad, Tensor input, Tensor? input2, Tensor lora_up, "
        "Tensor lora_down, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, "
        "float scaling, bool tf32, bool deterministic, Tensor(a!)? grad_up, Tensor(b!)? grad_down) -> ()": (
            lora_conv2d_grad_adapter
        )
    }
)
