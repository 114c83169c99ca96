"""Whole networks as cases: their names, what is checked, their weights, and workers that end."""

import gc
import os

import pytest
import torch
from torch import nn

from benchmarks.cases import networks, training, workers
from benchmarks.cases.tasks import BLOCK, FIELD, PADDED, SHARED, TASKS, denoiser_bytes, networks_of
from benchmarks.harness.case import OURS
from benchmarks.harness.measure import measure
from benchmarks.harness.timing import Mode
from lorun.report import count_flops, report

ONCE = Mode("test", seconds=0.0, least=1, most=1)
STAGES = 3
TINY = {
    "cs": {"task": "cs", "size": 32, "stages": STAGES, "width": 4},
    "cassi": {"task": "cassi", "size": 13, "stages": STAGES, "width": 4, "bands": 3},
}
NETWORKS = ["LoRun-3", "Shared-3", "Block-3", FIELD]


@pytest.fixture(params=TASKS)
def tiny(request):
    return TINY[request.param]


def own_code(case):
    return [name for name, one in case.candidates.items() if one.own_code]


def test_networks_are_measured_beside_their_parts(tiny):
    case = networks.network("cpu", batch=2, compiled=False, **tiny)
    record = measure(case, ONCE)
    parts, padded = ["data steps alone", "start alone"], [PADDED] * (tiny["task"] == "cassi")
    assert list(record["candidates"]) == [*NETWORKS, *padded, *parts]
    assert case.ours == ["LoRun-3", *parts]
    assert own_code(case) == ["Shared-3", "Block-3"]
    assert [one.unlike for one in case.candidates.values()].count(None) == 3
    ours = record["candidates"]["LoRun-3"]
    assert ours["images_per_s"] == 2 / ours["median_s"]
    steps = case.candidates["data steps alone"].call(0)
    assert len(steps) == STAGES and all(step.shape[0] == 2 for step in steps)


@pytest.mark.parametrize("form", [BLOCK, FIELD])
def test_another_weight_in_one_stage_is_caught(form, monkeypatch):
    def spoilt(*args):
        made = networks_of(*args)
        with torch.no_grad():
            made.forms[form].denoisers[1].decoder1.first.weight.mul_(0.5)
        return made

    monkeypatch.setattr(networks, "networks_of", spoilt)
    case = networks.network("cpu", compiled=False, **TINY["cassi"])
    with pytest.raises(AssertionError, match=f"{form}.*from ours"):
        measure(case, ONCE)


def test_weights_of_stages_that_share_count_once(tiny):
    made = networks_of(device="cpu", **tiny)
    one = sum(parameter.nbytes for parameter in made.forms[SHARED].denoiser.parameters())
    assert denoiser_bytes(made.forms[SHARED]) == one
    assert denoiser_bytes(made.forms[BLOCK]) == denoiser_bytes(made.forms[FIELD]) == STAGES * one
    assert denoiser_bytes(made.forms[OURS]) == one + 4 * report(made.forms[OURS]).adapters


def test_work_of_a_batch():
    tiny = TINY["cs"]
    work = networks.network("cpu", batch=2, compiled=False, **tiny).work
    net = networks_of(device="cpu", **tiny).forms[OURS]
    # Two images of 32x32 and their 256 measurements each.
    assert work.bytes == 4 * 2 * (32 * 32 + 256) + denoiser_bytes(net)
    assert work.flops == 2 * count_flops(net, (32, 32))


def test_compiled_stages_share_one_graph(monkeypatch):
    graphs, compile = [], nn.Module.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **options: compile(self, backend=backend, **options)
    )
    case = networks.network("cpu", **TINY["cs"])
    record = measure(case, ONCE)
    ours, fields = (f"{form}, {networks.COMPILED}" for form in ("LoRun-3", FIELD))
    assert {ours, fields} <= record["candidates"].keys()
    assert case.ours[:2] == ["LoRun-3", ours]
    assert len(graphs) == 2


def test_a_training_step_trains_what_is_said(tiny):
    case = training.training_step("cpu", **tiny)
    record = measure(case, ONCE)
    assert list(record["candidates"]) == NETWORKS
    assert own_code(case) == ["Shared-3", "Block-3"]
    assert case.grad and case.peak
    for name, one in case.candidates.items():
        loss, *gradients = one.call(0)
        assert loss.shape == () and all(gradient.shape == (STAGES,) for gradient in gradients)
        assert record["candidates"][name]["kept_bytes"] > 0


def test_only_adapters_steps_and_phi_train_in_ours(tiny):
    made = networks_of(device="cpu", **tiny)
    trained = {form: [p for p in made.forms[form].parameters() if p.requires_grad] for form in made.forms}
    scalars, adapters = 2, 2 * 16 * STAGES
    phi = tiny["task"] == "cs"
    assert len(trained[OURS]) == scalars + adapters + phi
    assert len(trained[SHARED]) == scalars + 2 * 16 + phi
    assert len(trained[BLOCK]) == len(trained[FIELD]) == scalars + 2 * 16 * STAGES + phi


def test_stages_are_an_axis_with_names_that_join(tiny):
    case = training.over_stages("cpu", **tiny)
    assert case.axis == ("stages", STAGES)
    assert list(case.candidates) == [OURS, SHARED, BLOCK, FIELD]
    assert own_code(case) == [SHARED, BLOCK]


@pytest.mark.parametrize("cores, most, suffixes", [(1, 8, [""]), (4, 2, ["", ", 1 thread"])])
def test_threads_are_as_many_as_there_are_cores(cores, most, suffixes, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    case = workers.threads("cpu", most=most, **TINY["cassi"])
    assert case.title.endswith(f"threads: {min(cores, most)}")
    assert list(case.candidates) == [name + suffix for suffix in suffixes for name in (OURS, FIELD)]
    assert [case.compared_with(FIELD + suffix) for suffix in suffixes] == [
        OURS + suffix for suffix in suffixes
    ]


def test_workers_restore_the_same_and_end():
    arguments = {"device": "cpu", **TINY["cassi"]}
    pool = workers.Workers(2, arguments)
    torch.manual_seed(0)
    made = networks_of(**arguments)
    with torch.no_grad():
        expected = made.forms[FIELD](made.y)
    results = pool.run(FIELD, 2)
    assert len(results) == 2 and len(pool.run(OURS, 1)) == 1
    for result in results:
        # The start's solver rounds differently in one thread and in several: as close as a case asks.
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)

    first, second = pool.processes
    pool.pipes[0].close()  # as the system does where this process is killed
    first.join(timeout=20)
    assert first.exitcode == 0 and second.is_alive()
    del pool
    gc.collect()
    assert not second.is_alive()
