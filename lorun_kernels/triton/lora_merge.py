"""W = base + scaling * up @ down in Triton: for a layer, for all layers of a stage, for a tap in a kernel;
and the gradients of all factors of a stage.

As a matrix with the columns of down, the adapter's part of W is up @ down, whatever the form and the groups.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorun_kernels.triton import lora_images as images

BLOCK_ROWS = BLOCK_INNER = 16
BLOCK_COLUMNS = 64


@triton.jit
def merged_tap(
    base, up, down, scaling, source, result, ky, kx,
    OUT: tl.constexpr, IN: tl.constexpr, KERNEL: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
    SOURCES: tl.constexpr, RESULTS: tl.constexpr, STRIDES: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """W[result, source] of one tap as [sources, results]; TRANSPOSED: W[source, result]. groups = 1."""
    BLOCK_J: tl.constexpr = 16
    # An output channel's weights are that many rows of up @ down, which a tap crosses channel by channel.
    CHUNKS: tl.constexpr = IN * KERNEL[0] * KERNEL[1] // COLUMNS
    out = source if TRANSPOSED else result
    channel = result if TRANSPOSED else source
    place = (channel * KERNEL[0] + ky) * KERNEL[1] + kx
    column, chunk = place % COLUMNS, place // COLUMNS
    delta = tl.zeros([source.shape[0], result.shape[0]], tl.float32)
    for start in range(0, INNER, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        if TRANSPOSED:
            inside = (j < INNER)[:, None] & (channel < IN)[None, :]
            right = tl.load(down + (j * COLUMNS)[:, None] + column[None, :], mask=inside, other=0.0)
        else:
            inside = (j < INNER)[None, :] & (channel < IN)[:, None]
            right = tl.load(down + (j * COLUMNS)[None, :] + column[:, None], mask=inside, other=0.0)
        for i in tl.static_range(CHUNKS):
            row = (out * CHUNKS + i) * INNER
            if TRANSPOSED:
                inside = (out < OUT)[:, None] & (j < INNER)[None, :]
                left = tl.load(up + row[:, None] + j[None, :], mask=inside, other=0.0)
                part = tl.where((chunk == i)[None, :], right, 0.0)
                delta = tl.dot(left, part, delta, input_precision="ieee")
            else:
                inside = (out < OUT)[None, :] & (j < INNER)[:, None]
                left = tl.load(up + row[None, :] + j[:, None], mask=inside, other=0.0)
                part = tl.where((chunk == i)[:, None], right, 0.0)
                delta = tl.dot(part, left, delta, input_precision="ieee")
    place = (
        (source * STRIDES[0])[:, None] + (result * STRIDES[1])[None, :] + (ky * STRIDES[2] + kx * STRIDES[3])
    )
    inside = (source < SOURCES)[:, None] & (result < RESULTS)[None, :]
    return tl.load(base + place, mask=inside, other=0.0).to(tl.float32) + scaling * delta


@triton.jit
def _merge_tile(
    base, base_strides, up, down, scaling, merged, merged_strides, row, column,
    inner, columns, elements, kernel_w, taps, channels, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Merges the elements at [rows, columns] of the matrix up @ down."""
    delta = tl.zeros([row.shape[0], column.shape[0]], tl.float32)
    for start in range(0, inner, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        inside = (row * columns < elements)[:, None] & (j < inner)[None, :]
        left = tl.load(up + (row * inner)[:, None] + j[None, :], mask=inside, other=0.0)
        inside = (j < inner)[:, None] & (column < columns)[None, :]
        right = tl.load(down + (j * columns)[:, None] + column[None, :], mask=inside, other=0.0)
        delta = tl.dot(left, right, delta, input_precision="ieee")
    f = (row * columns)[:, None] + column[None, :]
    inside = (f < elements) & (column < columns)[None, :]
    tap, channel, out = f % taps, f // taps % channels, f // (taps * channels)
    ky, kx = tap // kernel_w, tap % kernel_w
    at = out * base_strides[0] + channel * base_strides[1] + ky * base_strides[2] + kx * base_strides[3]
    frozen = tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
    at = (
        out * merged_strides[0]
        + channel * merged_strides[1]
        + ky * merged_strides[2]
        + kx * merged_strides[3]
    )
    tl.store(merged + at, frozen + scaling * delta, mask=inside)


@triton.jit
def _merge_kernel(
    base, base_strides, up, down, scaling, merged, merged_strides, inner, columns, elements,
    kernel_w, taps, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    _merge_tile(
        base, base_strides, up, down, scaling, merged, merged_strides, row, column,
        inner, columns, elements, kernel_w, taps, channels, BLOCK_J,
    )  # fmt: skip


@triton.jit
def _merge_stage_kernel(
    table, ups, downs, merged, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_J: tl.constexpr
):
    layer = table + tl.program_id(0) * 16
    base = tl.load(layer).to(tl.pointer_type(ups.dtype.element_ty))
    strides = tl.load(layer + 1), tl.load(layer + 2), tl.load(layer + 3), tl.load(layer + 4)
    inner, columns = tl.load(layer + 5).to(tl.int32), tl.load(layer + 6).to(tl.int32)
    outs, channels = tl.load(layer + 7).to(tl.int32), tl.load(layer + 8).to(tl.int32)
    kernel_h, kernel_w = tl.load(layer + 9).to(tl.int32), tl.load(layer + 10).to(tl.int32)
    scaling = tl.load(layer + 14).to(tl.int32).to(tl.float32, bitcast=True)
    taps = kernel_h * kernel_w
    elements = outs * channels * taps
    across = tl.cdiv(columns, BLOCK_C)
    for tile in range(tl.program_id(1), tl.cdiv(elements // columns, BLOCK_R) * across, tl.num_programs(1)):
        _merge_tile(
            base, strides, ups + tl.load(layer + 11), downs + tl.load(layer + 12), scaling,
            merged + tl.load(layer + 13), (channels * taps, 1, kernel_w * channels, channels),
            tile // across * BLOCK_R + tl.arange(0, BLOCK_R), tile % across * BLOCK_C + tl.arange(0, BLOCK_C),
            inner, columns, elements, kernel_w, taps, channels, BLOCK_J,
        )  # fmt: skip


@triton.jit
def _weight_grad_tile(grad, row, column, columns, elements, taps, channels):
    """d W, which is in channels_last, at [rows, columns] of the matrix up @ down."""
    f = (row * columns)[:, None] + column[None, :]
    inside = (f < elements) & (column < columns)[None, :]
    tap, channel, out = f % taps, f // taps % channels, f // (taps * channels)
    return tl.load(grad + (out * taps + tap) * channels + channel, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _up_rows(
    grad, down, grad_up, row, scaling, rows, columns, inner, taps, channels,
    BLOCK_C: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Some rows of grad_up = scaling * d W @ down^T."""
    for first in range(0, inner, BLOCK_J):
        j = first + tl.arange(0, BLOCK_J)
        total = tl.zeros([row.shape[0], BLOCK_J], tl.float32)
        for start in range(0, columns, BLOCK_C):
            column = start + tl.arange(0, BLOCK_C)
            left = _weight_grad_tile(grad, row, column, columns, rows * columns, taps, channels)
            inside = (column < columns)[:, None] & (j < inner)[None, :]
            right = tl.load(down + column[:, None] + (j * columns)[None, :], mask=inside, other=0.0)
            total = tl.dot(left, right.to(tl.float32), total, input_precision="ieee")
        inside = (row < rows)[:, None] & (j < inner)[None, :]
        tl.store(grad_up + (row * inner)[:, None] + j[None, :], scaling * total, mask=inside)


@triton.jit
def _down_columns(
    grad, up, grad_down, column, scaling, rows, columns, inner, taps, channels,
    BLOCK_R: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Some columns of grad_down = scaling * up^T @ d W."""
    for first in range(0, inner, BLOCK_J):
        j = first + tl.arange(0, BLOCK_J)
        total = tl.zeros([BLOCK_J, column.shape[0]], tl.float32)
        for start in range(0, rows, BLOCK_R):
            row = start + tl.arange(0, BLOCK_R)
            right = _weight_grad_tile(grad, row, column, columns, rows * columns, taps, channels)
            inside = (j < inner)[:, None] & (row < rows)[None, :]
            left = tl.load(up + j[:, None] + (row * inner)[None, :], mask=inside, other=0.0)
            total = tl.dot(left.to(tl.float32), right, total, input_precision="ieee")
        inside = (j < inner)[:, None] & (column < columns)[None, :]
        tl.store(grad_down + (j * columns)[:, None] + column[None, :], scaling * total, mask=inside)


@triton.jit
def _merge_stage_backward_kernel(
    table, ups, downs, grad, grad_ups, grad_downs,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """A program has whole rows of up or whole columns of down: each sum has one owner and one order."""
    layer = table + tl.program_id(0) * 16
    inner, columns = tl.load(layer + 5).to(tl.int32), tl.load(layer + 6).to(tl.int32)
    outs, channels = tl.load(layer + 7).to(tl.int32), tl.load(layer + 8).to(tl.int32)
    taps = (tl.load(layer + 9) * tl.load(layer + 10)).to(tl.int32)
    up_offset, down_offset = tl.load(layer + 11), tl.load(layer + 12)
    grad += tl.load(layer + 13)
    scaling = tl.load(layer + 14).to(tl.int32).to(tl.float32, bitcast=True)
    rows = outs * channels * taps // columns
    part, up_parts = tl.program_id(1), tl.cdiv(rows, BLOCK_R)
    if part < up_parts:
        row = part * BLOCK_R + tl.arange(0, BLOCK_R)
        _up_rows(
            grad, downs + down_offset, grad_ups + up_offset, row,
            scaling, rows, columns, inner, taps, channels, BLOCK_C, BLOCK_J,
        )  # fmt: skip
    elif (part - up_parts) * BLOCK_C < columns:
        column = (part - up_parts) * BLOCK_C + tl.arange(0, BLOCK_C)
        _down_columns(
            grad, ups + up_offset, grad_downs + down_offset, column,
            scaling, rows, columns, inner, taps, channels, BLOCK_R, BLOCK_J,
        )  # fmt: skip


TILE = {"BLOCK_R": BLOCK_ROWS, "BLOCK_C": BLOCK_COLUMNS, "BLOCK_J": BLOCK_INNER, "num_warps": 4}


def lora_merge(weight: Tensor, lora_up: Tensor, lora_down: Tensor, scaling: float, merged: Tensor) -> None:
    inner, columns = lora_down.shape
    kernel_h, kernel_w = weight.shape[2:]
    rows = weight.numel() // columns
    with torch.cuda.device_of(weight):
        _merge_kernel[triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(columns, BLOCK_COLUMNS)](
            weight,
            weight.stride(),
            lora_up,
            lora_down,
            scaling,
            merged,
            merged.stride(),
            inner,
            columns,
            weight.numel(),
            kernel_w,
            kernel_h * kernel_w,
            weight.shape[1],
            **TILE,
        )


def lora_merge_stage(table: Tensor, ups: Tensor, downs: Tensor, elements: int, merged: Tensor) -> None:
    # One program for each full tile of the largest layer; if rows or columns leave tiles half empty, a
    # program takes several.
    programs = triton.cdiv(elements, BLOCK_ROWS * BLOCK_COLUMNS)
    with torch.cuda.device_of(ups):
        _merge_stage_kernel[len(table), programs](table, ups, downs, merged, **TILE)


def lora_merge_stage_backward(
    table: Tensor, ups: Tensor, downs: Tensor, rows: int, columns: int, grad: Tensor,
    grad_ups: Tensor, grad_downs: Tensor,
) -> None:  # fmt: skip
    tile = TILE | {"BLOCK_C": 32}
    parts = triton.cdiv(rows, tile["BLOCK_R"]) + triton.cdiv(columns, tile["BLOCK_C"])
    with torch.cuda.device_of(ups):
        _merge_stage_backward_kernel[len(table), parts](table, ups, downs, grad, grad_ups, grad_downs, **tile)


_library = images.register(
    {
        "lora_merge(Tensor weight, Tensor lora_up, Tensor lora_down, float scaling, "
        "Tensor(a!) merged) -> ()": lora_merge,
        "lora_merge_stage(Tensor table, Tensor ups, Tensor downs, int elements, "
        "Tensor(a!) merged) -> ()": lora_merge_stage,
        "lora_merge_stage_backward(Tensor table, Tensor ups, Tensor downs, int rows, int columns, "
        "Tensor grad, Tensor(a!) grad_ups, Tensor(b!) grad_downs) -> ()": lora_merge_stage_backward,
    }
)
