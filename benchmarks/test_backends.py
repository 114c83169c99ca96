"""Which backend of a CASSI data step is the fastest at each size: what `CASSI_DEFAULTS` is taken from."""

from __future__ import annotations

import pytest
import torch

import lorun_kernels as lk
from lorun_kernels import reference

SIZES = [(1, 4, 8), (1, 28, 16), (1, 28, 64), (1, 28, 256), (8, 28, 256)]


def _devices() -> dict[str, list[str]]:
    """The backends that run on each device here."""
    usable = [name for name, reason in lk.available_backends().items() if reason is None]
    devices = {"cpu": ["cpu", "reference"]}
    if torch.cuda.is_available():
        devices["cuda"] = [name for name in usable if name != "cpu"]
    return devices


@pytest.mark.parametrize("device", _devices())
@pytest.mark.parametrize("batch, bands, size", SIZES)
@pytest.mark.benchmark(group="cassi_hqs_step by backend")
def test_backends(benchmark, interleaved, table, device, batch, bands, size):
    x = torch.rand(batch, bands, size, size, device=device)
    y = torch.rand(batch, size, size + 2 * (bands - 1), device=device)
    mask, mu = torch.rand(size, size, device=device), torch.tensor(0.5, device=device)

    offsets = [2 * band for band in range(bands)]

    def call(backend):
        # Below the public function, so that choosing a backend is not timed.
        if backend == "reference":
            reference.cassi_hqs_step(x, y, mask, mu)
        else:
            torch.ops.lorun.cassi_step(x, y, mask, mu, offsets, True, backend)
        if device == "cuda":
            torch.cuda.synchronize()

    first, *others = _devices()[device]
    for backend in (first, *others):
        # Registers the ops of a backend that is loaded on demand.
        with lk.use_backend(backend):
            lk.cassi_hqs_step(x, y, mask, mu)
    calls = {name: lambda name=name: call(name) for name in (first, *others)}
    with torch.no_grad():
        seconds = interleaved(calls, 30)
    benchmark.extra_info.update({"device": device, "shape": [batch, bands, size, size], "seconds": seconds})
    for other in others:
        case = f"{first} / {other}, {device} {batch}x{bands}x{size}x{size}"
        table(benchmark.group, case, other, seconds[first], seconds[other])
    benchmark.pedantic(calls[first], rounds=3)
