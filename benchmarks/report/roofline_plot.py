"""The layers of the shipped networks on a roofline."""

from __future__ import annotations

from matplotlib.figure import Figure

from benchmarks.cases.layers import Layer
from benchmarks.cases.lora_layer import FORWARD
from benchmarks.cases.passes import conv_flops, forward
from benchmarks.harness.case import OURS
from benchmarks.report.roofline import Page, total_bytes

BATCH = 8


def draw(page: Page) -> Figure:
    """Operations per byte against operations per second at batch 8: predicted, and achieved if measured."""
    limits = page.limits
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    axes = figure.subplots()
    intensities = [0.5, limits.flops_per_s / page.bytes_per_s, 2000]
    roof = [min(x * page.bytes_per_s, limits.flops_per_s) / 1e12 for x in intensities]
    axes.loglog(intensities, roof, color="black", linewidth=1)
    for number, layer in enumerate(page.layers):
        colour = f"C{number % 10}"
        # The colours repeat from the eleventh layer on.
        marker = "o" if number < 10 else "D"
        for how, style in (("fused", {}), ("cudnn", {"fillstyle": "none"})):
            axes.plot(*_point(layer, how, page), marker, color=colour, **style)
        axes.plot([], [], marker, color=colour, label=layer.name)
        for seconds in _achieved(layer, page):
            x, _ = _point(layer, "fused", page)
            axes.plot(x, conv_flops(layer, BATCH) / seconds / 1e12, "x", color=colour)
    source = f"measured on {page.gpu}" if page.gpu else "assumed, not measured"
    axes.set_title(f"batch {BATCH}, bf16, channels_last; limits {source}", fontsize=10)
    axes.set_xlabel("operations per byte")
    axes.set_ylabel("TFLOP/s, predicted: filled fused, hollow separate kernels; crosses achieved")
    axes.yaxis.label.set_fontsize(8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")
    return figure


def _point(layer: Layer, how: str, page: Page) -> tuple[float, float]:
    passes = forward(layer, BATCH, how)
    flops = conv_flops(layer, BATCH)
    return flops / total_bytes(passes), flops / page.time(passes) / 1e6


def _achieved(layer: Layer, page: Page) -> list[float]:
    """Seconds of the default, if it was measured."""
    found = page.cases(FORWARD, layer=layer.name, batch=BATCH)
    return [case["candidates"][OURS]["median_s"] for case in found]
