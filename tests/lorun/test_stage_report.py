"""The report of a network with a shared base."""

import copy

import pytest
import torch
from torch import nn

import lorun
from lorun.stage_report import report_stages
from tests.lorun.adapters.shared_networks import IMAGE, small_network


def test_parameters_are_counted_by_part():
    model = small_network(4)
    model.outside = nn.Linear(5, 2)
    lorun.share_stages(model, "stages", rank_pattern={"first": 1}, own=["second"])
    found = report_stages(model, (IMAGE,))
    base, up, down = 8 * 4 * 9, 24 * 3, 3 * 12
    assert (found.base, found.adapters, found.rest) == (base, 4 * (up + down), 12)
    # The step size, two biases and the second convolution of each stage.
    assert found.own == 4 * (1 + 8 + 4 + 4 * 8 * 9)
    assert found.block == 4 * (1 + 8 + 4 + 2 * 4 * 8 * 9)
    assert found.in_stages + found.rest == sum(p.numel() for p in model.parameters())
    assert found.factor == found.block / found.in_stages
    assert found.flops == 2 * 4 * 2 * (2 * 7 * 5) * 4 * 8 * 9


def test_it_says_what_got_no_adapter_and_why():
    model = lorun.share_stages(small_network(), "stages", exclude=["second"])
    found = lorun.report(model)
    reasons = {layer.decision.name: layer.decision.why for layer in found.without_adapter}
    assert reasons == {
        "step": "one number",
        "first.bias": "a vector",
        "second.weight": "excluded",
        "second.bias": "a vector",
    }
    text = str(found)
    assert "3 stages: stages.0" in text and "excluded" in text
    line = next(line for line in text.splitlines() if line.startswith("first.weight"))
    assert line.split() == ["first.weight", "8x4x3x3", "adapter", "rank", "1"]


def test_after_compression_it_says_what_was_kept():
    model = lorun.compress(small_network(), "stages", gamma=25)
    (layer,) = [row for row in report_stages(model).layers if row.decision.name == "first.weight"]
    assert len(layer.kept) == len(layer.ranks) == 3 and all(0 < share < 1 for share in layer.kept)
    assert "keeps" in str(layer)


def test_wrapped_networks_count_as_themselves():
    model = lorun.share_stages(small_network(), "stages")
    expected = report_stages(model)
    for wrapped in (torch.compile(model, backend="eager"), nn.DataParallel(model)):
        assert lorun.report(wrapped) == expected
    net = lorun.create_model("cs25-unet-lorun9")
    assert lorun.report(torch.compile(net, backend="eager"), (32, 32)) == lorun.report(net, (32, 32))


def test_networks_that_share_nothing_are_refused():
    with pytest.raises(
        ValueError, match="expected an UnfoldingNetwork, or a network that lorun.share_stages"
    ):
        lorun.report(small_network())


def test_trainable_parameters_are_printed_once_each(capsys):
    model = lorun.share_stages(small_network(), "stages")
    twin = copy.deepcopy(model)
    twin.again = twin.stages[0]
    for net in (model, twin):
        lorun.print_trainable_parameters(net)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    first, second = capsys.readouterr().out.splitlines()
    assert first == second == f"trainable parameters: {trained:,} of {total:,} ({trained / total:.2%})"
