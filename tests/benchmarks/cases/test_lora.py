"""Layers with an adapter as cases: the networks' own ones, their work, and that a wrong peer is caught."""

import sys
from dataclasses import replace

import pytest
import torch

import lorun_kernels as lk
from benchmarks.cases import lora
from benchmarks.cases.layers import bare_table
from benchmarks.harness.case import OURS, REFERENCE
from benchmarks.peers import adapters
from benchmarks.peers.packages import package
from benchmarks.table import entry

for name in ("loralib", "peft"):
    try:
        package(name)
    except ImportError as error:
        pytest.skip(f"needs the peers: {error}", allow_module_level=True)

LIBRARIES = ["plain frozen", "loralib", "peft"]


def convolution(**others):
    arguments = {"in_channels": 3, "out_channels": 5, "size": 7, "batch": 2, "compiled": False}
    return lora.convolution("cpu", **arguments | others)


def linear(**others):
    return lora.linear("cpu", in_features=11, out_features=7, tokens=5, compiled=False, **others)


BUILDERS = [convolution, linear]


def test_the_table_has_every_convolution_of_the_shipped_networks():
    group = entry("LoRA convolution, forward")
    ours = {
        (one["in_channels"], one["out_channels"], one["size"], one.get("kernel", 3))
        for one in group.arguments("cpu", full=True)
    }
    theirs = bare_table()
    assert ours == {(one.in_channels, one.out_channels, one.height, one.kernel[0]) for one in theirs}
    assert all((one.stride, one.groups, one.padding[0]) == ((1, 1), 1, one.kernel[0] // 2) for one in theirs)
    for one in theirs:
        layer = lora._adapted(torch.nn.Conv2d(one.in_channels, one.out_channels, one.kernel))
        assert layer.rank == one.rank


@pytest.mark.parametrize("grad, merged", [(False, [lora.MERGED]), (True, [])])
def test_a_layer_has_every_candidate(grad, merged):
    case = convolution(grad=grad)
    assert case.ours == [OURS, "LoRun, factored", REFERENCE]
    assert list(case.candidates) == [*case.ours, *LIBRARIES, *merged]
    assert list(linear(grad=grad).candidates) == [OURS, REFERENCE, *LIBRARIES, *merged]
    compiled = list(convolution(grad=grad, compiled=True).candidates)
    assert compiled == [*case.candidates, "loralib, compiled"]
    assert case.compared_with("peft") == "LoRun, factored"


@pytest.mark.parametrize("kernel, channels", [(1, (3, 5)), (3, (5, 3)), (3, (1, 12)), (3, (23, 21))], ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_candidates_agree(kernel, channels, grad, measured):
    case = convolution(in_channels=channels[0], out_channels=channels[1], kernel=kernel, grad=grad)
    names = list(case.candidates)
    record = measured(case)
    assert list(record["candidates"]) == names and not record["missing"]


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("grad", [False, True])
def test_candidates_agree_in_half_precision(monkeypatch, build, grad, measured):
    monkeypatch.setitem(lora.DTYPES, "cpu", torch.bfloat16)
    monkeypatch.setitem(lora.TOLERANCES, "cpu", lora.TOLERANCES["cuda"])
    record = measured(build(grad=grad))
    assert not record["missing"]


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("peer", ["loralib", "peft"])
@pytest.mark.parametrize("factor", [0, 1], ids=["up", "down"])
def test_a_library_with_another_factor_is_caught(monkeypatch, measured, build, grad, peer, factor):
    right = getattr(adapters, peer)

    def wrong(*layers):
        twin = right(*layers)
        with torch.no_grad():
            twin.factors[factor].mul_(1.01)
        return twin

    monkeypatch.setattr(adapters, peer, wrong)
    with pytest.raises(AssertionError, match=f": {peer}, result"):
        measured(build(grad=grad))


@pytest.mark.parametrize("build", BUILDERS)
def test_a_plain_layer_is_not_taken_for_an_adapted_one(build, measured):
    case = build()
    case.candidates["plain frozen"] = replace(case.candidates["plain frozen"], expected=None)
    with pytest.raises(AssertionError, match="plain frozen"):
        measured(case)


def test_a_gradient_of_the_wrong_factor_is_caught(monkeypatch, measured):
    right = adapters.loralib
    monkeypatch.setattr(
        adapters, "loralib", lambda layer: replace(twin := right(layer), factors=twin.factors[::-1])
    )
    with pytest.raises(AssertionError, match="loralib has shape"):
        measured(convolution(grad=True))


@pytest.mark.parametrize("peer", ["loralib", "peft"])
def test_a_library_that_is_not_installed_is_missing(monkeypatch, peer):
    monkeypatch.setitem(sys.modules, peer, None)
    case = convolution(compiled=True)
    names = ["loralib", "loralib, compiled"] if peer == "loralib" else ["peft"]
    assert list(case.missing) == names
    assert "pip install" in case.missing[peer]
    assert not set(names) & set(case.candidates)


def test_a_backend_that_cannot_run_is_missing(monkeypatch, measured):
    monkeypatch.setitem(lora.BACKENDS, "cpu", lora.BACKENDS["cuda"])
    reasons = dict.fromkeys(("cuda", "triton"), "no GPU") | dict.fromkeys(("aten", "reference"))
    monkeypatch.setattr(lk, "available_backends", lambda: reasons)
    case = convolution(grad=True)
    assert case.missing == dict.fromkeys(("LoRun, cuda", "LoRun, triton"), "RuntimeError: no GPU")
    assert {"LoRun, aten", REFERENCE} < set(measured(case)["candidates"])


def test_inputs_rotate():
    trial = lora.Trial("", torch.nn.Linear(3, 2), (5, 3), "cpu", grad=True)
    trial.inputs.append(trial.inputs[0].detach().mul(2).requires_grad_())
    trial.grads.append(trial.grads[0] * 3)
    first, second = (trial.case.candidates[OURS].call(i) for i in (0, 1))
    for gradient, other, factor in zip(first, second, (3, 6, 6), strict=True):
        torch.testing.assert_close(gradient * factor, other)


def test_work_and_bytes_by_hand():
    weight, bias, up, down = 3 * 5 * 9, 5, 15 * 3, 3 * 9
    images = 2 * 49 * (3 + 5)
    product, merge = 2 * 2 * 49 * weight, 2 * weight * 3
    case = convolution()
    assert case.work.bytes == 4 * (weight + bias + up + down + images)
    assert case.work.flops == product + merge
    step = convolution(grad=True)
    assert step.work.bytes == 4 * (weight + bias + 2 * (up + down) + 2 * images)
    assert step.work.flops == 3 * (product + merge)
    parameters = {name: one.parameters for name, one in case.candidates.items()}
    assert parameters["plain frozen"] == parameters[lora.MERGED] == 4 * (weight + bias)
    assert parameters[OURS] == parameters["loralib"] == 4 * (weight + bias + up + down)
    assert parameters["peft"] == parameters["LoRun, factored"] == 4 * (weight + bias + 5 + 27)


def test_only_loralib_keeps_the_merged_weight_for_backward(measured):
    candidates = measured(convolution(grad=True))["candidates"]
    image, weight, between = 4 * 2 * 3 * 49, 4 * 3 * 5 * 9, 4 * 2 * 1 * 49
    kept = {name: one["kept_bytes"] for name, one in candidates.items()}
    assert kept[OURS] == kept["LoRun, factored"] == kept["plain frozen"] == image
    assert kept["loralib"] == kept[REFERENCE] == image + weight
    assert kept["peft"] == image + between


def test_what_the_plots_are_drawn_over():
    size, batch = (
        lora.over_size("cpu", size=9, channels=5),
        lora.over_batch("cpu", batch=3, size=9, channels=5),
    )
    assert size.axis == ("side of the image, pixels", 9) and batch.axis == ("batch", 3)
    assert (size.images, batch.images) == (1, 3)
    assert list(size.candidates) == list(batch.candidates) == [OURS, lora.FACTORED, *LIBRARIES]
    assert (size.title, batch.title) == ("5->5 3x3 @9", "5->5 3x3 @9, batch 3")
