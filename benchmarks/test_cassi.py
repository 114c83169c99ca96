"""The CASSI ops at the field's size, (1, 28, 256, 256) float32, against the field's code and against a copy.

No clock is asserted: the figures are ratios within rounds of random order, kept in `extra_info` and printed.
The peers stand beside the floor too: an op that reads or writes the cube is no faster than doing only that.
"""

from __future__ import annotations

import pytest
import torch

import lorun_kernels as lk
from benchmarks.cassi_peers import RollStep, loop_adjoint, loop_forward, pad

BATCH, BANDS, SIZE = 1, 28, 256
ROUNDS = 100
STEPS = {
    "cassi_pgd_step": (lk.cassi_pgd_step, lk.cassi_pgd_step_, False),
    "cassi_hqs_step": (lk.cassi_hqs_step, lk.cassi_hqs_step_, True),
}


@pytest.fixture
def scene():
    """x, y, mask and one rho or mu."""
    x = torch.rand(BATCH, BANDS, SIZE, SIZE)
    y = torch.rand(BATCH, SIZE, SIZE + 2 * (BANDS - 1))
    return x, y, torch.rand(SIZE, SIZE), torch.tensor(0.5)


def _compare(benchmark, interleaved, table, calls, ours: str, floor: str, peer: str, rounds=ROUNDS) -> None:
    """Time `calls` in turn, and add a line for `ours` and each other one, and for the floor and the peer."""
    seconds = interleaved(calls, rounds)
    benchmark.extra_info.update({"threads": torch.get_num_threads(), "seconds": seconds})
    pairs = [(ours, name) for name in calls if name != ours] + [(floor, peer)]
    for name, other in pairs:
        table(benchmark.group, f"{name} / {other}", other, seconds[name], seconds[other])
    benchmark.pedantic(calls[ours], rounds=3)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.benchmark(group="cassi data step")
def test_step_against_rolls_and_a_copy(benchmark, interleaved, table, scene, name):
    x, y, mask, scale = scene
    step, _, hqs = STEPS[name]
    peer = RollStep(mask, BANDS, hqs)
    padded = pad(x)
    expected = peer(padded.clone(), y, scale)[..., :SIZE]
    torch.testing.assert_close(step(x, y, mask, scale), expected, rtol=1e-4, atol=1e-5)
    calls = {
        name: lambda: step(x, y, mask, scale),
        "x.clone()": lambda: x.clone(),
        "rolls": lambda: peer(padded, y, scale),
        "itself": lambda: step(x, y, mask, scale),
    }
    with torch.no_grad():
        _compare(benchmark, interleaved, table, calls, name, "x.clone()", "rolls")


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.benchmark(group="cassi data step, other forms")
def test_other_forms_of_a_step_against_a_copy(benchmark, interleaved, table, scene, name):
    x, y, mask, scale = scene
    step, step_, _ = STEPS[name]
    changed, channels_last, mask_3d = (
        x.clone(),
        x.to(memory_format=torch.channels_last),
        torch.rand_like(x[0]),
    )
    half = [t.bfloat16() for t in (x, y, mask)]
    calls = {
        "x.clone()": lambda: x.clone(),
        f"{name}, in place": lambda: step_(changed, y, mask, scale),
        f"{name}, channels_last": lambda: step(channels_last, y, mask, scale),
        f"{name}, (C, H, W) mask": lambda: step(x, y, mask_3d, scale),
        f"{name}, bfloat16": lambda: step(*half, scale),
    }
    with torch.no_grad():
        seconds = interleaved(calls, ROUNDS)
    benchmark.extra_info.update({"threads": torch.get_num_threads(), "seconds": seconds})
    for form in list(calls)[1:]:
        table(benchmark.group, form, "x.clone()", seconds[form], seconds["x.clone()"])
    benchmark.pedantic(calls["x.clone()"], rounds=3)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.benchmark(group="cassi data step, forward and backward")
def test_step_forward_and_backward_against_rolls(benchmark, interleaved, table, scene, name):
    x, y, mask, scale = scene
    step, _, hqs = STEPS[name]
    peer = RollStep(mask, BANDS, hqs)
    x, padded, scale = x.requires_grad_(), pad(x).detach().requires_grad_(), scale.requires_grad_()
    grad = torch.rand_like(x)
    padded_grad = pad(grad)

    def ours():
        return torch.autograd.grad(step(x, y, mask, scale), [x, scale], grad)

    def theirs():
        return torch.autograd.grad(peer(padded, y, scale, training=True), [padded, scale], padded_grad)

    (grad_x, grad_scale), (peer_grad_x, peer_grad_scale) = ours(), theirs()
    torch.testing.assert_close(grad_x, peer_grad_x[..., :SIZE], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(grad_scale, peer_grad_scale, rtol=1e-3, atol=1e-3)
    # Forward and backward each read a cube and write one.
    calls = {name: ours, "two clones": lambda: (x.detach().clone(), grad.clone()), "rolls": theirs}
    _compare(benchmark, interleaved, table, calls, name, "two clones", "rolls", ROUNDS // 2)


@pytest.mark.benchmark(group="cassi operators")
def test_forward_against_a_loop_of_slices(benchmark, interleaved, table, scene):
    x, _, mask, _ = scene
    torch.testing.assert_close(lk.cassi_forward(x, mask), loop_forward(x, mask), rtol=1e-4, atol=1e-5)
    calls = {
        "cassi_forward": lambda: lk.cassi_forward(x, mask),
        "x.sum()": lambda: x.sum(),
        "band loop": lambda: loop_forward(x, mask),
    }
    _compare(benchmark, interleaved, table, calls, "cassi_forward", "x.sum()", "band loop")


@pytest.mark.benchmark(group="cassi operators")
def test_adjoint_against_a_loop_of_slices(benchmark, interleaved, table, scene):
    x, y, mask, _ = scene
    torch.testing.assert_close(lk.cassi_adjoint(y, mask, BANDS), loop_adjoint(y, mask, BANDS))
    calls = {
        "cassi_adjoint": lambda: lk.cassi_adjoint(y, mask, BANDS),
        "x.fill_()": lambda: torch.empty_like(x).fill_(0.5),
        "band loop": lambda: loop_adjoint(y, mask, BANDS),
    }
    _compare(benchmark, interleaved, table, calls, "cassi_adjoint", "x.fill_()", "band loop")
