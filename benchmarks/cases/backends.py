"""Ours on a backend that the caller chooses."""

from __future__ import annotations

import lorun_kernels as lk
from benchmarks.case import Call
from benchmarks.lora_candidates import on


def on_backend(backend: str, call: Call) -> Call:
    """`call` on a backend, for `Case.add`.

    Raises:
        RuntimeError: why it cannot run here.
    """
    missing = lk.available_backends()[backend]
    if missing is not None:
        raise RuntimeError(missing)
    return on(backend, call)
