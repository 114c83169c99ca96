"""A data step allocates its output and, once, a row for each thread."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import lorun_kernels as lk

SHAPE = (1, 28, 256, 256)
CUBE = 4 * 28 * 256 * 256

PEAK = """
import resource, sys
import torch
import lorun_kernels as lk

torch.set_num_threads(2)
x = torch.rand(1, 28, 512, 512)
y, mask = torch.rand(1, 512, 566), torch.rand(512, 512)
out = getattr(lk, sys.argv[1])(x[:, :, :2], y[:, :2], mask[:2], 0.5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
getattr(lk, sys.argv[1])(x, y, mask, 0.5)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 - x.numel() * 4)
"""


def allocated(call) -> list[int]:
    """Bytes of every allocation that torch's CPU allocator makes during the call."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as p:
        call()
    memory = [event for event in p.profiler.kineto_results.events() if event.name() == "[memory]"]
    return sorted(event.nbytes() for event in memory if event.nbytes() > 0)


@pytest.mark.parametrize("mask_shape", [(256, 256), (28, 256, 256)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_step_allocates_its_output_and_nothing_else(mask_shape, layout):
    x = torch.rand(SHAPE).to(memory_format=layout)
    y, mask, mu = torch.rand(1, 256, 310), torch.rand(mask_shape), torch.tensor(0.5)
    for step in (lk.cassi_pgd_step, lk.cassi_hqs_step):
        assert allocated(lambda step=step: step(x, y, mask, mu)) == [CUBE]
    assert allocated(lambda: lk.cassi_hqs_step_(x, y, mask, mu)) == []
    assert allocated(lambda: lk.cassi_forward(x, mask)) == [y.numel() * 4]
    assert allocated(lambda: lk.cassi_adjoint(y, mask, 28)) == [CUBE]


def test_views_are_not_copied():
    x = torch.rand(1, 28, 256, 300)[..., 20:276]
    y, mask, mu = (
        torch.rand(256, 310).expand(1, -1, -1),
        torch.rand(300, 256).mT[:, 30:286],
        torch.tensor(0.5),
    )
    assert allocated(lambda: lk.cassi_hqs_step(x, y, mask, mu)) == [CUBE]


def test_the_backward_of_a_step_allocates_its_gradients_and_one_sum_a_row():
    x, y = torch.rand(SHAPE, requires_grad=True), torch.rand(1, 256, 310, requires_grad=True)
    mask, mu = torch.rand(256, 256), torch.tensor(0.5, requires_grad=True)
    out = lk.cassi_hqs_step(x, y, mask, mu)
    grad = torch.rand(SHAPE)
    sizes = allocated(lambda: torch.autograd.grad(out, [x, y, mu], grad))
    assert sizes[-2:] == [y.numel() * 4, CUBE] and sum(sizes[:-2]) <= 2048


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux only")
@pytest.mark.parametrize("step", ["cassi_pgd_step", "cassi_hqs_step"])
def test_the_process_grows_by_the_output_and_a_row_for_each_thread(step):
    done = subprocess.run([sys.executable, "-c", PEAK, step], capture_output=True, text=True, check=True)
    # Two rows of 28 x 512, and 1 MiB for malloc's and the system's own pages; a cube is 28 MiB.
    assert int(done.stdout) <= 2 * 28 * 512 * 4 + 2**20
