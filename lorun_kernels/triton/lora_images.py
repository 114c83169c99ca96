"""What the Triton kernels of the low-rank convolution share: tiles of pixels, and the pixels that taps read.

Images have channel stride 1. The largest power of two that divides an image's strides is a constant of the
kernel, because 28 channels are not a multiple of 16, and Triton would load them one by one.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

# Arguments for whose values Triton would otherwise compile a kernel again, at every new image size.
SIZES = ["height", "width", "out_height", "out_width", "tiles", "tiles_h", "tiles_w", "splits"]


@triton.jit
def pixel_tile(tile, tiles_h, tiles_w, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """The sample, and the rows and columns [TILE_H * TILE_W], of a tile of pixels."""
    pixel = tl.arange(0, TILE_H * TILE_W)
    tile_y = tile // tiles_w % tiles_h
    y = tile_y * TILE_H + pixel // TILE_W
    x = tile % tiles_w * TILE_W + pixel % TILE_W
    return (tile // (tiles_h * tiles_w)).to(tl.int64), y, x


@triton.jit
def tap_source(
    y, x, ky, kx, height, width,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """The pixel that tap (ky, kx) reads for (y, x), and whether it exists; TRANSPOSED is for a gradient."""
    if TRANSPOSED:
        y += PADDING[0] - ky * DILATION[0]
        x += PADDING[1] - kx * DILATION[1]
        exists = (y >= 0) & (x >= 0)
        if STRIDE[0] > 1:
            exists = exists & (y % STRIDE[0] == 0)
            y = y // STRIDE[0]
        if STRIDE[1] > 1:
            exists = exists & (x % STRIDE[1] == 0)
            x = x // STRIDE[1]
    else:
        y = y * STRIDE[0] + ky * DILATION[0] - PADDING[0]
        x = x * STRIDE[1] + kx * DILATION[1] - PADDING[1]
        exists = (y >= 0) & (x >= 0)
    return y, x, exists & (y < height) & (x < width)


@triton.jit
def pixels_at(data, strides, sample, y, x, channel, ALIGN: tl.constexpr, INDEX: tl.constexpr):
    """Pointers [pixels, channels]; the sample is a 64-bit scalar, offsets within it are INDEX."""
    pixel = (y.to(INDEX) * strides[1] + x.to(INDEX) * strides[2]) * ALIGN
    return data + sample * strides[0] * ALIGN + (pixel[:, None] + channel[None, :])


def alignment(images: list[Tensor | None]) -> int:
    """The largest power of two, up to 16 bytes, that divides every stride."""
    given = [image for image in images if image is not None]
    largest = 16 // given[0].element_size()
    strides = [stride for image in given for stride in _strides(image)]
    return next(a for a in (8, 4, 2, 1) if a <= largest and all(stride % a == 0 for stride in strides))


def _strides(image: Tensor) -> tuple[int, ...]:
    """The strides of sample, row and column; 0 for a dimension of one element, which no step crosses."""
    sample, row, column = (image.stride(dim) if image.shape[dim] > 1 else 0 for dim in (0, 2, 3))
    return sample, row, column


def view(image: Tensor | None, align: int) -> tuple:
    """An image and its strides in units of `align`, as a kernel takes them."""
    return (None, None) if image is None else (image, tuple(stride // align for stride in _strides(image)))


def index(images: list[Tensor | None]) -> tl.dtype:
    """The integer type for an element's offset in a sample; 32 bits save registers."""
    reach = max(
        sum((size - 1) * stride for size, stride in zip(image.shape[1:], image.stride()[1:], strict=True))
        for image in images
        if image is not None
    )
    return tl.int32 if reach < 2**31 else tl.int64


def tile_shape(height: int, width: int, pixels: int) -> tuple[int, int]:
    """Rows and columns of a tile: nearly a square, so that the taps of its pixels overlap."""
    columns = min(16, triton.next_power_of_2(width))
    rows = min(pixels // columns, triton.next_power_of_2(height))
    return rows, pixels // rows


def geometry(kernel, stride: list[int], padding: list[int], dilation: list[int]) -> dict:
    """The constants that decide which pixels a tap reads."""
    constants = {"KERNEL": kernel, "STRIDE": stride, "PADDING": padding, "DILATION": dilation}
    return {name: tuple(pair) for name, pair in constants.items()}


def architecture(tensor: Tensor) -> int:
    """80, 90, 100, ... of the GPU; the interpreter, which runs on CPU tensors, counts as a Hopper."""
    return 90 if tensor.device.type == "cpu" else triton.runtime.driver.active.get_current_target().arch


@functools.lru_cache
def processors(device: torch.device) -> int:
    """The GPU's multiprocessors; on a CPU two, so that persistent programs walk over several tiles."""
    if device.type != "cuda":
        return 2 if device.type == "cpu" else 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def precision(tf32: bool) -> str:
    return "tf32" if tf32 else "ieee"


def register(launchers: dict[str, object]) -> torch.library.Library:
    """Adds ops by schema to lorun_triton; the interpreter runs them on CPU tensors."""
    library = torch.library.Library("lorun_triton", "FRAGMENT")
    for schema, launcher in launchers.items():
        library.define(schema)
        for key in ("CUDA", "CPU"):
            library.impl(schema.split("(")[0], launcher, key)
    return library
