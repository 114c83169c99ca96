"""Bytes kept for backward, and the peak of a call."""

import subprocess
import sys

import pytest
import torch

from benchmarks.harness.memory import kept_bytes


def test_kept_bytes_are_what_backward_needs():
    leaf, weight = torch.ones(1000, requires_grad=True), torch.nn.Parameter(torch.ones(1000))
    assert kept_bytes(lambda: leaf * 2) == 0
    assert kept_bytes(lambda: leaf.exp()) == 4000
    assert kept_bytes(lambda: leaf.view(10, 100) @ weight.view(10, 100).T) == 4000
    # The leaf is kept for the weight's gradient; the weight is no activation. The square keeps it only once.
    assert kept_bytes(lambda: (leaf * weight, leaf * leaf)) == 4000


PEAK = """
import torch
from benchmarks.harness.memory import peak_bytes
def call():
    big = torch.ones(50 * 2**18)  # 50 MiB
    del big
    return torch.ones(10 * 2**18)
print(peak_bytes(call))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from Linux's /proc")
def test_the_peak_of_a_call_is_its_largest_moment():
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert int(done.stdout) / 2**20 == pytest.approx(50, abs=3)
