"""The page about the limits of a GPU: with assumed ones, and with a run on one."""

from benchmarks.cases.layers import layer_table, named_layer
from benchmarks.cases.residual_block import GROUP
from benchmarks.report.roofline import ASSUMED, Page
from benchmarks.report.roofline_plot import draw
from benchmarks.report.run import Run

LAYERS = layer_table()
SQUARE = named_layer("28->28 3x3 @256 gelu")


def page_of(run: Run | None) -> str:
    return "\n".join(Page(LAYERS, run, "command").lines())


def test_the_page_says_that_limits_are_assumed():
    page = page_of(None)
    assert "4.30 TB/s" in page and "790 TFLOP/s" in page and "**Both are assumed**" in page
    assert "LoRun, CUDA" not in page and "measured, batch" not in page
    row = "| 28->28 3x3 @256 gelu | 2 | 7.40 | 58.7 | 176.2 | 126 | memory | 13.7 | 12.2 | 41.0 | 27.3 |"
    assert row in page


def test_the_page_shows_what_was_measured(layers_run):
    block = {
        "kind": "case",
        "group": GROUP,
        "arguments": {"block": "residual block, 28 channels @256", "batch": 8},
        "title": "a block",
        "device": "cuda",
        "missing": {},
        "ratios": [],
        "candidates": {
            name: {"median_s": seconds, "ours": name.startswith("LoRun"), "kernels": kernels}
            for name, seconds, kernels in (
                ("LoRun", 3.0, []),
                ("LoRun, cuda", 2.0, []),
                ("LoRun, aten", 1.0, []),  # cuDNN is not a kernel of ours
                ("compiled", 2.5, ["triton_tem_fused_convolution_0"]),
                ("compiled, cuDNN only", 3.0, []),
            )
        },
    }
    layers_run.records.append(block)
    page = page_of(layers_run)
    assert "assumed" not in page and "2.00 TB/s" in page and "measured on a GPU" in page
    row = next(line for line in page.splitlines() if line.startswith("| 28->28 3x3 @256 gelu"))
    # The default, CUDA, Triton, cuDNN on the merged weight, without an adapter, loralib's form.
    assert row.endswith("| 7000.0 | 9000.0 | 7000.0 | 8000.0 | 9000.0 | 9000.0 |")
    assert "- LoRun, cuda is missing from a layer: no kernel" in page
    losses = [line for line in page.splitlines() if line.startswith("- LoRA layer")]
    assert losses == ["- LoRA layer, forward, 28->28 3x3 @256 +residual, batch 1: 2.00x plain frozen"]
    assert "| 72% | 0.83 | 1.25 | 1.50 | template |" in page
    mean = next(line for line in page.splitlines() if line.startswith("| forward, network / cuDNN without"))
    # 7/9, 7/14 and 8/8 at batch 8; 3/4 and 4/2 at batch 1.
    assert mean.endswith(f"| {(7 / 9 * 7 / 14) ** (1 / 3):.2f} | {(3 / 4 * 4 / 2) ** 0.5:.2f} |")


def test_measured_limits_count_every_byte_as_device_memory(layers_run):
    page = Page(LAYERS, layers_run, "command")
    assert page.bytes_per_s == 2e12 and page.limits.bandwidth(100) == 2e12
    assert page.limits.kernel_s == 1.5e-6
    assert Page(LAYERS, None, "command").limits == ASSUMED


def test_achieved_layers_are_crosses_in_the_plot(layers_run):
    def crosses(run: Run | None) -> int:
        return sum(line.get_marker() == "x" for line in draw(Page(LAYERS, run, "command")).axes[0].lines)

    assert (crosses(None), crosses(layers_run)) == (0, 3)
