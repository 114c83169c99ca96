"""Processes in which Triton interprets its kernels, or compiles them: one process cannot do both."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor


def _set_up(interpret: bool) -> None:
    os.environ["TRITON_INTERPRET"] = "1" if interpret else "0"
    import torch

    torch.set_num_threads(1)


def call(function: str, *arguments) -> None:
    """Runs MODULE:NAME in a worker, which first imports Triton there, after its mode is set."""
    from lorun_kernels.triton import load

    load()
    module, name = function.split(":")
    getattr(importlib.import_module(module), name)(*arguments)


@contextlib.contextmanager
def triton_workers(interpret: bool, count: int = 2) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes that import Triton only after its mode is set; results and failures come back here."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_set_up, initargs=(interpret,)) as pool:
        yield pool
