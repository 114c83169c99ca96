"""The low-rank convolution in Triton, and the gradient of its inputs: an implicit product over pixels.

Both are results[pixel, r] = sum over taps and s of sources[pixel at the tap, s] * W[tap, s, r]; the gradient
has input and output channels swapped and its taps TRANSPOSED. Depthwise layers are in lora_depthwise.py.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorun_kernels.triton import lora_depthwise
from lorun_kernels.triton import lora_images as images
from lorun_kernels.triton.lora_epilogue import finish
from lorun_kernels.triton.lora_images import pixel_tile, pixels_at, tap_source
from lorun_kernels.triton.lora_merge import lora_merge, merged_tap


@triton.jit
def _add_products(
    total, data, strides, weight, sample, y, x, height, width, result,
    FIRST: tl.constexpr, SOURCES: tl.constexpr, RESULTS: tl.constexpr, WEIGHT_STRIDES: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    TRANSPOSED: tl.constexpr, BLOCK_S: tl.constexpr, ALIGN: tl.constexpr, INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the products of one image with its channels of W, from FIRST on; each tile reads W again."""
    BLOCKS: tl.constexpr = (SOURCES + BLOCK_S - 1) // BLOCK_S
    for step in range(KERNEL[0] * KERNEL[1] * BLOCKS):
        tap = step // BLOCKS
        ky, kx = tap // KERNEL[1], tap % KERNEL[1]
        source = step % BLOCKS * BLOCK_S + tl.arange(0, BLOCK_S)
        at_y, at_x, exists = tap_source(
            y, x, ky, kx, height, width, STRIDE, PADDING, DILATION, TRANSPOSED
        )  # fmt: skip
        at = pixels_at(data, strides, sample, at_y, at_x, source, ALIGN, INDEX)
        value = tl.load(at, mask=exists[:, None] & (source < SOURCES)[None, :], other=0.0)
        place = ((FIRST + source) * WEIGHT_STRIDES[0])[:, None] + (result * WEIGHT_STRIDES[1])[None, :]
        place += ky * WEIGHT_STRIDES[2] + kx * WEIGHT_STRIDES[3]
        inside = (source < SOURCES)[:, None] & (result < RESULTS)[None, :]
        factor = tl.load(weight + place, mask=inside, other=0.0).to(value.dtype)
        total = tl.dot(value, factor, total, input_precision=PRECISION)
    return total


