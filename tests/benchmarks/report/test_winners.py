"""Backends of the layers, compared by hand."""

import math

from benchmarks.report import winners
from benchmarks.report.page import page, terminal_lines


def test_means_over_the_layers(layers_run):
    lines = winners.mean_lines(layers_run)
    # plain over each: 4/3 and 2/4; 4/3 and 2/4; 4/5 and 2/3; 4/4 and 2/9.
    expected = "LoRun: 0.816; LoRun, cuda: 0.816; LoRun, triton: 0.730; LoRun, aten: 0.471"
    assert lines[0] == f"LoRA layer, forward, batch 1, plain frozen over {expected}"
    assert lines[1].startswith("LoRA layer, forward, batch 1, loralib's form over LoRun: 1.414;")
    assert [line.split(", ")[2] for line in lines] == ["batch 1"] * 2 + ["batch 8"] * 2


def test_winners_become_rows_of_the_defaults(layers_run):
    """At batch 1 CUDA takes 7 for both layers and Triton 8; at batch 8 CUDA lacks one of them."""
    assert winners.default_rows(layers_run) == [
        (3, 28, 28, 65536, "cuda"),
        (3, 28, 28, math.inf, "triton"),
        (3, 84, 28, math.inf, "aten"),
    ]


def test_both_are_printed_and_written(layers_run):
    row = '    (3, 28, 28, float("inf"), "triton"),'
    assert row in terminal_lines(layers_run)
    written = page({"a": layers_run}, {"a": ()}, "c").splitlines()
    assert row in written and "### Backends of the low-rank layers" in written


def test_a_run_without_the_layers_has_none(run):
    assert winners.lines(run) == []
