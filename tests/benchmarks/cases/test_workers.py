"""Networks in other processes: their counts, their results, and that they end."""

import gc
import os

import pytest
import torch

from benchmarks.cases import workers
from benchmarks.cases.tasks import FIELD, networks_of
from benchmarks.harness.case import OURS


@pytest.mark.parametrize("cores, most, suffixes", [(1, 8, [""]), (4, 2, ["", ", 1 thread"])])
def test_threads_are_as_many_as_there_are_cores(cores, most, suffixes, monkeypatch, tiny_cassi):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    case = workers.threads("cpu", most=most, **tiny_cassi)
    assert case.title.endswith(f"threads: {min(cores, most)}")
    assert list(case.candidates) == [name + suffix for suffix in suffixes for name in (OURS, FIELD)]
    assert [case.compared_with(FIELD + suffix) for suffix in suffixes] == [
        OURS + suffix for suffix in suffixes
    ]


def test_workers_restore_the_same_and_end(tiny_cassi):
    arguments = {"device": "cpu", **tiny_cassi}
    pool = workers.Workers(2, arguments)
    torch.manual_seed(0)
    made = networks_of(**arguments)
    with torch.no_grad():
        expected = made.forms[FIELD](made.y)
    results = pool.run(FIELD, 2)
    assert len(results) == 2 and len(pool.run(OURS, 1)) == 1
    for result in results:
        # The start's solver rounds differently in one thread and in several: the tolerance of a case applies.
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)

    first, second = pool.processes
    pool.pipes[0].close()  # as the system does if this process is killed
    first.join(timeout=20)
    assert first.exitcode == 0 and second.is_alive()
    del pool
    gc.collect()
    assert not second.is_alive()
