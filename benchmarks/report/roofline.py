"""What a GPU's limits say about the low-rank convolutions of the shipped networks: lora_conv_roofline.md.

Operations and bytes of every kernel of every layer are counted, and times are predicted from the limits of
the GPU. Limits and achieved times are those of a run on a GPU; without one, the limits are figures from the
design notes, and the page says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from benchmarks.cases.layers import Layer, adapted_networks, bare, network_blocks
from benchmarks.cases.lora_layer import BARE, FORWARD, LORALIB, PLAIN, TRAINING
from benchmarks.cases.passes import Pass, backward, conv_flops, forward, tile_flops
from benchmarks.cases.residual_block import COMPILED, CUDNN_ONLY, GROUP
from benchmarks.harness.case import OURS
from benchmarks.harness.limits import Limits
from benchmarks.harness.ratios import Ratio, geometric_mean
from benchmarks.report.run import Run, peer_ratios
from benchmarks.report.tables import markdown

NAME = "lora_conv_roofline"
KERNELS = (OURS, f"{OURS}, cuda", f"{OURS}, triton")
BATCHES = (8, 1)
BAR_OF_BLOCKS = 1.3
# Section 5, point 12 of the design notes.
ASSUMED = Limits({2**30: 4.3e12}, flops_per_s=790e12, dtype="bfloat16")


def total_bytes(passes: list[Pass]) -> int:
    return sum(one.bytes for one in passes)


def microseconds(limits: Limits, passes: list[Pass]) -> float:
    """The least time for kernels that run one after another."""
    return sum(map(limits.seconds, passes)) * 1e6


class Page:
    """The page for one set of layers.

    Args:
        layers: the distinct layers, and how often a stage has each.
        run: on a GPU; None: nothing has been measured.
        command: what the page says it was written by.
    """

    def __init__(self, layers: dict[Layer, int], run: Run | None, command: str) -> None:
        self.layers, self.run, self.command = layers, run, command
        measured = run.limits if run else None
        # The page counts every byte as device memory.
        self.limits = measured.without_caches() if measured else ASSUMED
        self.gpu = run.gpu if measured else None
        self.bytes_per_s = next(iter(self.limits.copy.values()))

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
        limits = self.limits
        rates = (
            f"{self.bytes_per_s / 1e12:.2f} TB/s for a copy and {limits.flops_per_s / 1e12:.0f} TFLOP/s "
            "for dense bf16 products"
        )
        if self.gpu:
            source = (
                f"Limits: {rates}, and {limits.kernel_s * 1e6:.1f} us for the smallest kernel, measured on "
                f"{self.gpu} in the same run as the achieved times."
            )
        else:
            source = (
                f"Limits: {rates}. **Both are assumed**: they are figures from the design notes and were not "
                "measured here. No GPU has run these kernels yet, so this page has predictions and no "
                "achieved times; `benchmarks/run_gpu.sh OUT_DIR` measures both and writes this page anew."
            )
        return [
            "# The low-rank convolution against the limits of a GPU",
            "",
            f"The convolutions of one stage of {', '.join(adapted_networks())} at 256x256, in bf16 and "
            "channels_last, read off the networks: each distinct layer once, with how often a stage has it. "
            "A kernel's predicted time is its bytes over the copy bandwidth or its operations over the "
            "matrix rate, whichever is longer; the times of kernels that run one after another add up.",
            "",
            source,
            "",
            f"Above {limits.flops_per_s / self.bytes_per_s:.0f} operations per byte arithmetic is the limit, "
            "below it memory.",
            "",
            f"![Every layer on the roofline]({NAME}.png)",
            "",
        ]

    def forward(self) -> list[str]:
        lines = [
            "## Forward",
            "",
            "*Fused*: one kernel merges W, reads a second input in place, and applies bias, activation "
            "and residual before it stores. *Separate*: ATen's passes, which are concatenation, cuDNN's "
            "convolution on a merged weight, bias, activation and residual. *Compiled*: concatenation, "
            "cuDNN, and everything else in one pass. *Tiles*: the arithmetic alone if channels are padded to "
            "tensor-core tiles, sources to multiples of 16 and results to multiples of 8; if it exceeds "
            "*fused*, it is the least time of any kernel with such tiles, including cuDNN's.",
            "",
        ]
        for batch in BATCHES:
            measured = self.measured(FORWARD, batch)
            head = ["layer", "times", "GFLOP", "MB fused", "MB separate", "FLOP/byte", "limit"]
            head += ["fused us", "tiles us", "separate us", "compiled us"]
            head += [f"{name} us" for name in measured]
            rows = (self.forward_row(layer, batch, measured) for layer in self.layers)
            lines += [f"Batch {batch}:", "", *markdown(head, rows)]
        return lines + self.reasons(FORWARD)

    def forward_row(self, layer: Layer, batch: int, measured: list[str]) -> list[str]:
        fused = forward(layer, batch, "fused")
        separate = forward(layer, batch, "cudnn")
        time = self.time
        return [
            layer.name,
            str(self.layers[layer]),
            f"{conv_flops(layer, batch) / 1e9:.2f}",
            f"{total_bytes(fused) / 1e6:.1f}",
            f"{total_bytes(separate) / 1e6:.1f}",
            f"{fused[0].flops / fused[0].bytes:.0f}",
            self.limits.binds(fused[0]),
            f"{time(fused):.1f}",
            f"{tile_flops(layer, batch) / self.limits.flops_per_s * 1e6:.1f}",
            f"{time(separate):.1f}",
            f"{time(forward(layer, batch, 'compiled')):.1f}",
            *self.achieved(FORWARD, layer, batch, measured),
        ]

    def backward(self) -> list[str]:
        lines = [
            "## Backward",
            "",
            "The base is frozen. The gradient of the activation is always a pass of its own; after it come "
            "the gradient of the input and that of the adapter, which the fused kernel sums directly from "
            "the images without a gradient of W, and which loralib's form computes from cuDNN's gradient of "
            "W. Both read and write the same images, so training gains as much as the forward pass does. "
            "*Training*: forward and backward, where the fused kernel also stores the activation's input.",
            "",
        ]
        for batch in BATCHES:
            measured = self.measured(TRAINING, batch)
            head = ["layer", "GFLOP", "input's gradient MB", "us", "adapter's gradient MB", "us"]
            head += ["backward us", "loralib us", "training us", "loralib us"]
            head += [f"training, {name} us" for name in measured]
            rows = (self.backward_row(layer, batch, measured) for layer in self.layers)
            lines += [f"Batch {batch}:", "", *markdown(head, rows)]
        return lines + self.reasons(TRAINING)

    def backward_row(self, layer: Layer, batch: int, measured: list[str]) -> list[str]:
        time = self.time
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
            *self.achieved(TRAINING, layer, batch, measured),
        ]

    def means(self) -> list[str]:
        """Predicted geometric means over the distinct layers, beside the bars of the project."""

        def mean(ours: Callable, theirs: Callable) -> list[str]:
            time = self.time
            means = [
                statistics.geometric_mean(
                    time(ours(layer, batch)) / time(theirs(layer, batch)) for layer in self.layers
                )
                for batch in BATCHES
            ]
            return [f"{value:.2f}" for value in means]

        no_adapter, loralib = "cuDNN without an adapter", "loralib's form"
        comparisons = [
            ("forward, network", FORWARD, no_adapter, way, "plain", ["1.05", "1.05"]),
            ("forward, bias only", BARE, no_adapter, bare_way, "plain", ["1.05", "1.05"]),
            ("forward, network", FORWARD, loralib, way, "loralib", ["1.00", "0.85"]),
            ("forward, bias only", BARE, loralib, bare_way, "loralib", ["1.00", "0.85"]),
            ("forward + backward, network", TRAINING, loralib, trained_way, "loralib", ["1.00", "0.90"]),
        ]
        head = ["ratio", "batch 8", "batch 1", "bar, batch 8", "bar, batch 1"]
        head += ["measured, batch 8", "measured, batch 1"] if self.gpu else []
        rows = [
            [
                f"{what} / {peer}",
                *mean(passes("fused"), passes(how)),
                *bars,
                *self.measured_means(group, {"plain": PLAIN, "loralib": LORALIB}[how]),
            ]
            for what, group, peer, passes, how, bars in comparisons
        ]
        return [
            "## Geometric means",
            "",
            "Over the distinct layers, beside the highest ratio that the project allows. On cuDNN's side the "
            "same bias, activation, residual and concatenation are ATen's passes; *bias only* compares the "
            "convolutions alone.",
            "",
            *markdown(head, rows),
        ]

    def measured_means(self, group: str, peer: str) -> list[str]:
        if not self.gpu:
            return []
        cells = []
        for batch in BATCHES:
            found = [_ratio(case, peer) for case in self.cases(group, batch=batch)]
            found = [one for one in found if one is not None]
            cells.append(f"{1 / geometric_mean(found).median:.2f}" if found else "-")
        return cells

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
        if self.cases(GROUP):
            head += ["measured, default", "measured, best of ours", "best of ours, cuDNN only", "peer ran"]
        return [
            "## The residual block",
            "",
            "Two convolutions, GELU and the residual, and in the decoder also the convolution on a "
            'concatenation before them, batch 8. The peer is `torch.compile(mode="max-autotune")` on '
            "merged weights: *cuDNN* if it calls cuDNN and does the rest of each convolution in one "
            "pass, *template* if its own Triton convolution wins, which includes the rest. *Needed*: for "
            "1.3x, the fraction of its limit that our kernel has to reach, relative to the fraction that "
            "cuDNN and the passes around it reach of theirs.",
            "",
            *markdown(head, rows),
            self.verdict(min(gains), max(gains)),
            "",
        ]

    def verdict(self, low: float, high: float) -> str:
        """What the model says about the bar."""
        enough = "every block has" if low >= BAR_OF_BLOCKS else "not every block has"
        return (
            f"Against cuDNN the model predicts {low:.2f}x to {high:.2f}x; the bar is {BAR_OF_BLOCKS}x: "
            f"{enough} room for it, provided that our convolution reaches what *needed* says. Against the "
            "template only the concatenation is left to gain, so a residual block without one cannot meet "
            "the bar by fusion alone: the measurement shows which of the two the peer ran."
        )

    def block_time(self, layers: list[Layer], how: str) -> float:
        return self.time([one for layer in layers for one in forward(layer, 8, how)])

    def achieved_block(self, name: str) -> list[str]:
        """How much faster ours was than the fastest of torch.compile, and than it with cuDNN only."""
        if not self.cases(GROUP):
            return []
        found = self.cases(GROUP, block=name)
        candidates = found[0]["candidates"] if found else {}
        times = {label: one["median_s"] for label, one in candidates.items()}
        ours = [times[label] for label in KERNELS if label in times]
        compiled = {label: time for label, time in times.items() if label.startswith(COMPILED)}
        if not ours or not compiled:
            return ["-"] * 4
        best = min(compiled, key=compiled.get)
        only = compiled.get(CUDNN_ONLY)
        template = any("triton_tem" in kernel for kernel in candidates[best]["kernels"])
        return [
            f"{compiled[best] / times[OURS]:.2f}",
            f"{compiled[best] / min(ours):.2f}",
            f"{only / min(ours):.2f}" if only else "-",
            "template" if template else "cuDNN",
        ]

    def time(self, passes: list[Pass]) -> float:
        return microseconds(self.limits, passes)

    def cases(self, group: str, **arguments) -> list[dict]:
        """The measured cases of a group that have these arguments."""
        cases = self.run.groups.get(group, ()) if self.run else ()
        return [case for case in cases if arguments.items() <= case["arguments"].items()]

    def measured(self, group: str, batch: int) -> list[str]:
        """The candidates that have achieved times."""
        cases = self.cases(group, batch=batch)
        return list(dict.fromkeys(name for case in cases for name in case["candidates"]))

    def achieved(self, group: str, layer: Layer, batch: int, names: list[str]) -> list[str]:
        found = self.cases(group, layer=layer.name, batch=batch)
        medians = [found[0]["candidates"].get(name) if found else None for name in names]
        return ["-" if one is None else f"{one['median_s'] * 1e6:.1f}" for one in medians]

    def reasons(self, group: str) -> list[str]:
        """Why candidates are missing, each reason once."""
        missing = {pair for case in self.cases(group) for pair in case["missing"].items()}
        lines = [f"- {name} is missing from a layer: {why}" for name, why in sorted(missing)]
        return [*lines, ""] if lines else []

    def losses(self) -> list[str]:
        """Every layer for which the default takes longer than a peer."""
        lines = []
        both = (PLAIN, LORALIB)
        for group, peers in {FORWARD: both, BARE: both, TRAINING: (LORALIB,)}.items():
            for case in self.cases(group):
                found = {peer: _ratio(case, peer) for peer in peers}
                lost = [f"{1 / r.median:.2f}x {peer}" for peer, r in found.items() if r and r.median < 1]
                lines += [f"- {group}, {case['title']}: {', '.join(lost)}"] if lost else []
        if not self.cases(FORWARD):
            lines = ["Not known until a GPU has run it."]
        return ["## Where we lose", "", *(lines or ["Nowhere in this run."]), ""]

    def omissions(self) -> list[str]:
        return [
            "## What the model leaves out",
            "",
            "- Caches. Every byte counts as device memory; what the L2 keeps between two passes is cheaper, "
            "which favours the separate kernels, especially at batch 1, where a whole layer may fit.",
            "- Halos. A convolution reads the pixels around its tile again, mostly from the L2.",
            "- W. Every block of the fused kernel merges its part of W again, from the L2.",
            "- Launches"
            + (": no kernel takes less time than the smallest one." if self.limits.kernel_s else
               ", until their time is measured: small layers at batch 1 will take longer than predicted, and "
               "the separate kernels lose most, because there are more of them."),
            "- Whatever else a kernel computes: GELU's erf and the addresses are not matrix products.",
            "- What the compiler may do around a block, such as resizing directly into the concatenation.",
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


def _ratio(case: dict, peer: str) -> Ratio | None:
    """How much faster the default is than a peer; None if the peer is missing."""
    return next((one for ours, name, one in peer_ratios(case) if (ours, name) == (OURS, peer)), None)
