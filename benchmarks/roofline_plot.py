"""The layers of the shipped networks on a roofline."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.ceilings import Ceilings
from benchmarks.lora_layers import Layer
from benchmarks.lora_passes import conv_flops, forward
from benchmarks.lora_results import median, of_kind

BATCH = 8


def draw(layers: dict[Layer, int], ceilings: Ceilings, records: list[dict], path: Path) -> None:
    """Operations a byte against operations a second, batch 8: predicted, and achieved where measured."""
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    axes = figure.subplots()
    intensities = [0.5, ceilings.balance, 2000]
    roof = [min(x * ceilings.bytes_per_s, ceilings.flops_per_s) / 1e12 for x in intensities]
    axes.loglog(intensities, roof, color="black", linewidth=1)
    for number, layer in enumerate(layers):
        colour = f"C{number % 10}"
        # The eleventh layer and later ones repeat the colours.
        marker = "o" if number < 10 else "D"
        for how, style in (("fused", {}), ("cudnn", {"fillstyle": "none"})):
            axes.plot(*_point(layer, how, ceilings), marker, color=colour, **style)
        axes.plot([], [], marker, color=colour, label=layer.name)
        for time in _achieved(layer, records):
            x, _ = _point(layer, "fused", ceilings)
            axes.plot(x, conv_flops(layer, BATCH) / time / 1e12, "x", color=colour)
    source = f"measured on {ceilings.gpu}" if ceilings.gpu else "assumed, not measured"
    axes.set_title(f"batch {BATCH}, bf16, channels_last; ceilings {source}", fontsize=10)
    axes.set_xlabel("operations a byte")
    axes.set_ylabel("TFLOP/s, predicted: filled fused, hollow separate kernels; crosses achieved")
    axes.yaxis.label.set_fontsize(8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=90, metadata={"Software": None})


def _point(layer: Layer, how: str, ceilings: Ceilings) -> tuple[float, float]:
    passes = forward(layer, BATCH, how)
    flops = conv_flops(layer, BATCH)
    return flops / sum(one.bytes for one in passes), flops / ceilings.microseconds(passes) / 1e6


def _achieved(layer: Layer, records: list[dict]) -> list[float]:
    """Seconds of the default, where measured."""
    found = of_kind(records, "forward", scope="network", layer=layer.name, batch=BATCH)
    times = [median(record, "default") for record in found]
    return [time * 1e-3 for time in times if time is not None]
