"""One network in one thread and in several, in one process and in several."""

from __future__ import annotations

import multiprocessing
import os
import weakref
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import torch
from torch import Tensor

from benchmarks.cases.tasks import FIELD, networks_of
from benchmarks.harness.case import OURS, Candidate, Case


def threads(device: str, task: str, size: int, most: int = 8, batch: int = 1, **arguments) -> Case:
    """Restore in one thread, and in as many as there are cores, up to `most`: each in its own process.

    A process must not change its number of threads: torch 2.13 then solves batches of linear systems wrongly.
    """
    counts = _counts(most)
    arguments = {"task": task, "device": device, "size": size, "batch": batch, **arguments}
    workers = {count: Workers(1, arguments, threads=count) for count in counts}

    def candidate(form: str, count: int) -> Candidate:
        return Candidate(
            lambda i: workers[count].run(form, 1), expected=lambda i: workers[counts[0]].run(OURS, 1)
        )

    case = Case(f"{batch} at {size}x{size}, threads: {counts[0]}", images=batch)
    return _with_candidates(case, "thread", counts, candidate)


def processes(device: str, task: str, size: int, most: int = 8, batch: int = 1, **arguments) -> Case:
    """The same in several processes of one thread, each with the same number of images."""
    counts = _counts(most)
    workers = Workers(counts[0], {"task": task, "device": device, "size": size, "batch": batch, **arguments})

    def candidate(form: str, count: int) -> Candidate:
        return Candidate(
            lambda i: workers.run(form, count),
            expected=lambda i: workers.run(OURS, counts[0])[:count],
            images=count * batch,
        )

    case = Case(f"{batch} at {size}x{size}, processes: {counts[0]}")
    return _with_candidates(case, "process", counts, candidate)


def _counts(most: int) -> list[int]:
    """The number of cores, up to `most`, and then 1 if that is not the same."""
    return sorted({min(most, os.cpu_count() or 1), 1}, reverse=True)


def _with_candidates(
    case: Case, unit: str, counts: list[int], candidate: Callable[[str, int], Candidate]
) -> Case:
    """Ours and the field's style at every count; a name without a number has the largest count."""
    for count in counts:
        suffix = "" if count == counts[0] else f", {count} {unit}"
        case.candidates[OURS + suffix] = replace(candidate(OURS, count), ours=True)
        case.candidates[FIELD + suffix] = replace(candidate(FIELD, count), against=OURS + suffix)
    return case


class Workers:
    """Processes that hold the same networks; they end with this object or with its process.

    Args:
        count: how many.
        arguments: of `networks_of`.
        threads: of each.
    """

    def __init__(self, count: int, arguments: dict[str, object], threads: int = 1) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process would not have torch's threads
        self.pipes: list[Connection] = []
        self.processes: list[SpawnProcess] = []
        for _ in range(count):
            pipe, other = context.Pipe()
            process = context.Process(
                target=_restore_on_demand, args=(other, arguments, threads), daemon=True
            )
            process.start()
            other.close()  # so that only the worker holds it, and its end is noticed here
            self.pipes.append(pipe)
            self.processes.append(process)
        self.close = weakref.finalize(self, _close, self.pipes, self.processes)

    def run(self, form: str, count: int) -> list[Tensor]:
        """The results of the first `count` processes, at the same time."""
        for pipe in self.pipes[:count]:
            pipe.send(form)
        return [torch.from_numpy(pipe.recv()) for pipe in self.pipes[:count]]


def _close(pipes: list[Connection], processes: list[SpawnProcess]) -> None:
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.close()
        process.terminate()
        process.join()


def _restore_on_demand(pipe: Connection, arguments: dict[str, object], threads: int) -> None:
    """Answer each name of a form with what that form restores, until the other end is closed or gone."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)  # every worker makes the same networks
    made = networks_of(**arguments)
    with torch.no_grad():
        while True:
            try:
                form = pipe.recv()
            except EOFError:
                return
            pipe.send(made.forms[form](made.y).numpy())
