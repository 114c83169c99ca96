"""The depthwise low-rank convolution in Triton: forward, and the gradients of its input and its adapter.

A channel is one output and one input, so that nothing is a matrix product but up @ down, and W is smaller
than the adapter of Eq. 4. The sums of dW therefore go through memory, one for each split of the pixels, and
are added in a fixed order.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorun_kernels.triton import lora_images as images
from lorun_kernels.triton.lora_epilogue import finish
from lorun_kernels.triton.lora_images import pixel_tile, pixels_at, tap_source

BLOCK_CHANNELS = 32
BLOCK_INNER = 16


@triton.jit
def _merged_taps(
    weight, up, down, scaling, channel,
    CHANNELS: tl.constexpr, WEIGHT_STRIDES: tl.constexpr, KERNEL: tl.constexpr, COLUMNS: tl.constexpr,
    INNER: tl.constexpr, BLOCK_J: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """W of every tap, rounded to DTYPE as in the definition, [channels] each."""
    taps = ()
    for tap in tl.static_range(KERNEL[0] * KERNEL[1]):
        place = channel * WEIGHT_STRIDES[0]
        place += tap // KERNEL[1] * WEIGHT_STRIDES[2] + tap % KERNEL[1] * WEIGHT_STRIDES[3]
        merged = tl.load(weight + place, mask=channel < CHANNELS, other=0.0).to(tl.float32)
        if up is not None:
            f = channel * (KERNEL[0] * KERNEL[1]) + tap
            row, column = f // COLUMNS, f % COLUMNS
            delta = tl.zeros([channel.shape[0]], tl.float32)
            for start in range(0, INNER, BLOCK_J):
                j = start + tl.arange(0, BLOCK_J)
                inside = (channel < CHANNELS)[:, None] & (j < INNER)[None, :]
                left = tl.load(up + (row * INNER)[:, None] + j[None, :], mask=inside, other=0.0)
                right = tl.load(down + (j * COLUMNS)[None, :] + column[:, None], mask=inside, other=0.0)
                delta += tl.sum(left.to(tl.float32) * right.to(tl.float32), 1)
            merged += scaling * delta
        taps = taps + (merged.to(DTYPE).to(tl.float32),)  # type: ignore[assignment]
    return taps


@triton.jit(do_not_specialize=images.SIZES)
def _depthwise_kernel(
    data, strides, weight, up, down, bias,
    residual, residual_strides, preactivation, preactivation_strides, output, output_strides,
    scaling, slope, height, width, out_height, out_width, tiles, tiles_h, tiles_w,
    CHANNELS: tl.constexpr, WEIGHT_STRIDES: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PADDING: tl.constexpr, DILATION: tl.constexpr, TRANSPOSED: tl.constexpr, ACTIVATION: tl.constexpr,
    COLUMNS: tl.constexpr, INNER: tl.constexpr, ALIGN: tl.constexpr, OUT_ALIGN: tl.constexpr,
    INDEX: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Merges W of its block of channels once and walks over tiles of pixels."""
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    taps = _merged_taps(
        weight, up, down, scaling, channel, CHANNELS, WEIGHT_STRIDES, KERNEL, COLUMNS, INNER, BLOCK_J,
        data.dtype.element_ty,
    )  # fmt: skip
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        sample, y, x = pixel_tile(tile, tiles_h, tiles_w, TILE_H, TILE_W)
        total = tl.zeros([TILE_H * TILE_W, BLOCK_C], tl.float32)
        for tap in tl.static_range(KERNEL[0] * KERNEL[1]):
            at_y, at_x, exists = tap_source(
                y, x, tap // KERNEL[1], tap % KERNEL[1], height, width, STRIDE, PADDING, DILATION, TRANSPOSED
            )
            at = pixels_at(data, strides, sample, at_y, at_x, channel, ALIGN, INDEX)
            value = tl.load(at, mask=exists[:, None] & (channel < CHANNELS)[None, :], other=0.0)
            total += value.to(tl.float32) * taps[tap][None, :]
        finish(
            total, bias, residual, residual_strides, preactivation, preactivation_strides,
            output, output_strides, None, None, slope, sample, y, x, channel, out_height, out_width,
            ACTIVATION, CHANNELS, 0, OUT_ALIGN, INDEX,
        )  # fmt: skip


