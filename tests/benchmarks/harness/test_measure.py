"""A case is checked, measured and described."""

import json
import math
import time

import pytest
import torch

from benchmarks.harness.case import OURS, Candidate, Case, Work
from benchmarks.harness.measure import AGAIN, Wrong, measure
from benchmarks.harness.timing import Mode

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


@pytest.mark.parametrize("grad", [False, True])
def test_only_training_differentiates(grad):
    leaf, seen = torch.ones(1, requires_grad=True), []
    case = Case("1", {OURS: Candidate(lambda i: seen.append((leaf * 2).requires_grad), ours=True)}, grad=grad)
    measure(case, ONCE)
    assert set(seen) == {grad}


def test_a_candidate_that_takes_too_long_at_first_is_missing():
    slow = Candidate(lambda i: time.sleep(5), patience=0.05)
    fast = returning(TRUE.clone(), patience=5.0)
    record = measure(case_of(slow=slow, fast=fast), ONCE)
    assert record["missing"] == {"slow": "TimeoutError: took longer than 0.05 s"}
    assert list(record["candidates"]) == [OURS, "fast"]
