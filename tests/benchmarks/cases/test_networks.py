"""Whole networks as cases: their names, what is checked, and their work."""

import pytest
import torch
from torch import nn

from benchmarks.cases import networks
from benchmarks.cases.tasks import BLOCK, FIELD, PADDED, denoiser_bytes, networks_of
from benchmarks.harness.case import OURS
from lorun.report import count_flops

STAGES = 3
NAMES = ["LoRun-3", "Shared-3", "Block-3", FIELD]


def own_code(case):
    return [name for name, one in case.candidates.items() if one.own_code]


def test_networks_are_measured_beside_their_parts(tiny, measured):
    case = networks.network("cpu", batch=2, compiled=False, **tiny)
    record = measured(case)
    parts, padded = ["data steps alone", "start alone"], [PADDED] * (tiny["task"] == "cassi")
    assert list(record["candidates"]) == [*NAMES, *padded, *parts]
    assert case.ours == ["LoRun-3", *parts]
    assert own_code(case) == ["Shared-3", "Block-3"]
    assert [one.unlike for one in case.candidates.values()].count(None) == 3
    ours = record["candidates"]["LoRun-3"]
    assert ours["images_per_s"] == 2 / ours["median_s"]
    steps = case.candidates["data steps alone"].call(0)
    assert len(steps) == STAGES and all(step.shape[0] == 2 for step in steps)


@pytest.mark.parametrize("form", [BLOCK, FIELD])
def test_another_weight_in_one_stage_is_caught(form, monkeypatch, measured, tiny_cassi):
    def spoilt(*args):
        made = networks_of(*args)
        with torch.no_grad():
            made.forms[form].denoisers[1].decoder1.first.weight.mul_(0.5)
        return made

    monkeypatch.setattr(networks, "networks_of", spoilt)
    case = networks.network("cpu", compiled=False, **tiny_cassi)
    with pytest.raises(AssertionError, match=f"{form}.*from ours"):
        measured(case)


def test_work_of_a_batch(tiny_cs):
    work = networks.network("cpu", batch=2, compiled=False, **tiny_cs).work
    net = networks_of(device="cpu", **tiny_cs).forms[OURS]
    # Two images of 32x32 and their 256 measurements each.
    assert work.bytes == 4 * 2 * (32 * 32 + 256) + denoiser_bytes(net)
    assert work.flops == 2 * count_flops(net, (32, 32))


def test_compiled_stages_share_one_graph(monkeypatch, measured, tiny_cs):
    graphs, compile = [], nn.Module.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **options: compile(self, backend=backend, **options)
    )
    case = networks.network("cpu", **tiny_cs)
    record = measured(case)
    ours, fields = (f"{form}, {networks.COMPILED}" for form in ("LoRun-3", FIELD))
    assert {ours, fields} <= record["candidates"].keys()
    assert case.ours[:2] == ["LoRun-3", ours]
    assert len(graphs) == 2