@triton.jit(do_not_specialize=images.SIZES)
def _conv_kernel(
    data, strides, data2, strides2, weight, bias,
    residual, residual_strides, preactivation, preactivation_strides,
    output, output_strides, output2, output2_strides,
    slope, height, width, out_height, out_width, tiles_h, tiles_w,
    SOURCES: tl.constexpr, SOURCES2: tl.constexpr, RESULTS: tl.constexpr, RESULTS2: tl.constexpr,
    WEIGHT_STRIDES: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    DILATION: tl.constexpr, TRANSPOSED: tl.constexpr, ACTIVATION: tl.constexpr,
    ALIGN: tl.constexpr, OUT_ALIGN: tl.constexpr, INDEX: tl.constexpr, PRECISION: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """A program has one tile of pixels and one block of results; W is read tap by tap."""
    BLOCKS: tl.constexpr = (RESULTS + RESULTS2 + BLOCK_R - 1) // BLOCK_R
    sample, y, x = pixel_tile(tl.program_id(0) // BLOCKS, tiles_h, tiles_w, TILE_H, TILE_W)
    result = tl.program_id(0) % BLOCKS * BLOCK_R + tl.arange(0, BLOCK_R)
    total = tl.zeros([TILE_H * TILE_W, BLOCK_R], tl.float32)
    total = _add_products(
        total, data, strides, weight, sample, y, x, height, width, result,
        0, SOURCES, RESULTS + RESULTS2, WEIGHT_STRIDES, KERNEL, STRIDE, PADDING, DILATION, TRANSPOSED,
        BLOCK_S, ALIGN, INDEX, PRECISION,
    )  # fmt: skip
    if data2 is not None:
        total = _add_products(
            total, data2, strides2, weight, sample, y, x, height, width, result,
            SOURCES, SOURCES2, RESULTS + RESULTS2, WEIGHT_STRIDES, KERNEL, STRIDE, PADDING, DILATION,
            TRANSPOSED, BLOCK_S, ALIGN, INDEX, PRECISION,
        )  # fmt: skip
    finish(
        total, bias, residual, residual_strides, preactivation, preactivation_strides,
        output, output_strides, output2, output2_strides, slope, sample, y, x, result, out_height, out_width,
        ACTIVATION, RESULTS, RESULTS2, OUT_ALIGN, INDEX,
    )  # fmt: skip


@triton.jit
def _merged_taps(
    weight, up, down, scaling, result,
    SOURCES: tl.constexpr, RESULTS: tl.constexpr, WEIGHT_STRIDES: tl.constexpr, KERNEL: tl.constexpr,
    TRANSPOSED: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, BLOCK_S: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Merged W of every tap, [sources, results] each."""
    source = tl.arange(0, BLOCK_S)
    OUT: tl.constexpr = SOURCES if TRANSPOSED else RESULTS
    IN: tl.constexpr = RESULTS if TRANSPOSED else SOURCES
    taps = ()
    for tap in tl.static_range(KERNEL[0] * KERNEL[1]):
        merged = merged_tap(
            weight, up, down, scaling, source, result, tap // KERNEL[1], tap % KERNEL[1],
            OUT, IN, KERNEL, COLUMNS, INNER, SOURCES, RESULTS, WEIGHT_STRIDES, TRANSPOSED,
        )  # fmt: skip
        taps = taps + (merged.to(DTYPE),)  # type: ignore[assignment]
    return taps


@triton.jit(do_not_specialize=images.SIZES)
def _stationary_kernel(
    data, strides, weight, up, down, bias,
    residual, residual_strides, preactivation, preactivation_strides,
    output, output_strides, output2, output2_strides,
    scaling, slope, height, width, out_height, out_width, tiles, tiles_h, tiles_w,
    SOURCES: tl.constexpr, RESULTS: tl.constexpr, RESULTS2: tl.constexpr,
    WEIGHT_STRIDES: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    DILATION: tl.constexpr, TRANSPOSED: tl.constexpr, ACTIVATION: tl.constexpr,
    COLUMNS: tl.constexpr, INNER: tl.constexpr,
    ALIGN: tl.constexpr, OUT_ALIGN: tl.constexpr, INDEX: tl.constexpr, STAGES: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Merges W of its block of results once, keeps it, and walks over tiles of pixels."""
    result = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    taps = _merged_taps(
        weight, up, down, scaling, result, SOURCES, RESULTS + RESULTS2, WEIGHT_STRIDES, KERNEL, TRANSPOSED,
        COLUMNS, INNER, BLOCK_S, data.dtype.element_ty,
    )  # fmt: skip
    source = tl.arange(0, BLOCK_S)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
        sample, y, x = pixel_tile(tile, tiles_h, tiles_w, TILE_H, TILE_W)
        total = tl.zeros([TILE_H * TILE_W, BLOCK_R], tl.float32)
        for tap in tl.static_range(KERNEL[0] * KERNEL[1]):
            at_y, at_x, exists = tap_source(
                y, x, tap // KERNEL[1], tap % KERNEL[1], height, width, STRIDE, PADDING, DILATION, TRANSPOSED
            )
            at = pixels_at(data, strides, sample, at_y, at_x, source, ALIGN, INDEX)
            value = tl.load(at, mask=exists[:, None] & (source < SOURCES)[None, :], other=0.0)
            total = tl.dot(value, taps[tap], total)
        finish(
            total, bias, residual, residual_strides, preactivation, preactivation_strides,
            output, output_strides, output2, output2_strides, slope, sample, y, x, result,
            out_height, out_width, ACTIVATION, RESULTS, RESULTS2, OUT_ALIGN, INDEX,
        )  # fmt: skip


def _stays(dtype: torch.dtype, weight: Tensor, sources: int, results: int, arch: int) -> dict | None:
    """The tile with which merged taps stay in shared memory, or None if W is better read for each tile."""
    taps = math.prod(weight.shape[2:])
    block_s, block_r = (max(16, triton.next_power_of_2(count)) for count in (sources, results))
    # Tensor cores have no exact float32 products: Triton would keep all of W in registers.
    if dtype == torch.float32:
        return None
    # On Blackwell, Triton gives each product of a chain its own accumulator in tensor memory, of 512 columns.
    if taps > 1 and arch >= 100:
        return None
    block_r = min(block_r, 64)
    weight_bytes = taps * block_s * block_r * dtype.itemsize
    if block_s > 128 or weight_bytes > 9 * 64 * 64 * 2:
        return None
    # If they fit beside W, all taps of the next 64 pixels are fetched ahead, on Hopper in two buffers.
    ahead = weight_bytes + 2 * taps * block_s * 64 * dtype.itemsize <= 190_000
    return {
        "BLOCK_S": block_s,
        "BLOCK_R": block_r,
        "pixels": 64,
        "STAGES": 2 if ahead else 1,
        # Merging in exact float32 takes more registers.
        "num_warps": 4 if weight.dtype == dtype else 8,
    }


def _streams(
    dtype: torch.dtype, tf32: bool, sources: int, results: int, pixels: int, processors: int
) -> dict:
    """The tile for reading W again for every tile of pixels."""
    block_r = min(max(16, triton.next_power_of_2(results)), 64)
    # With 128 pixels a tile, W is read least often; a small image needs more tiles to occupy all processors.
    wide = pixels * triton.cdiv(results, block_r) >= 128 * 2 * processors
    block_s = min(max(16, triton.next_power_of_2(sources)), 64 if dtype.itemsize == 2 else 32 if tf32 else 16)
    return {
        "BLOCK_S": block_s,
        "BLOCK_R": block_r,
        "pixels": 128 if wide else 64,
        "num_warps": 8 if wide else 4,
        "num_stages": 3,
    }


def _swap(strides: tuple[int, ...], transposed: bool) -> tuple[int, ...]:
    """A weight's strides by source, result, row and column."""
    out, channel, row, column = strides
    return (out, channel, row, column) if transposed else (channel, out, row, column)


def _merge_to_scratch(weight: Tensor, lora_up: Tensor, lora_down: Tensor, scaling: float, dtype) -> Tensor:
    """W in the order row, column, input and output channel in memory, with its usual four dimensions."""
    out, channels, kernel_h, kernel_w = weight.shape
    scratch = weight.new_empty((kernel_h, kernel_w, channels, out), dtype=dtype).permute(3, 2, 0, 1)
    lora_merge(weight, lora_up, lora_down, scaling, scratch)
    return scratch


def _launch(
    sources, weight, lora_up, lora_down, bias, residual, results, preactivation, scaling,
    activation, slope, tf32, transposed, geometry,
) -> None:  # fmt: skip
    """Starts the kernel that fits; sources and results are one image each, or two as if concatenated."""
    data, data2 = sources
    output, output2 = results
    dtype = data.dtype
    counts = [0 if image is None else image.shape[1] for image in (*sources, *results)]
    stays = None
    if lora_up is not None and data2 is None:
        stays = _stays(dtype, weight, counts[0], sum(counts[2:]), images.architecture(data))
    if lora_up is not None and stays is None:
        weight = _merge_to_scratch(weight, lora_up, lora_down, scaling, dtype)
    pixels = len(output) * math.prod(output.shape[2:])
    processors = images.processors(data.device)
    tile = stays or _streams(dtype, tf32, max(counts[:2]), sum(counts[2:]), pixels, processors)
    tile_h, tile_w = images.tile_shape(output.shape[2], output.shape[3], tile.pop("pixels"))
    tiles_h, tiles_w = triton.cdiv(output.shape[2], tile_h), triton.cdiv(output.shape[3], tile_w)
    tiles, blocks = len(output) * tiles_h * tiles_w, triton.cdiv(sum(counts[2:]), tile["BLOCK_R"])
    align, out_align = images.alignment(list(sources)), images.alignment([*results, residual, preactivation])
    stored = [
        part for image in (residual, preactivation, output, output2) for part in images.view(image, out_align)
    ]
    options = {
        "slope": slope,
        "height": data.shape[2],
        "width": data.shape[3],
        "out_height": output.shape[2],
        "out_width": output.shape[3],
        "tiles_h": tiles_h,
        "tiles_w": tiles_w,
        "SOURCES": counts[0],
        "RESULTS": counts[2],
        "RESULTS2": counts[3],
        "WEIGHT_STRIDES": _swap(weight.stride(), transposed),
        "TRANSPOSED": transposed,
        "ACTIVATION": activation,
        "ALIGN": align,
        "OUT_ALIGN": out_align,
        "INDEX": images.index([*sources, *results, residual, preactivation]),
        "TILE_H": tile_h,
        "TILE_W": tile_w,
        **geometry,
        **tile,
    }
    first = images.view(data, align)
    if stays is None:
        _conv_kernel[(tiles * blocks,)](
            *first,
            *images.view(data2, align),
            weight,
            bias,
            *stored,
            SOURCES2=counts[1],
            PRECISION=images.precision(tf32),
            **options,
        )
    else:
        programs = min(tiles, 2 * processors)
        _stationary_kernel[programs, blocks](
            *first,
            weight,
            lora_up,
            lora_down,
            bias,
            *stored,
            scaling=scaling,
            tiles=tiles,
            COLUMNS=lora_down.shape[1],
            INNER=lora_down.shape[0],
            **options,
        )


def lora_conv2d(
    input: Tensor,
    input2: Tensor | None,
    weight: Tensor,
    lora_up: Tensor | None,
    lora_down: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    scaling: float,
    activation: str,
    slope: float,
    tf32: bool,
    output: Tensor,
    preactivation: Tensor | None = None,
) -> None:
    geometry = images.geometry(weight.shape[2:], stride, padding, dilation)
    with torch.cuda.device_of(input):
        if groups > 1:
            lora_depthwise.conv(
                *(input, weight, lora_up, lora_down, bias, residual, output, preactivation),
                *(scaling, activation, slope, False, geometry),
            )
        else:
            _launch(
                *((input, input2), weight, lora_up, lora_down, bias, residual, (output, None), preactivation),
                *(scaling, activation, slope, tf32, False, geometry),
            )


def lora_conv2d_grad_input(
    grad: Tensor,
    weight: Tensor,
    lora_up: Tensor | None,
    lora_down: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    scaling: float,
    tf32: bool,
    grad_input: Tensor,
    grad_input2: Tensor | None = None,
) -> None:
    geometry = images.geometry(weight.shape[2:], stride, padding, dilation)
    with torch.cuda.device_of(grad):
        if groups > 1:
            lora_depthwise.conv(
                *(grad, weight, lora_up, lora_down, None, None, grad_input, None),
                *(scaling, "none", 0.0, True, geometry),
            )
        else:
            _launch(
                *((grad, None), weight, lora_up, lora_down, None, None, (grad_input, grad_input2), None),
                *(scaling, "none", 0.0, tf32, True, geometry),
            )


_library = images.register(
    {
        "lora_conv2d(Tensor input, Tensor? input2, Tensor weight, Tensor? lora_up, Tensor? lora_down, "
        "Tensor? bias, Tensor? residual, int[] stride, int[] padding, int[] dilation, int groups, "
        "float scaling, str activation, float slope, bool tf32, Tensor(a!) output, "
        "Tensor(b!)? preactivation) -> ()": lora_conv2d,
        "lora_conv2d_grad_input(Tensor grad, Tensor weight, Tensor? lora_up, Tensor? lora_down, "
        "int[] stride, int[] padding, int[] dilation, int groups, float scaling, bool tf32, "
        "Tensor(a!) grad_input, Tensor(b!)? grad_input2) -> ()": lora_conv2d_grad_input,
    }
)
