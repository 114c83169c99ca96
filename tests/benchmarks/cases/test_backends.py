"""Candidates on a chosen backend."""

import pytest

import lorun_kernels as lk
from benchmarks.cases.backends import add_on_backends, on_backend
from benchmarks.harness.case import OURS, Candidate, Case
from lorun_kernels import backends


def test_a_call_runs_on_its_backend():
    assert on_backend("reference", lambda i: (i, backends.uses_reference()))(3) == (3, True)
    assert not backends.uses_reference()


def test_a_backend_that_cannot_run_is_missing_with_its_reason(monkeypatch):
    monkeypatch.setattr(lk, "available_backends", lambda: {"cuda": "no GPU", "reference": None})
    with pytest.raises(RuntimeError, match="no GPU"):
        on_backend("cuda", lambda i: i)
    ours = Candidate(lambda i: backends.uses_reference(), ours=True, parameters=5)
    case = Case("a case", {OURS: ours})
    add_on_backends(case, {"on a GPU": "cuda", "by definition": "reference"})
    assert case.missing == {"on a GPU": "RuntimeError: no GPU"}
    added = case.candidates["by definition"]
    assert added.call(0) and added.ours and added.parameters == 5 and added.forward is None


def test_the_forward_part_runs_on_the_backend_too():
    ours = Candidate(lambda i: None, ours=True, forward=lambda i: backends.uses_reference())
    case = Case("a case", {"other": ours})
    add_on_backends(case, {"by definition": "reference"}, of="other")
    assert case.candidates["by definition"].forward(0)
