"""Checking, turns and memory of a comparison."""

import json
import math
import subprocess
import sys
import time

import pytest
import torch

from benchmarks.harness.case import OURS, Candidate, Case, Work
from benchmarks.harness.limits import Limits, measure_limits
from benchmarks.harness.machine import describe
from benchmarks.harness.measure import AGAIN, Wrong, measure
from benchmarks.harness.memory import kept_bytes
from benchmarks.harness.timing import SHORT_S, Mode, cpu_clock, take_turns
from benchmarks.harness.watch import Probe, Watch

ONCE = Mode("test", seconds=0.0, least=2, most=2)
TRUE = torch.tensor([1.0, -2.0])


def returning(value, **options) -> Candidate:
    return Candidate(lambda i: value, **options)


def case_of(**candidates: Candidate) -> Case:
    return Case("2", {OURS: returning(TRUE, ours=True), **candidates})


def test_a_record_has_all_that_the_report_needs():
    case = case_of(peer=returning(TRUE.clone(), images=3))
    case.work = Work(8, 2)
    record = json.loads(json.dumps(measure(case, ONCE)))
    peer = record["candidates"]["peer"]
    assert (peer["rounds"], peer["ours"], peer["unlike"]) == (2, False, None)
    assert peer["images_per_s"] == pytest.approx(3 / peer["median_s"])
    assert peer["quartiles_s"][0] <= peer["median_s"] <= peer["quartiles_s"][1]
    assert [(one["ours"], one["peer"]) for one in record["ratios"]] == [(OURS, AGAIN), (OURS, "peer")]
    assert record["work"] == {"bytes": 8, "flops": 2}


@pytest.mark.parametrize(
    "wrong", [TRUE + torch.tensor([0.0, 1e-3]), torch.tensor([math.nan, -2.0]), TRUE[:1], (TRUE, TRUE)]
)
def test_a_peer_with_another_result_ends_the_run(wrong):
    with pytest.raises(AssertionError, match="2: peer"):
        measure(case_of(peer=returning(wrong)), ONCE)


def test_a_peer_is_checked_against_what_it_must_equal():
    other = TRUE + 1
    measure(case_of(peer=returning(other, expected=lambda i: other)), ONCE)
    measure(
        case_of(
            second=returning(other, ours=True, unlike="another form"), peer=returning(other, against="second")
        ),
        ONCE,
    )
    measure(case_of(floor=returning(other, unlike="a floor")), ONCE)
    with pytest.raises(AssertionError, match="peer"):
        measure(case_of(peer=returning(TRUE, expected=lambda i: other)), ONCE)


def test_a_peer_that_cannot_run_is_missing_with_its_reason():
    def fails(i):
        raise ValueError("no such mode\nand more")

    record = measure(case_of(peer=Candidate(fails)), ONCE)
    assert record["missing"] == {"peer": "ValueError: no such mode"}
    assert list(record["candidates"]) == [OURS]
    with pytest.raises(AssertionError, match="LoRun fails: ValueError: no such mode"):
        measure(Case("2", {OURS: Candidate(fails, ours=True)}), ONCE)


