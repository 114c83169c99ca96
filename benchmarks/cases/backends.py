"""Ours on a backend that the caller chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import lorun_kernels as lk
from benchmarks.harness.case import OURS, Call, Candidate, Case


def on_backend(backend: str, call: Call) -> Call:
    """`call` on a backend.

    Raises:
        RuntimeError: if the backend cannot run here, with the reason; `Case.add` expects it.
    """
    missing = lk.available_backends()[backend]
    if missing is not None:
        raise RuntimeError(missing)

    def chosen(i: int) -> object:
        with lk.use_backend(backend):
            return call(i)

    return chosen


def add_on_backends(case: Case, backends: Mapping[str, str], of: str = OURS) -> None:
    """Add the candidate `of` once more for each backend.

    Args:
        backends: from the name of the new candidate to that of the backend.
    """
    for name, backend in backends.items():
        case.add(name, lambda backend=backend: _on(backend, case.candidates[of]))


def _on(backend: str, ours: Candidate) -> Candidate:
    forward = ours.forward and on_backend(backend, ours.forward)
    return replace(ours, call=on_backend(backend, ours.call), forward=forward)