@triton.jit(do_not_specialize=images.SIZES)
def _weight_sums_kernel(
    grad, grad_strides, data, strides, sums,
    height, width, out_height, out_width, tiles, tiles_h, tiles_w,
    CHANNELS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    DILATION: tl.constexpr, GRAD_ALIGN: tl.constexpr, ALIGN: tl.constexpr, INDEX: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Stores dW of a tap and a block of channels, over a split of pixels, in sums[split, tap, channel]."""
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1]
    tap, split = tl.program_id(0) % TAPS, tl.program_id(0) // TAPS
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (channel < CHANNELS)[None, :]
    total = tl.zeros([TILE_H * TILE_W, BLOCK_C], tl.float32)
    for tile in range(split, tiles, tl.num_programs(0) // TAPS):
        sample, y, x = pixel_tile(tile, tiles_h, tiles_w, TILE_H, TILE_W)
        at_y, at_x, exists = tap_source(
            y, x, tap // KERNEL[1], tap % KERNEL[1], height, width, STRIDE, PADDING, DILATION, False
        )
        exists = exists & (y < out_height) & (x < out_width)
        at = pixels_at(grad, grad_strides, sample, y, x, channel, GRAD_ALIGN, INDEX)
        slope = tl.load(at, mask=exists[:, None] & inside, other=0.0).to(tl.float32)
        at = pixels_at(data, strides, sample, at_y, at_x, channel, ALIGN, INDEX)
        total += slope * tl.load(at, mask=exists[:, None] & inside, other=0.0).to(tl.float32)
    at = sums + (split * TAPS + tap) * CHANNELS + channel
    tl.store(at, tl.sum(total, 0), mask=channel < CHANNELS)


@triton.jit
def _factor_grad_kernel(
    sums, factor, out, scaling, splits, lines, length, line_step, place_step, inner,
    factor_line, factor_inner, out_line, out_inner,
    CHANNELS: tl.constexpr, TAPS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_J: tl.constexpr,
):  # fmt: skip
    """out[line, j] += scaling * sum over places of dW[line, place] * factor[place, j], for one line of dW.

    dW is a matrix with the columns of down: its lines are rows for the gradient of up, columns for down's.
    """
    j = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    total = tl.zeros([BLOCK_J], tl.float32)
    for start in range(0, length, BLOCK_P):
        place = start + tl.arange(0, BLOCK_P)
        f = tl.program_id(0) * line_step + place * place_step
        parts = tl.zeros([BLOCK_S, BLOCK_P], tl.float32)
        for first in range(0, splits, BLOCK_S):
            split = first + tl.arange(0, BLOCK_S)
            at = sums + (split * (TAPS * CHANNELS))[:, None] + (f % TAPS * CHANNELS + f // TAPS)[None, :]
            parts += tl.load(at, mask=(split < splits)[:, None] & (place < length)[None, :], other=0.0)
        weight_grad = tl.sum(parts, 0)
        at = factor + (place * factor_line)[:, None] + (j * factor_inner)[None, :]
        other = tl.load(at, mask=(place < length)[:, None] & (j < inner)[None, :], other=0.0).to(tl.float32)
        total += tl.sum(weight_grad[:, None] * other, 0)
    at = out + tl.program_id(0) * out_line + j * out_inner
    tl.store(at, tl.load(at, mask=j < inner, other=0.0) + scaling * total, mask=j < inner)


def _tile(height: int, width: int, channels: int) -> tuple[dict, int, int]:
    """A tile of 64 pixels, and the numbers of tiles down and across an image."""
    tile_h, tile_w = images.tile_shape(height, width, 64)
    tile = {
        "TILE_H": tile_h,
        "TILE_W": tile_w,
        "BLOCK_C": min(BLOCK_CHANNELS, triton.next_power_of_2(channels)),
    }
    return tile, triton.cdiv(height, tile_h), triton.cdiv(width, tile_w)


def conv(
    data: Tensor,
    weight: Tensor,
    lora_up: Tensor | None,
    lora_down: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    output: Tensor,
    preactivation: Tensor | None,
    scaling: float,
    activation: str,
    slope: float,
    transposed: bool,
    geometry: dict,
) -> None:
    """The convolution of `data` or, if `transposed`, the gradient of its input from `data`, the output's."""
    channels = data.shape[1]
    tile, tiles_h, tiles_w = _tile(output.shape[2], output.shape[3], channels)
    tiles = len(output) * tiles_h * tiles_w
    stored = [residual, preactivation, output]
    align, out_align = images.alignment([data]), images.alignment(stored)
    inner, columns = (None, None) if lora_down is None else lora_down.shape
    _depthwise_kernel[min(tiles, 8 * images.processors(data.device)), triton.cdiv(channels, tile["BLOCK_C"])](
        *images.view(data, align),
        weight,
        lora_up,
        lora_down,
        bias,
        *(part for image in stored for part in images.view(image, out_align)),
        scaling=scaling,
        slope=slope,
        height=data.shape[2],
        width=data.shape[3],
        out_height=output.shape[2],
        out_width=output.shape[3],
        tiles=tiles,
        tiles_h=tiles_h,
        tiles_w=tiles_w,
        CHANNELS=channels,
        WEIGHT_STRIDES=weight.stride(),
        TRANSPOSED=transposed,
        ACTIVATION=activation,
        COLUMNS=columns,
        INNER=inner,
        ALIGN=align,
        OUT_ALIGN=out_align,
        INDEX=images.index([data, *stored]),
        BLOCK_J=BLOCK_INNER,
        num_warps=4,
        **geometry,
        **tile,
    )


def grad_adapter(
    grad: Tensor,
    data: Tensor,
    lora_up: Tensor,
    lora_down: Tensor,
    grad_up: Tensor | None,
    grad_down: Tensor | None,
    scaling: float,
    geometry: dict,
) -> None:
    """Adds to the adapter's gradients, always in the same order."""
    channels, taps = data.shape[1], math.prod(geometry["KERNEL"])
    tile, tiles_h, tiles_w = _tile(grad.shape[2], grad.shape[3], channels)
    tiles, blocks = len(grad) * tiles_h * tiles_w, triton.cdiv(channels, tile["BLOCK_C"])
    splits = min(tiles, max(1, 4 * images.processors(data.device) // (taps * blocks)))
    sums = torch.empty((splits, taps, channels), dtype=torch.float32, device=data.device)
    grad_align, align = images.alignment([grad]), images.alignment([data])
    _weight_sums_kernel[splits * taps, blocks](
        *images.view(grad, grad_align),
        *images.view(data, align),
        sums,
        data.shape[2],
        data.shape[3],
        grad.shape[2],
        grad.shape[3],
        tiles,
        tiles_h,
        tiles_w,
        CHANNELS=channels,
        GRAD_ALIGN=grad_align,
        ALIGN=align,
        INDEX=images.index([grad, data]),
        num_warps=4,
        **geometry,
        **tile,
    )
    inner, columns = lora_down.shape
    rows = len(lora_up)
    # out, the other factor, lines and places of dW, their steps, and steps of both factors by line and j
    for out, factor, *steps in (
        (grad_up, lora_down, rows, columns, columns, 1, inner, 1, columns, inner, 1),
        (grad_down, lora_up, columns, rows, 1, columns, inner, inner, 1, 1, columns),
    ):
        if out is not None:
            _factor_grad_kernel[steps[0], triton.cdiv(inner, BLOCK_INNER)](
                *(sums, factor, out, scaling, splits, *steps),
                CHANNELS=channels,
                TAPS=taps,
                BLOCK_S=16,
                BLOCK_P=64,
                BLOCK_J=BLOCK_INNER,
                num_warps=2,
            )