def test_what_is_wrong_goes_and_the_rest_is_measured():
    broken = Candidate(lambda i: 1 // 0, ours=True)
    case = case_of(
        second=broken,
        wrong=returning(TRUE + 1),
        right=returning(TRUE.clone()),
        lost=returning(TRUE.clone(), against="second"),
    )
    with pytest.raises(Wrong) as caught:
        measure(case, ONCE)
    assert str(caught.value).splitlines() == [
        "2: second fails: ZeroDivisionError: integer division or modulo by zero",
        "2: wrong, result 0: 0.5 from ours",
        "2: lost has nothing to be compared with: second is missing",
    ]
    record = caught.value.record
    assert list(record["candidates"]) == [OURS, "right"]
    assert list(record["missing"]) == ["second", "wrong", "lost"]
    assert record["candidates"]["right"]["rounds"] == 2


def test_a_package_that_is_not_there_is_missing_with_its_reason():
    def make():
        raise ImportError("No module named 'peer'")

    case = case_of()
    case.add("peer", make)
    assert case.missing == {"peer": "ImportError: No module named 'peer'"}


@pytest.mark.parametrize("grad", [False, True])
def test_only_training_differentiates(grad):
    leaf, seen = torch.ones(1, requires_grad=True), []
    case = Case("1", {OURS: Candidate(lambda i: seen.append((leaf * 2).requires_grad), ours=True)}, grad=grad)
    measure(case, ONCE)
    assert set(seen) == {grad}


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


def test_disturbed_rounds_are_repeated_while_patience_lasts():
    answers = iter([False, True, False, False])  # before, after; before, after
    watch = Watch(lambda: next(answers), patience=10.0)
    played = []
    assert watch.undisturbed(lambda: played.append(1) or len(played)) == 2
    assert (watch.repeated, watch.disturbed) == (1, 0)

    impatient = Watch(lambda: True, patience=0.05)
    assert impatient.undisturbed(lambda: 7) == 7
    assert (impatient.repeated, impatient.disturbed) == (0, 1)


def test_a_probe_is_disturbed_where_it_is_slower_than_at_its_best(monkeypatch):
    probe = Probe()
    now = 1.0
    monkeypatch.setattr("benchmarks.harness.watch._seconds", lambda work: now)
    for work in probe._fastest:
        probe._fastest[work] = 1.0
    assert not probe.disturbed()
    now = 1.5
    assert probe.disturbed()
    now = 0.9
    assert not probe.disturbed()
    now = 1.2
    assert probe.disturbed()  # against the new best


def test_kept_bytes_are_what_backward_needs():
    leaf, weight = torch.ones(1000, requires_grad=True), torch.nn.Parameter(torch.ones(1000))
    assert kept_bytes(lambda: leaf * 2) == 0
    assert kept_bytes(lambda: leaf.exp()) == 4000
    assert kept_bytes(lambda: leaf.view(10, 100) @ weight.view(10, 100).T) == 4000
    # The leaf for the weight's gradient; the weight itself is no activation. The leaf's square keeps it once.
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


def test_limits_bound_by_what_takes_longer():
    limits = Limits({1000: 100.0, 100_000: 10.0}, flops_per_s=50.0)
    assert limits.bandwidth(1000) == 100 and limits.bandwidth(100_000) == 10
    assert limits.bandwidth(10_000) == pytest.approx(55)  # halfway on a logarithmic scale
    assert limits.bandwidth(1) == 100 and limits.bandwidth(10**9) == 10
    memory, arithmetic = Work(1000, 100), Work(1000, 10_000)
    assert (limits.seconds(memory), limits.binds(memory)) == (10, "memory")
    assert (limits.seconds(arithmetic), limits.binds(arithmetic)) == (200, "arithmetic")


def test_measured_limits_are_of_this_machine(monkeypatch):
    monkeypatch.setattr("benchmarks.harness.limits.SIZES", [2**14, 2**16])
    monkeypatch.setattr("benchmarks.harness.limits.SIDE", {"cpu": 64})
    # A clock that says a microsecond for everything.
    record = measure_limits("cpu", lambda call, i: (call(i), 1e-6)[1], torch.float32)
    limits = Limits.of(json.loads(json.dumps(record)))
    assert limits.copy == {2**14: pytest.approx(2**14 * 1e6), 2**16: pytest.approx(2**16 * 1e6)}
    assert limits.flops_per_s == pytest.approx(2 * 64**3 * 1e6)


def test_the_machine_is_described_without_its_name():
    import platform

    description = describe()
    assert description["torch"] == torch.__version__ and description["threads"] >= 1
    assert platform.node() not in json.dumps(description)
