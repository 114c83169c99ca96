"""The CASSI ops on a GPU: every backend against the bandwidth of a copy and against rolls, by CUDA events.

Each call reads an input that the cache does not hold: inputs rotate through more memory than the L2 has.
"""

from __future__ import annotations

import statistics

import pytest
import torch

import lorun_kernels as lk
from benchmarks.cassi_peers import RollStep, pad
from benchmarks.gpu_timing import milliseconds, variants

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and torch sees none"),
]

ROUNDS = 30
# How long the GPU is kept busy before a call: less than before a layer, which has more to launch.
CYCLES = 200_000
SHAPES = [(8, 28, 256, 256), (1, 28, 660, 660)]
DTYPES = [torch.float32, torch.bfloat16]
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
BACKENDS = ["cuda", "triton"]


def _scene(shape, dtype, layout):
    batch, bands, height, width = shape
    cube_bytes = dtype.itemsize * batch * bands * height * width
    count = variants(cube_bytes)
    cubes = [torch.rand(shape, device="cuda").to(dtype).to(memory_format=layout) for _ in range(count)]
    y = torch.rand(batch, height, width + 2 * (bands - 1), device="cuda").to(dtype)
    mask = torch.rand(height, width, device="cuda").to(dtype)
    return cubes, y, mask, torch.tensor(0.5, device="cuda")


def _on(backend, function):
    def call(i):
        with lk.use_backend(backend):
            return function(i)

    return call


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", ["pgd", "hqs", "hqs backward", "forward", "adjoint"])
@pytest.mark.benchmark(group="cassi on a GPU")
def test_bandwidth(benchmark, gpu_table, op, shape, dtype, layout):
    cubes, y, mask, mu = _scene(shape, dtype, LAYOUTS[layout])
    layout_of_result = LAYOUTS[layout]
    measured = [y.clone() for _ in cubes]
    functions = {
        "pgd": lambda i: lk.cassi_pgd_step(cubes[i], y, mask, mu),
        "hqs": lambda i: lk.cassi_hqs_step(cubes[i], y, mask, mu),
        "forward": lambda i: lk.cassi_forward(cubes[i], mask),
        "adjoint": lambda i: lk.cassi_adjoint(measured[i], mask, shape[1], 2, layout_of_result),
    }
    if op == "hqs backward":
        leaf, scale = cubes[0].clone().requires_grad_(), mu.clone().requires_grad_()
        graphs = {}
        for backend in BACKENDS:
            with lk.use_backend(backend):
                graphs[backend] = lk.cassi_hqs_step(leaf, y, mask, scale)
        calls = {
            backend: lambda i, out=out: torch.autograd.grad(out, [leaf, scale], cubes[i], retain_graph=True)
            for backend, out in graphs.items()
        }
    else:
        calls = {backend: _on(backend, functions[op]) for backend in BACKENDS}
        results = [call(0).float() for call in calls.values()]
        torch.testing.assert_close(*results, rtol=2e-2, atol=2e-2)
    calls["copy"] = lambda i: cubes[i].clone()
    if op in ("pgd", "hqs") and layout == "NCHW":
        peer = RollStep(mask, shape[1], op == "hqs")
        padded = [pad(cube) for cube in cubes[:4]]
        calls["rolls"] = lambda i: peer(padded[i % len(padded)], y, mu.to(dtype))
    # A step reads and writes the cube as a copy does; an operator does one of the two.
    cube_bytes = cubes[0].numel() * dtype.itemsize
    traffic = y.numel() * dtype.itemsize + cube_bytes * (1 if op in ("forward", "adjoint") else 2)
    times = milliseconds(calls, len(cubes), ROUNDS, CYCLES)
    median = {name: statistics.median(values) for name, values in times.items()}
    copy_rate = 2 * cube_bytes / median["copy"]
    for backend in BACKENDS:
        rate = traffic / median[backend]
        gpu_table(
            op=op,
            shape=list(shape),
            dtype=str(dtype).removeprefix("torch."),
            layout=layout,
            backend=backend,
            ms=median[backend],
            quartiles=statistics.quantiles(times[backend], n=4)[::2],
            tb_per_s=rate / 1e9,
            of_copy=rate / copy_rate,
            over_rolls=median["rolls"] / median[backend] if "rolls" in median else None,
        )
    benchmark.extra_info.update({"milliseconds": times, "gpu": torch.cuda.get_device_name()})
    benchmark.pedantic(calls[BACKENDS[0]], args=(0,), rounds=3)
