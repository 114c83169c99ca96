"""A case collects candidates, and why others are missing."""

import pytest

from benchmarks.harness.case import OURS, Candidate, Case, reason


@pytest.mark.parametrize("error", [ImportError("No module named 'peer'"), RuntimeError("no GPU\nat all")])
def test_what_is_not_available_is_missing_with_its_reason(error):
    def make():
        raise error

    case = Case("2")
    case.add("peer", make)
    assert case.missing == {"peer": reason(error)} and not case.candidates


def test_other_errors_are_not_hidden():
    with pytest.raises(ValueError):
        Case("2").add("peer", lambda: Candidate(lambda i: i, images=int("no number")))


def test_a_reason_is_one_line():
    assert reason(RuntimeError("first\nsecond")) == "RuntimeError: first"
    assert reason(ValueError()) == "ValueError: no message"


def test_what_a_candidate_is_compared_with():
    ours = Candidate(lambda i: i, ours=True)
    case = Case("2", {OURS: ours, "second": ours, "peer": Candidate(lambda i: i, against="second")})
    assert case.ours == [OURS, "second"]
    assert [case.compared_with(name) for name in case.candidates] == [OURS, OURS, "second"]
