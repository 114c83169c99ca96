"""The end of the Triton kernels of the low-rank convolution: from a tile of sums to the result in memory."""

from __future__ import annotations

import triton
import triton.language as tl

from lorun_kernels.triton.lora_images import pixels_at


@triton.jit
def activate(value, slope, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "leaky_relu":
        value = tl.where(value > 0.0, value, value * slope)
    elif ACTIVATION == "gelu":
        value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    return value


@triton.jit
def finish(
    value, bias, residual, residual_strides, preactivation, preactivation_strides, output, output_strides,
    output2, output2_strides, slope, sample, y, x, result, out_height, out_width,
    ACTIVATION: tl.constexpr, RESULTS: tl.constexpr, RESULTS2: tl.constexpr,
    ALIGN: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Applies bias, activation and residual to a tile of sums and stores it, past RESULTS in output2."""
    pixel = ((y < out_height) & (x < out_width))[:, None]
    inside = pixel & (result < RESULTS)[None, :]
    if bias is not None:
        value += tl.load(bias + result, mask=result < RESULTS, other=0.0).to(tl.float32)[None, :]
    if preactivation is not None:
        at = pixels_at(preactivation, preactivation_strides, sample, y, x, result, ALIGN, INDEX)
        tl.store(at, value, mask=inside)
    value = activate(value, slope, ACTIVATION)
    if residual is not None:
        at = pixels_at(residual, residual_strides, sample, y, x, result, ALIGN, INDEX)
        value += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    at = pixels_at(output, output_strides, sample, y, x, result, ALIGN, INDEX)
    tl.store(at, value, mask=inside)
    if output2 is not None:
        at = pixels_at(output2, output2_strides, sample, y, x, result - RESULTS, ALIGN, INDEX)
        tl.store(at, value, mask=pixel & ((result >= RESULTS) & (result < RESULTS + RESULTS2))[None, :])
