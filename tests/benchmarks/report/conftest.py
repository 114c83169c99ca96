"""A made-up run with figures that are easy to check by hand, and a results file."""

import json

import pytest

from benchmarks.cases.lora_layer import FORWARD, LORALIB, PLAIN
from benchmarks.harness.measure import AGAIN
from benchmarks.report.run import Run

MACHINE = {
    "cpu": "a processor",
    "cpu_mhz": 2000.0,
    "cores": 2,
    "threads": 2,
    "torch": "2.13.0",
    "python": "3.11",
}
MACHINE |= {"compiler": "gcc 12", "cxx_flags": "-O3", "load": 0.25, "gpu": None}
LIMITS = {"kind": "limits", "copy_bytes_per_s": {"1000": 1e9, "1000000": 1e9}, "flops_per_s": 1e9}
LIMITS |= {"dtype": "bfloat16"}


def candidate(ours=False, median=0.001, **options) -> dict:
    return {
        "ours": ours,
        "unlike": None,
        "rounds": 9,
        "median_s": median,
        "quartiles_s": [median / 2, median * 2],
        "images_per_s": 1 / median,
        "parameter_bytes": None,
        "kept_bytes": None,
        "peak_bytes": None,
        **options,
    }


def case(title="1", group="an op", axis=None, speed_up=2.0, memory=None, missing=None) -> dict:
    sizes = {key: memory for key in ("parameter_bytes", "kept_bytes", "peak_bytes")}
    half = {key: memory and memory // 2 for key in sizes}
    return {
        "kind": "case",
        "group": group,
        "title": title,
        "mode": "full",
        "launching_timed": False,
        "axis": axis,
        "work": {"bytes": 500_000, "flops": 100_000},
        "missing": missing or {},
        "candidates": {"LoRun": candidate(True, **half), "peer": candidate(median=0.001 * speed_up, **sizes)},
        "ratios": [
            {"ours": "LoRun", "peer": AGAIN, "speed_up": 1.01, "interval": [0.99, 1.03], "rounds": 9},
            {
                "ours": "LoRun",
                "peer": "peer",
                "speed_up": speed_up,
                "interval": [speed_up * 0.9, speed_up * 1.1],
                "rounds": 9,
            },
        ],
    }


@pytest.fixture
def run() -> Run:
    cases = [case("1", speed_up=2.0), case("2", speed_up=0.5, missing={"deepinv": "ImportError: no deepinv"})]
    cases += [case(str(k), "stages", ("stages", k), memory=2**20 * k) for k in (4, 1)]
    cases += [case(str(size), "sizes", ("pixels", size)) for size in (64, 256)]
    return Run(MACHINE, "abc1234", "2026-11-28", [*cases, LIMITS])


@pytest.fixture
def make_candidate():
    return candidate


@pytest.fixture
def make_case():
    return case


@pytest.fixture
def machine() -> dict:
    return MACHINE


@pytest.fixture
def results_file():
    """results_file(path, **content): one case, in the form that pytest-benchmark writes."""

    def write(path, **content):
        whole = {"machine_info": MACHINE, "commit_info": {"id": "abc1234"}, "datetime": "2026-11-28"}
        path.write_text(json.dumps(whole | {"benchmarks": [{"extra_info": case()}], **content}))
        return path

    return write


def layer_case(layer: str, batch: int, milliseconds: dict[str, float], missing: dict | None = None) -> dict:
    """A case of a layer on a GPU."""
    candidates = {
        name: candidate(name.startswith("LoRun"), 1e-3 * value) for name, value in milliseconds.items()
    }
    ratios = [
        {"ours": "LoRun", "peer": peer, "speed_up": value / milliseconds["LoRun"], "rounds": 9}
        for peer, value in milliseconds.items()
        if peer != "LoRun"
    ]
    ratios.append({"ours": "LoRun", "peer": AGAIN, "speed_up": 1.0, "rounds": 9})
    for ratio in ratios:
        ratio["interval"] = [ratio["speed_up"]] * 2
    return {
        "kind": "case",
        "group": FORWARD,
        "title": f"{layer}, batch {batch}",
        "arguments": {"layer": layer, "batch": batch},
        "device": "cuda",
        "mode": "GPU",
        "launching_timed": False,
        "axis": None,
        "work": None,
        "missing": missing or {},
        "candidates": candidates,
        "ratios": ratios,
    }


@pytest.fixture
def layers_run() -> Run:
    """Three layers on a GPU; milliseconds of LoRun, cuda, triton, aten, plain and loralib."""
    square, residual, decoder = (
        "28->28 3x3 @256 gelu",
        "28->28 3x3 @256 +residual",
        "56+28->28 3x3 @256 gelu",
    )
    names = ["LoRun", "LoRun, cuda", "LoRun, triton", "LoRun, aten", PLAIN, LORALIB]

    def times(*values: float | None) -> dict[str, float]:
        return {name: value for name, value in zip(names, values, strict=True) if value is not None}

    limits = {
        "kind": "limits",
        "copy_bytes_per_s": {"1000": 9e12, "1000000": 2e12},
        "flops_per_s": 500e12,
        "dtype": "bfloat16",
        "kernel_s": 1.5e-6,
    }
    gpu = {"name": "a GPU", "clocks.sm": "1 MHz", "clocks.max.sm": "2 MHz", "driver_version": "3"}
    records = [
        limits,
        layer_case(square, 1, times(3, 3, 5, 4, 4, 6)),
        layer_case(residual, 1, times(4, 4, 3, 9, 2, 4)),
        layer_case(square, 8, times(7, 9, 7, 8, 9, 9)),
        layer_case(residual, 8, times(7, None, 7, 8, 14, 14), missing={"LoRun, cuda": "no kernel"}),
        layer_case(decoder, 8, times(8, None, None, 8, 8, 8)),
    ]
    return Run(MACHINE | {"gpu": gpu}, "abc1234", "2026-11-28", records)
