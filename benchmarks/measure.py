"""A case measured: results checked first, then times, then memory; a record for `extra_info`."""

from __future__ import annotations

import time
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from benchmarks.case import Call, Candidate, Case, reason
from benchmarks.memory import kept_bytes
from benchmarks.ratios import played, speed_up
from benchmarks.timing import Clock, Mode, Seconds, cpu_clock, take_turns

AGAIN = "itself"
"""The first of ours once more: what differs from 1 there is noise."""

# A check that has taken so long has also warmed up.
WARM_S = 0.3


def measure(case: Case, mode: Mode, clock: Clock = cpu_clock) -> dict:
    """Check, time and describe `case`.

    Raises:
        AssertionError: where a candidate's result is not what it must equal, or ours cannot run.
    """
    torch.compiler.reset()  # after eight compilations of one function torch.compile gives up
    with nullcontext() if case.grad else torch.no_grad():
        first = _checked(case)
        calls = {name: candidate.call for name, candidate in case.candidates.items()}
        calls[AGAIN] = calls[case.ours[0]]
        for name, call in calls.items():
            if first.get(name, 0) < WARM_S:
                call(0)
        seconds = take_turns(calls, mode, clock, case.inputs)
    return {
        "title": case.title,
        "mode": mode.name,
        "threads": torch.get_num_threads(),
        "work": vars(case.work) if case.work else None,
        "axis": case.axis,
        "missing": case.missing,
        "candidates": {
            name: _candidate(case, case.candidates[name], times, first[name])
            for name, times in seconds.items()
            if name != AGAIN
        },
        "itself": {"seconds": rounded(seconds[AGAIN])},
        "ratios": _ratios(case, seconds),
    }


def _checked(case: Case) -> dict[str, float]:
    """Seconds of every candidate's first call. Those that cannot run go to `case.missing`."""
    results, first = {}, {}
    for name, candidate in list(case.candidates.items()):
        start = time.perf_counter()
        try:
            results[name] = _tensors(candidate.call(0))
        except Exception as error:  # one that fails is a row of the table, not the end of the run
            assert name != case.ours[0], f"{case.title}: {name} fails: {reason(error)}"
            case.missing[name] = reason(error)
            del case.candidates[name]
            continue
        first[name] = time.perf_counter() - start
    for name, candidate in case.candidates.items():
        if candidate.unlike is None:
            expected = candidate.expected
            wanted = _tensors(expected(0)) if expected else results[case.compared_with(name)]
            _assert_equal(case, name, results[name], wanted)
    return first


def _tensors(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result.detach().clone()]
    return [one.detach().clone() for one in result] if isinstance(result, list | tuple) else []


def _assert_equal(case: Case, name: str, results: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(results) == len(wanted), f"{case.title}: {name} has {len(results)} results, not {len(wanted)}"
    for number, (result, true) in enumerate(zip(results, wanted, strict=True)):
        assert result.shape == true.shape, f"{case.title}: {name} has shape {tuple(result.shape)}"
        error = ((result.double() - true.double()).abs().max() / true.double().abs().max()).item()
        # A NaN is not within any tolerance.
        assert error <= case.tolerance, f"{case.title}: {name}, result {number}: {error:.2g} from ours"


def _candidate(case: Case, candidate: Candidate, seconds: Seconds, first: float) -> dict:
    times = played(seconds)
    images = candidate.images or case.images
    return {
        "ours": candidate.ours,
        "unlike": candidate.unlike,
        "rounds": len(times),
        "median_s": float(np.median(times)),
        "quartiles_s": np.quantile(times, [0.25, 0.75]).tolist(),
        "images_per_s": images / float(np.median(times)),
        "first_call_s": first,
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
    """To four digits: a results file is read by people too."""
    return [None if second is None else float(f"{second:.3e}") for second in seconds]
