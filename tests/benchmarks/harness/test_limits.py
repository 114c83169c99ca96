"""What a machine's limits say about a kernel, and that they are measured."""

import json

import pytest
import torch

from benchmarks.harness.case import Work
from benchmarks.harness.limits import IN_A_ROW, Limits, kernel_seconds, measure_limits


def test_limits_bound_by_what_takes_longer():
    limits = Limits({1000: 100.0, 100_000: 10.0}, flops_per_s=50.0)
    assert limits.bandwidth(1000) == 100 and limits.bandwidth(100_000) == 10
    assert limits.bandwidth(10_000) == pytest.approx(55)  # halfway on a logarithmic scale
    assert limits.bandwidth(1) == 100 and limits.bandwidth(10**9) == 10
    memory, arithmetic = Work(1000, 100), Work(1000, 10_000)
    assert (limits.seconds(memory), limits.binds(memory)) == (10, "memory")
    assert (limits.seconds(arithmetic), limits.binds(arithmetic)) == (200, "arithmetic")


def test_measured_limits_are_of_this_machine(monkeypatch):
    monkeypatch.setattr("benchmarks.harness.limits.SIZES", {"cpu": [2**14, 2**16]})
    monkeypatch.setattr("benchmarks.harness.limits.SIDE", {"cpu": 64})
    # A clock by which everything takes a microsecond.
    record = measure_limits("cpu", lambda call, i: (call(i), 1e-6)[1], torch.float32)
    limits = Limits.of(json.loads(json.dumps(record)))
    assert limits.copy == {2**14: pytest.approx(2**14 * 1e6), 2**16: pytest.approx(2**16 * 1e6)}
    assert limits.flops_per_s == pytest.approx(2 * 64**3 * 1e6)


def test_no_kernel_is_faster_than_the_smallest():
    limits = Limits({10**6: 1e12}, flops_per_s=1e14, kernel_s=2e-6)
    work = [Work(10_000_000), Work(1, 10**9), Work(10, 10)]
    assert [limits.binds(one) for one in work] == ["memory", "arithmetic", "launch"]
    assert sum(map(limits.seconds, work)) == pytest.approx(22e-6)
    calls = []
    seconds = kernel_seconds("cpu", lambda call, i: calls.append(call(i)) or 1e-3)
    assert seconds == 1e-3 / IN_A_ROW and calls


def test_without_caches_every_size_has_the_bandwidth_of_the_largest_copy():
    limits = Limits({1000: 100.0, 100_000: 10.0}, flops_per_s=50.0, dtype="bfloat16", kernel_s=1.0)
    assert limits.without_caches() == Limits({100_000: 10.0}, 50.0, "bfloat16", 1.0)
    assert limits.without_caches().bandwidth(1000) == 10
