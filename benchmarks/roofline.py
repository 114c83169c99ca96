"""What a GPU's limits say about the low-rank convolutions of the shipped networks.

    python -m benchmarks.roofline [--results FILE] [--out docs/lora_conv_roofline.md]

counts operations and bytes of every kernel of every layer, predicts times from two ceilings, and writes a
page and a plot beside it. Ceilings and achieved times are those of a results file of benchmarks/run_gpu.sh;
without one the ceilings are figures from the design notes, and the page says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.ceilings import Ceilings
from benchmarks.lora_layers import Layer, adapted_networks, layer_table, network_layers
from benchmarks.lora_passes import Pass, backward, bare, blocks, conv_flops, forward, tile_flops
from benchmarks.lora_results import CANDIDATES, geometric_mean, load, median, of_kind, ratios
from benchmarks.roofline_plot import draw

OUT = Path("docs/lora_conv_roofline.md")
BATCHES = (8, 1)
OURS = ("default", "cuda", "triton")
BAR_OF_BLOCKS = 1.3


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    """A Markdown table; its first column is text, the others are figures."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)] + [""]


def total_bytes(passes: list[Pass]) -> int:
    return sum(one.bytes for one in passes)


class Page:
    """The page for one set of layers, ceilings and records."""

    def __init__(self, layers: dict[Layer, int], records: list[dict], command: str) -> None:
        self.layers, self.records, self.command = layers, records, command
        self.ceilings = Ceilings.of(records)

    def lines(self) -> list[str]:
        return [
            *self.introduction(),
            *self.forward(),
            *self.backward(),
            *self.means(),
            *self.blocks(),
            *self.losses(),
            *self.omissions(),
            f"Written by `{self.command}`.",
        ]

    def introduction(self) -> list[str]:
        limits = self.ceilings
        rates = (
            f"{limits.bytes_per_s / 1e12:.2f} TB/s for a copy and {limits.flops_per_s / 1e12:.0f} TFLOP/s "
            "for dense bf16 products"
        )
        if limits.gpu:
            source = (
                f"Ceilings: {rates}, and {limits.kernel_s * 1e6:.1f} us for the smallest kernel, measured on "
                f"{limits.gpu} in the same run as the achieved times."
            )
        else:
            source = (
                f"Ceilings: {rates}. **Both are assumed**: they are figures of the design notes, not "
                "measured here. No GPU has run these kernels yet, so this page has predictions and no "
                "achieved times; `benchmarks/run_gpu.sh OUT_DIR` measures both, and this page takes them "
                "from `OUT_DIR/lora.json`."
            )
        return [
            "# The low-rank convolution against the limits of a GPU",
            "",
            f"The convolutions of one stage of {', '.join(adapted_networks())} at 256x256, in bf16 and "
            "channels_last, read off the networks: each distinct layer once, with how often a stage has it. "
            "A kernel's predicted time is the longer of its bytes over the copy bandwidth and its operations "
            "over the matrix rate; kernels one after another add up.",
            "",
            source,
            "",
            f"Above {limits.balance:.0f} operations a byte arithmetic binds, below it memory.",
            "",
            "![Every layer on the roofline](lora_conv_roofline.png)",
            "",
        ]

    def forward(self) -> list[str]:
        lines = [
            "## Forward",
            "",
            "*Fused*: one kernel merges W, reads a second input where it lies and applies bias, activation "
            "and residual before it stores. *Separate*: ATen's passes: concatenation, cuDNN's convolution "
            "on a merged weight, bias, activation, residual. *Compiled*: concatenation, cuDNN, and all the "
            "rest in one pass. *Tiles*: the arithmetic alone when channels are filled up to those of "
            "tensor-core tiles, sources in steps of 16 and results of 8; where it exceeds *fused*, it is the "
            "least that a kernel of such tiles takes, cuDNN's included.",
            "",
        ]
        for batch in BATCHES:
            measured = self.measured("forward", batch)
            head = ["layer", "times", "GFLOP", "MB fused", "MB separate", "FLOP/byte", "limit"]
            head += ["fused us", "tiles us", "separate us", "compiled us"]
            head += [f"{CANDIDATES[name]} us" for name in measured]
            rows = (self.forward_row(layer, batch, measured) for layer in self.layers)
            lines += [f"Batch {batch}:", "", *table(head, rows)]
        return lines + self.reasons("forward")

    def forward_row(self, layer: Layer, batch: int, measured: list[str]) -> list[str]:
        fused = forward(layer, batch, "fused")
        separate = forward(layer, batch, "cudnn")
        time = self.ceilings.microseconds
        return [
            layer.name,
            str(self.layers[layer]),
            f"{conv_flops(layer, batch) / 1e9:.2f}",
            f"{total_bytes(fused) / 1e6:.1f}",
            f"{total_bytes(separate) / 1e6:.1f}",
            f"{fused[0].flops / fused[0].bytes:.0f}",
            self.ceilings.limit(fused[0]),
            f"{time(fused):.1f}",
            f"{tile_flops(layer, batch) / self.ceilings.flops_per_s * 1e6:.1f}",
            f"{time(separate):.1f}",
            f"{time(forward(layer, batch, 'compiled')):.1f}",
            *self.achieved("forward", layer, batch, measured),
        ]

    def backward(self) -> list[str]:
        lines = [
            "## Backward",
            "",
            "With a frozen base. The activation's gradient is a pass of its own everywhere; then the input's "
            "gradient, and the adapter's, which the fused kernel sums from the images without a gradient of "
            "W, and loralib's form takes from cuDNN's gradient of W. Both read and write the same images, so "
            "the gain in training is that of the forward pass. *Training*: forward and backward, where the "
            "fused kernel also stores what the activation was given.",
            "",
        ]
        for batch in BATCHES:
            measured = self.measured("forward+backward", batch)
            head = ["layer", "GFLOP", "input's gradient MB", "us", "adapter's gradient MB", "us"]
            head += ["backward us", "loralib us", "training us", "loralib us"]
            head += [f"training, {CANDIDATES[name]} us" for name in measured]
            rows = (self.backward_row(layer, batch, measured) for layer in self.layers)
            lines += [f"Batch {batch}:", "", *table(head, rows)]
        return lines + self.reasons("forward+backward")

    def backward_row(self, layer: Layer, batch: int, measured: list[str]) -> list[str]:
        time = self.ceilings.microseconds
        fused, peer = backward(layer, batch, "fused"), backward(layer, batch, "loralib")
        of_input, of_adapter = fused[-2:]
        return [
            layer.name,
            f"{(of_input.flops + of_adapter.flops) / 1e9:.2f}",
            f"{of_input.bytes / 1e6:.1f}",
            f"{time([of_input]):.1f}",
            f"{of_adapter.bytes / 1e6:.1f}",
            f"{time([of_adapter]):.1f}",
            f"{time(fused):.1f}",
            f"{time(peer):.1f}",
            f"{time(training(layer, batch, 'fused')):.1f}",
            f"{time(training(layer, batch, 'loralib')):.1f}",
            *self.achieved("forward+backward", layer, batch, measured),
        ]

    def means(self) -> list[str]:
        """Predicted geometric means over the distinct layers beside the bars of the project."""

        def mean(ours: Callable, theirs: Callable) -> list[str]:
            time = self.ceilings.microseconds
            means = [
                geometric_mean(time(ours(layer, batch)) / time(theirs(layer, batch)) for layer in self.layers)
                for batch in BATCHES
            ]
            return [f"{value:.2f}" for value in means]

        no_adapter, loralib = "cuDNN without an adapter", "loralib's form"
        comparisons = [
            ("forward", "network", no_adapter, way, "plain", ["1.05", "1.05"]),
            ("forward", "bias only", no_adapter, bare_way, "plain", ["1.05", "1.05"]),
            ("forward", "network", loralib, way, "loralib", ["1.00", "0.85"]),
            ("forward", "bias only", loralib, bare_way, "loralib", ["1.00", "0.85"]),
            ("forward+backward", "network", loralib, trained_way, "loralib", ["1.00", "0.90"]),
        ]
        head = ["ratio", "batch 8", "batch 1", "bar, batch 8", "bar, batch 1"]
        head += ["measured, batch 8", "measured, batch 1"] if self.ceilings.gpu else []
        rows = [
            [
                f"{kind}, {scope} / {peer}",
                *mean(passes("fused"), passes(how)),
                *bars,
                *self.measured_means(kind, scope, how),
            ]
            for kind, scope, peer, passes, how, bars in comparisons
        ]
        return [
            "## Geometric means",
            "",
            "Over the distinct layers, and the most that the project asks for. cuDNN's side has the same "
            "bias, activation, residual and concatenation, as ATen's passes; *bias only* compares the "
            "convolutions alone.",
            "",
            *table(head, rows),
        ]

    def measured_means(self, kind: str, scope: str, peer: str) -> list[str]:
        if not self.ceilings.gpu:
            return []
        found = [ratios(of_kind(self.records, kind, scope=scope, batch=b), "default", peer) for b in BATCHES]
        return [f"{geometric_mean(one):.2f}" if one else "-" for one in found]

    def blocks(self) -> list[str]:
        rows, gains = [], []
        for name, layers in network_blocks().items():
            times = {how: self.block_time(layers, how) for how in ("fused", "compiled", "template")}
            gain = times["compiled"] / times["fused"]
            gains.append(gain)
            rows.append([name, *(f"{value:.1f}" for value in times.values()), f"{gain:.2f}",
                         f"{times['template'] / times['fused']:.2f}", f"{BAR_OF_BLOCKS / gain:.0%}",
                         *self.achieved_block(name)])  # fmt: skip
        head = ["block", "fused us", "cuDNN us", "template us", "cuDNN / fused", "template / fused",
                "needed"]  # fmt: skip
        if of_kind(self.records, "block"):
            head += ["measured, default", "measured, best of ours", "best of ours, cuDNN only", "peer ran"]
        return [
            "## The residual block",
            "",
            "Two convolutions, GELU and the residual, and in the decoder also the convolution on a "
            'concatenation before them, batch 8. The peer is `torch.compile(mode="max-autotune")` on '
            "merged weights: *cuDNN*, where it calls cuDNN and does the rest of each convolution in one "
            "pass, and *template*, where its own Triton convolution wins and takes the rest into its store. "
            "*Needed*: the part of its limit that our kernel has to reach for 1.3x, as a share of what cuDNN "
            "and the passes around it reach of theirs.",
            "",
            *table(head, rows),
            self.verdict(min(gains), max(gains)),
            "",
        ]

    def verdict(self, low: float, high: float) -> str:
        """What the model says about the bar."""
        enough = "every block has" if low >= BAR_OF_BLOCKS else "not every block has"
        return (
            f"Against cuDNN the model predicts {low:.2f}x to {high:.2f}x where the bar is {BAR_OF_BLOCKS}x: "
            f"{enough} the room for it, as far as our convolution reaches what *needed* says. Against the "
            "template only the concatenation is left to gain, so on a residual block without one the bar "
            "cannot be met by fusing alone: the measurement says which of the two the peer ran."
        )

    def block_time(self, layers: list[Layer], how: str) -> float:
        return self.ceilings.microseconds([one for layer in layers for one in forward(layer, 8, how)])

    def achieved_block(self, name: str) -> list[str]:
        """How much faster ours was than the fastest of torch.compile, and than it with cuDNN only."""
        if not of_kind(self.records, "block"):
            return []
        found = of_kind(self.records, "block", block=name)
        times = {label: median(found[0], label) for label in found[0]["milliseconds"]} if found else {}
        ours = [time for label, time in times.items() if label in OURS]
        compiled = {label: time for label, time in times.items() if label.startswith("compiled")}
        if not ours or not compiled:
            return ["-"] * 4
        best = min(compiled, key=compiled.get)
        only = compiled.get("compiled, cuDNN only")
        template = any("triton_tem" in kernel for kernel in found[0]["kernels"][best])
        return [
            f"{compiled[best] / times['default']:.2f}" if "default" in times else "-",
            f"{compiled[best] / min(ours):.2f}",
            f"{only / min(ours):.2f}" if only else "-",
            "template" if template else "cuDNN",
        ]

    def measured(self, kind: str, batch: int) -> list[str]:
        """The candidates that have achieved times."""
        names = {name for r in of_kind(self.records, kind, batch=batch) for name in r["milliseconds"]}
        return [name for name in CANDIDATES if name in names]

    def achieved(self, kind: str, layer: Layer, batch: int, names: list[str]) -> list[str]:
        found = of_kind(self.records, kind, scope="network", layer=layer.name, batch=batch)
        times = [median(found[0], name) if found else None for name in names]
        return ["-" if time is None else f"{time * 1e3:.1f}" for time in times]

    def reasons(self, kind: str) -> list[str]:
        """Why candidates are missing, each reason once."""
        missing = {pair for record in of_kind(self.records, kind) for pair in record["missing"].items()}
        lines = [f"- {CANDIDATES[name]} is missing from a layer: {why}" for name, why in sorted(missing)]
        return [*lines, ""] if lines else []

    def losses(self) -> list[str]:
        """Every layer where the default takes longer than a peer."""
        lines = []
        for kind, peers in {"forward": ("plain", "loralib"), "forward+backward": ("loralib",)}.items():
            for record in of_kind(self.records, kind):
                found = {peer: ratios([record], "default", peer) for peer in peers}
                lost = [f"{r[0]:.2f}x {CANDIDATES[peer]}" for peer, r in found.items() if r and r[0] > 1]
                lines += [f"- {record['title']}: {', '.join(lost)}"] if lost else []
        if not of_kind(self.records, "forward"):
            lines = ["Not known before a GPU has run it."]
        return ["## Where we lose", "", *(lines or ["Nowhere in this run."]), ""]

    def omissions(self) -> list[str]:
        return [
            "## What the model leaves out",
            "",
            "- Caches. Every byte counts as device memory; what the L2 keeps between two passes is cheaper, "
            "which favours the separate kernels, most of all at batch 1, where a whole layer may fit.",
            "- Halos. A convolution reads the pixels around its tile again, mostly from the L2.",
            "- W. Every block of the fused kernel merges its part of W anew, from the L2.",
            "- Launches"
            + (": a kernel takes at least the smallest kernel's time." if self.ceilings.kernel_s else
               ", until their time is measured: small layers at batch 1 will take longer than predicted, and "
               "the separate kernels, of which there are more, lose most by it."),
            "- What else a kernel computes: GELU's erf and the addresses are no matrix products.",
            "- What the compiler may do around a block, such as resizing straight into the concatenation.",
            "",
        ]  # fmt: skip


def way(how: str) -> Callable:
    return lambda layer, batch: forward(layer, batch, how)


def bare_way(how: str) -> Callable:
    return lambda layer, batch: forward(bare(layer), batch, how)


def trained_way(how: str) -> Callable:
    return lambda layer, batch: training(layer, batch, how)


def training(layer: Layer, batch: int, how: str) -> list[Pass]:
    """Forward and backward: "fused" or "loralib"."""
    return [*forward(layer, batch, how, training=True), *backward(layer, batch, how)]


def network_blocks() -> dict[str, list[Layer]]:
    """The blocks of every shipped network's denoiser."""
    found = {}
    for name in adapted_networks():
        found |= blocks(list(network_layers(name)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, help="lora.json of benchmarks/run_gpu.sh")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    records = load(args.results) if args.results else []
    results = f" --results {args.results}" if args.results else ""
    page = Page(layer_table(), records, f"python -m benchmarks.roofline{results}")
    args.out.write_text("\n".join(page.lines()) + "\n")
    draw(page.layers, page.ceilings, records, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
