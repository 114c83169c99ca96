"""The CASSI cases: what they count, and that every way to compute something gives the same result."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import lorun_kernels as lk
from benchmarks.cases import cassi
from benchmarks.cases.backends import on_backend
from benchmarks.harness.case import OURS, REFERENCE, Work
from benchmarks.harness.memory import kept_bytes
from benchmarks.peers import cassi_rolls
from benchmarks.table import entry
from lorun_kernels.backends import cassi_backend

SMALL = {"size": 6, "width": 7, "batch": 2, "bands": 3, "compiled": False}
STEPS = ["CASSI PGD step", "CASSI HQS step"]
TRAINING = [f"{step}, forward + backward" for step in STEPS]
GROUPS = ["CASSI forward", "CASSI adjoint", *STEPS, *TRAINING, "CASSI HQS step, backward"]
BYTES, VOXELS = 4, 2 * 3 * 6 * 7
SNAPSHOT_AND_MASK = 2 * 6 * (7 + 2 * 2) + 6 * 7


def small(group: str, **inputs):
    return entry(group).build(device="cpu", **SMALL | inputs)


@pytest.mark.parametrize(
    "group, cubes, flops",
    [
        ("CASSI forward", 1, 2),
        ("CASSI adjoint", 1, 1),
        ("CASSI PGD step", 2, 4),
        ("CASSI HQS step, forward + backward", 4, 8),
        ("CASSI HQS step, backward", 2, 4),
    ],
)
def test_work_by_hand(group, cubes, flops):
    assert small(group).work == Work(BYTES * (cubes * VOXELS + SNAPSHOT_AND_MASK), flops * VOXELS)
    half = small(group, dtype="bfloat16").work
    assert half == Work(2 * (cubes * VOXELS + SNAPSHOT_AND_MASK), flops * VOXELS)


@pytest.mark.parametrize("dtype, layout", list(product(cassi.TOLERANCES, cassi.LAYOUTS)))
@pytest.mark.parametrize("group", GROUPS)
def test_candidates_are_equal_on_every_set_of_inputs(monkeypatch, group, dtype, layout):
    monkeypatch.setattr(cassi, "input_sets", lambda device, size: 3)
    case = small(group, dtype=dtype, layout=layout)
    assert case.inputs == 3 and not case.missing
    compared = {name: one for name, one in case.candidates.items() if one.unlike is None}
    peers = {name for name, one in compared.items() if not one.ours}
    assert peers - {"strided view"} == ({"rolls", "loop of slices"} if layout == "NCHW" else set())
    ours = []
    for i in range(3):
        results = {name: _tensors(one.call(i)) for name, one in compared.items()}
        for name, result in results.items():
            for one, true in zip(result, results[OURS], strict=True):
                assert (one - true).abs().max() <= case.tolerance * true.abs().max(), name
        ours.append(results[OURS][0])
    assert not torch.equal(ours[0], ours[1]) and not torch.equal(ours[1], ours[2])


def _tensors(result) -> list[torch.Tensor]:
    return [one.detach().float() for one in ([result] if isinstance(result, torch.Tensor) else result)]


@pytest.mark.parametrize("group", STEPS)
@torch.no_grad()
def test_steps_that_change_their_input_stay_what_they_are(group):
    case = small(group)
    start = case.candidates[OURS].call(0)
    for name in ("rolls", f"{OURS}, in place"):
        torch.testing.assert_close(case.candidates[name].call(0), start, rtol=1e-4, atol=1e-5)
        for _ in range(300):
            last = case.candidates[name].call(0)
        assert last.isfinite().all() and last.abs().max() < 100
        assert not ((last.abs() < 1e-30) & (last != 0)).any()


@pytest.mark.parametrize("group", TRAINING)
def test_ours_keeps_a_snapshot_and_a_mask_for_backward(group):
    case = small(group)
    kept = {
        name: kept_bytes(lambda one=one: one.forward(0))
        for name, one in case.candidates.items()
        if one.forward
    }
    assert kept[OURS] == BYTES * (SNAPSHOT_AND_MASK + 1)
    assert kept["rolls"] > BYTES * VOXELS


def test_a_wrong_peer_is_caught(monkeypatch, measured):
    monkeypatch.setattr(cassi_rolls, "STEP", 1)
    padded = {"batch": 1, "size": 3, "bands": 3, "compiled": False}
    with pytest.raises(AssertionError, match="loop of slices has shape"):
        measured(cassi.forward("cpu", **padded))


@pytest.mark.parametrize("group", TRAINING)
def test_a_wrong_gradient_is_caught(monkeypatch, group, measured):
    monkeypatch.setattr(cassi_rolls, "_weighted", lambda residual, scale, gram: 0.9 * scale * residual)
    with pytest.raises(AssertionError, match="1x2x3x5: (loop of slices|rolls), result 0"):
        measured(small(group, batch=1, bands=2, size=3, width=5))


def test_a_backend_is_chosen_for_a_call_or_missing_with_the_reason(monkeypatch):
    cube = torch.rand(1, 2, 3, 4)
    assert on_backend("reference", lambda i: cassi_backend(cube))(0) == "reference"
    assert cassi_backend(cube) == "cpu"
    monkeypatch.setattr(
        lk, "available_backends", lambda: {"cuda": "no GPU", "triton": "no Triton", "reference": None}
    )
    monkeypatch.setitem(cassi.BACKENDS, "cpu", cassi.BACKENDS["cuda"])
    for group in GROUPS:
        assert small(group).missing == {
            "LoRun, cuda": "RuntimeError: no GPU",
            "LoRun, triton": "RuntimeError: no Triton",
        }


def test_the_backward_pass_alone_is_that_of_its_backend():
    case = small("CASSI HQS step, backward")
    graphs = {name: case.candidates[name].forward(0).grad_fn.name() for name in (OURS, REFERENCE)}
    assert graphs[OURS] != graphs[REFERENCE]


@pytest.mark.parametrize(
    "group, layouts",
    [
        *((group, ["NCHW", "NHWC"]) for group in ("CASSI forward", "CASSI adjoint", *STEPS)),
        ("CASSI HQS step, backward", ["NCHW"]),
    ],
)
def test_a_gpu_has_the_same_shapes_and_types_for_every_op(group, layouts):
    cases = {(one["batch"], one["size"], one["dtype"], one["layout"]) for one in entry(group).cuda}
    assert cases == {
        (*shape, dtype, layout)
        for shape, dtype, layout in product([(8, 256), (1, 660)], ["float32", "bfloat16"], layouts)
    }


def test_axes():
    assert cassi.over_size("cpu", size=5, bands=2).axis == ("side of the cube, pixels", 5)
    case = cassi.over_batch("cpu", batch=3, size=5, bands=2)
    assert (case.axis, case.images) == (("batch", 3), 3)
