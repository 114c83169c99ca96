"""What a run that is cut short says about the benchmarks that it did not finish."""

from types import SimpleNamespace

import pytest

from benchmarks import conftest


def test_what_was_out_of_time_is_named(monkeypatch):
    skipped, interrupted, done = (
        SimpleNamespace(name=name, nodeid=name, fixturenames=["benchmark"]) for name in "abc"
    )
    monkeypatch.setattr(conftest, "_SECONDS", 0.0)
    monkeypatch.setattr(conftest, "_out_of_time", [])
    monkeypatch.setattr(conftest, "_unfinished", {})
    conftest.pytest_collection_finish(SimpleNamespace(items=[skipped, interrupted, done]))
    with pytest.raises(pytest.skip.Exception, match="out of time"):
        conftest.pytest_runtest_setup(skipped)
    for one in (skipped, done):
        conftest.pytest_runtest_logfinish(one.nodeid)
    written = {}
    conftest.pytest_benchmark_update_json(None, [], written)
    assert written == {"out_of_time": ["a", "b"]}
