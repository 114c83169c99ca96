"""Measure a case: results are checked first, then times, then memory; the record goes to `extra_info`."""

from __future__ import annotations

import time
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.case import Call, Candidate, Case, reason
from benchmarks.harness.memory import kept_bytes
from benchmarks.harness.ratios import speed_up
from benchmarks.harness.timing import (
    Mode,
    Seconds,
    cpu_clock,
    gpu_clock,
    hiding_cycles,
    take_turns,
    time_limit,
)
from benchmarks.harness.watch import Watch

AGAIN = "itself"
"""The first of ours once more: any difference from 1 there is noise."""

# A check that has taken this long has also warmed the candidate up.
WARM_S = 0.3


class Wrong(AssertionError):
    """Candidates have no result or a wrong one. `record` holds the measurements of the others."""

    def __init__(self, failures: list[str], record: dict):
        super().__init__("\n".join(failures))
        self.record = record


def measure(case: Case, mode: Mode, device: str = "cpu", watch: Watch | None = None) -> dict:
    """Check, time and describe `case`.

    Raises:
        Wrong: after the others are measured, if a candidate's result is not what it must equal, or one of
            ours cannot run.
        AssertionError: if the first of ours cannot run.
    """
    torch.compiler.reset()  # after eight compilations of one function torch.compile gives up
    with nullcontext() if case.grad else torch.no_grad():
        failures, warm = _check(case)
        calls = {name: candidate.call for name, candidate in case.candidates.items()}
        calls[AGAIN] = calls[case.ours[0]]
        for name, call in calls.items():
            if name not in warm:
                call(0)
        cycles = hiding_cycles(calls.values()) if device == "cuda" else None
        clock = cpu_clock if cycles is None else gpu_clock(cycles)
        seconds = take_turns(calls, mode, clock, case.inputs, watch)
    record = {
        "title": case.title,
        "mode": mode.name,
        "threads": torch.get_num_threads(),
        "launching_timed": cycles == 0,
        "repeated": watch.repeated if watch else None,
        "disturbed": watch.disturbed if watch else None,
        "work": vars(case.work) if case.work else None,
        "axis": case.axis,
        "missing": case.missing,
        "candidates": {
            name: _candidate(case, case.candidates[name], times)
            for name, times in seconds.items()
            if name != AGAIN
        },
        "itself": {"seconds": rounded(seconds[AGAIN])},
        "ratios": _ratios(case, seconds),
    }
    if failures:
        raise Wrong(failures, record)
    return record


def _check(case: Case) -> tuple[list[str], set[str]]:
    """What is wrong with ours and with the results, and which candidates have warmed up meanwhile.

    Candidates that cannot run, or are wrong, are moved to `case.missing`.
    """
    results, failures, warm = {}, [], set()
    for name, candidate in list(case.candidates.items()):
        start = time.perf_counter()
        try:
            with time_limit(candidate.patience):
                results[name] = _tensors(candidate.call(0))
        except Exception as error:  # a failure is a row of the table, not the end of the run
            assert name != case.ours[0], f"{case.title}: {name} fails: {reason(error)}"
            failures += [f"{case.title}: {name} fails: {reason(error)}"] if candidate.ours else []
            _drop(case, name, reason(error))
        if time.perf_counter() - start >= WARM_S:
            warm.add(name)
    for name, candidate in list(case.candidates.items()):
        wrong = _what_is_wrong(case, name, candidate, results)
        if wrong:
            failures.append(f"{case.title}: {name}{wrong}")
            _drop(case, name, f"wrong: {name}{wrong}")
    return failures, warm


def _drop(case: Case, name: str, why: str) -> None:
    case.missing[name] = why
    del case.candidates[name]


def _tensors(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result.detach().clone()]
    return [one.detach().clone() for one in result] if isinstance(result, list | tuple) else []


def _what_is_wrong(
    case: Case, name: str, candidate: Candidate, results: dict[str, list[Tensor]]
) -> str | None:
    """How the result differs from what it must equal, or None."""
    against = case.compared_with(name)
    if against not in case.candidates:
        return f" has nothing to be compared with: {against} is missing"
    if candidate.unlike:
        return None
    found = results[name]
    wanted = _tensors(candidate.expected(0)) if candidate.expected else results[against]
    if len(found) != len(wanted):
        return f" has {len(found)} results, not {len(wanted)}"
    for number, (result, true) in enumerate(zip(found, wanted, strict=True)):
        if result.shape != true.shape:
            return f" has shape {tuple(result.shape)}, not {tuple(true.shape)}"
        error = ((result.double() - true.double()).abs().max() / true.double().abs().max()).item()
        if not error <= case.tolerance:  # a NaN is within no tolerance
            return f", result {number}: {error:.2g} from ours"
    return None


def _candidate(case: Case, candidate: Candidate, seconds: Seconds) -> dict:
    images = candidate.images or case.images
    return {
        "ours": candidate.ours,
        "own_code": candidate.own_code,
        "unlike": candidate.unlike,
        "rounds": len(seconds),
        "median_s": float(np.median(seconds)),
        "quartiles_s": np.quantile(seconds, [0.25, 0.75]).tolist(),
        "images_per_s": images / float(np.median(seconds)),
        "parameter_bytes": candidate.parameters,
        "kept_bytes": _kept(candidate.forward),
        "peak_bytes": None,
        "seconds": rounded(seconds),
    }


def _kept(forward: Call | None) -> int | None:
    return None if forward is None else kept_bytes(lambda: forward(0))


def _ratios(case: Case, seconds: dict[str, Seconds]) -> list[dict]:
    first = case.ours[0]
    pairs = [(first, AGAIN)]
    pairs += [(case.compared_with(name), name) for name in case.candidates if name != first]
    return [
        {"ours": ours, "peer": peer, **speed_up(seconds[ours], seconds[peer]).record} for ours, peer in pairs
    ]


def rounded(seconds: Seconds) -> Seconds:
    """To four digits, since people read results files too."""
    return [float(f"{second:.3e}") for second in seconds]
