"""Whole CASSI networks, (1, 28, 256, 256) float32: LoRun-9 against Shared-9 and against the field's style.

No clock is asserted: seconds are kept in `extra_info` and printed in Markdown with ratios, their medians over
rounds of random order and 95 % intervals. LORUN_BENCHMARK_ROUNDS sets the rounds: 12, or 2 for a quick look.
"""

from __future__ import annotations

import copy
import os
import random
import statistics
import time
from collections import Counter

import pytest
import torch
from torch import nn

from benchmarks.cassi_network_peers import FieldNetwork, merged_network, random_networks
from benchmarks.cassi_peers import RollStep, pad
from lorun.physics import CASSI

BANDS, WIDTH, STAGES, SIZE = 28, 28, 9, 256
ROUNDS = int(os.environ.get("LORUN_BENCHMARK_ROUNDS", "12"))

OURS, COPY, SHARED, MERGED = "LoRun-9", "LoRun-9, a copy", "Shared-9", "LoRun-9, adapters merged"
# The first computes what LoRun does; the second is what nearly all of the field's code does.
CROPPED, PADDED = "field's style, denoisers on W columns", "field's style, denoisers on padded columns"
START, STEPS, ROLLS = "start alone", "nine data steps alone", "nine data steps of rolls alone"
STEPS_INSIDE = "nine data steps inside LoRun-9"
NO_START = ", without the start"
PEERS = (COPY, SHARED, MERGED, CROPPED, PADDED)
RATIOS = [
    *((OURS + part, peer + part) for peer in PEERS for part in ("", NO_START)),
    *((steps, OURS + part) for steps in (STEPS, STEPS_INSIDE) for part in ("", NO_START)),
    (STEPS, ROLLS),
    (START, OURS),
]


class Clocked(CASSI):
    """A camera that adds up how long starts and data steps take."""

    def __init__(self, mask: torch.Tensor, bands: int) -> None:
        super().__init__(mask, bands)
        self.seconds: Counter[str] = Counter()

    def start(self, y):
        return self._clock("start", super().start, y)

    def hqs_step(self, w, y, mu):
        return self._clock("steps", super().hqs_step, w, y, mu)

    def _clock(self, part, call, *args):
        began = time.perf_counter()
        result = call(*args)
        self.seconds[part] += time.perf_counter() - began
        return result


@pytest.mark.benchmark(group="cassi network")
@torch.no_grad()
def test_network_against_shared_and_the_fields_style(benchmark, interleaved, capsys):
    shared, lorun = random_networks(BANDS, WIDTH, STAGES)
    physics = Clocked(torch.rand(SIZE, SIZE), BANDS)
    y = physics.A(torch.rand(1, BANDS, SIZE, SIZE))
    x = physics.start(y)
    networks = {OURS: lorun, COPY: copy.deepcopy(lorun), SHARED: shared, MERGED: merged_network(lorun)}
    networks[CROPPED] = FieldNetwork(lorun, physics, padded=False)
    networks[PADDED] = FieldNetwork(lorun, physics, padded=True)
    expected = lorun(y, physics=physics)
    assert torch.isfinite(expected).all()
    for same in (networks[CROPPED](y), networks[MERGED](y, physics=physics)):
        torch.testing.assert_close(same, expected, rtol=1e-4, atol=1e-4)

    inside: dict[str, list[Counter]] = {name: [] for name in networks}
    rolls, padded = RollStep(physics.mask, BANDS, hqs=True), pad(x.contiguous())
    calls = {name: _whole(network, physics, y, inside[name]) for name, network in networks.items()}
    calls |= {
        START: lambda: physics.start(y),
        STEPS: lambda: [physics.hqs_step(x, y, mu) for mu in lorun.step],
        ROLLS: lambda: [rolls(padded, y, mu) for mu in lorun.step],
    }
    seconds = interleaved(calls, ROUNDS)
    for name, parts in inside.items():
        # The last so many: warming up is not among the seconds.
        rounds = zip(seconds[name], parts[-ROUNDS:], strict=True)
        seconds[name + NO_START] = [whole - part["start"] for whole, part in rounds]
    seconds[STEPS_INSIDE] = [part["steps"] for part in inside[OURS][-ROUNDS:]]
    ratios = {f"{a.removesuffix(NO_START)} / {b}": _ratio(seconds[a], seconds[b]) for a, b in RATIOS}
    benchmark.extra_info.update({"threads": torch.get_num_threads(), "seconds": seconds, "ratios": ratios})
    with capsys.disabled():
        print("", *_markdown(seconds, ratios), sep="\n")
    benchmark.pedantic(calls[OURS], rounds=1)


def _whole(network: nn.Module, physics: Clocked, y: torch.Tensor, inside: list[Counter]):
    args = {} if isinstance(network, FieldNetwork) else {"physics": physics}

    def call():
        physics.seconds.clear()
        network(y, **args)
        inside.append(physics.seconds.copy())

    return call


def _ratio(seconds: list[float], peer_seconds: list[float]) -> dict[str, list[float]]:
    """Quartiles of the ratio, round by round, and a 95 % bootstrap interval of its median."""
    ratios = [a / b for a, b in zip(seconds, peer_seconds, strict=True)]
    draw = random.Random(0)
    medians = [statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(10_000)]
    cuts = statistics.quantiles(medians, n=40)
    return {"quartiles": _quartiles(ratios), "interval": [cuts[0], cuts[-1]]}


def _quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive")


def _markdown(seconds: dict[str, list[float]], ratios: dict[str, dict[str, list[float]]]) -> list[str]:
    lines = [
        f"| {torch.get_num_threads()} threads, {ROUNDS} rounds | median ms | quartiles |",
        "| --- | ---: | ---: |",
    ]
    for name, times in seconds.items():
        low, middle, high = (1e3 * cut for cut in _quartiles(times))
        lines.append(f"| {name} | {middle:.1f} | {low:.1f}-{high:.1f} |")
    lines += ["", "| ratio | median | 95 % interval | quartiles |", "| --- | ---: | ---: | ---: |"]
    for name, ratio in ratios.items():
        (low, middle, high), (least, most) = ratio["quartiles"], ratio["interval"]
        lines.append(f"| {name} | {middle:.4f} | {least:.4f}-{most:.4f} | {low:.4f}-{high:.4f} |")
    return lines
