"""Rounds, their order and the clock of the CPU."""

import time

import pytest
import torch

from benchmarks.harness import timing
from benchmarks.harness.timing import SHORT_S, Mode, cpu_clock, take_turns, time_limit


@pytest.mark.parametrize("seconds, rounds", [(1.0, 10), (0.0, 5), (100.0, 40)])
def test_all_play_in_every_round_until_the_time_is_used(seconds, rounds):
    times = {"fast": 0.01, "slow": 0.09}
    clock = lambda call, i: times[call(i)]  # noqa: E731
    calls = {name: lambda i, name=name: name for name in times}
    found = take_turns(calls, Mode("test", seconds, least=5, most=40), clock)
    assert {name: len(values) for name, values in found.items()} == pytest.approx(
        dict.fromkeys(times, rounds), abs=1
    )


def test_rounds_have_random_orders_and_rotate_the_inputs():
    order = []
    calls = {name: lambda i, name=name: order.append((name, i)) for name in "abc"}
    clock = lambda call, i: call(i) or 0.0  # noqa: E731
    take_turns(calls, Mode("test", seconds=0.0, least=12, most=12), clock, inputs=4)
    rounds = [order[start : start + 3] for start in range(0, 36, 3)]
    assert all({name for name, _ in one} == set("abc") for one in rounds)
    assert len({tuple(name for name, _ in one) for one in rounds}) > 3
    assert [i for _, i in order] == [0, 1, 2, 3] * 9


def test_a_short_call_is_timed_warm():
    calls = []
    cpu_clock(calls.append, 3)
    assert calls == [3, 3]
    cpu_clock(lambda i: (calls.append(i), time.sleep(SHORT_S)), 4)
    assert calls == [3, 3, 4]


def test_launches_of_every_call_are_hidden_or_of_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    # A call that records a graph first, then launches it.
    launches = iter([1.0, 0.0004, 0.0005, 0.001, 0.001, 0.001])
    monkeypatch.setattr(timing, "_seconds", lambda call, i: next(launches))
    assert timing.hiding_cycles([print, print]) == 3_000_000
    launches = iter([0.0001] * 3 + [0.003] * 3)
    assert timing.hiding_cycles([print, print]) == 0


def test_time_limit():
    with pytest.raises(TimeoutError, match=r"longer than 0\.05 s"), time_limit(0.05):
        time.sleep(5)
    with time_limit(0.05):
        pass
    with time_limit(None):
        time.sleep(0.1)
