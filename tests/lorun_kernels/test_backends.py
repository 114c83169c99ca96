"""Which backend runs, how it is chosen, and what is said of one that cannot run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import lorun_kernels as lk
from lorun_kernels import backends


def run(script: str, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", script], env=os.environ | environment, capture_output=True, text=True
    )


def test_every_backend_can_run_or_says_in_a_sentence_why_not():
    available = lk.available_backends()
    assert set(available) == {"cpu", "cuda", "triton", "aten", "reference"}
    assert available["cpu"] is None and available["reference"] is None
    for name in ("cuda", "triton"):
        assert available[name] is None or len(available[name].split()) > 3
    if not torch.cuda.is_available():
        assert available["cuda"] and available["triton"]


def test_use_backend_is_undone_also_by_an_error():
    with pytest.raises(KeyError), lk.use_backend("reference"):
        with lk.use_backend("cpu"):
            assert backends.cassi_backend(torch.rand(1)) == "cpu"
        assert backends.cassi_backend(torch.rand(1)) == "reference"
        raise KeyError
    assert backends.cassi_backend(torch.rand(1)) == "cpu"


def test_use_backend_refuses_what_it_does_not_know():
    message = "must be one of cpu, cuda, triton, aten, reference, got 'gpu'"
    with pytest.raises(ValueError, match=message), lk.use_backend("gpu"):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, every backend can run")
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_use_backend_refuses_what_cannot_run_and_says_why(name):
    reason = lk.available_backends()[name]
    with pytest.raises(ValueError) as caught, lk.use_backend(name):
        pass
    assert f"backend '{name}' cannot run here: {reason}" in str(caught.value)


def test_every_op_follows_use_backend_reference():
    layer = lk.FusedLoRAConv2d(2, 4, 3)
    linear = lk.FusedLoRALinear(4, 4)
    image, mask = torch.rand(1, 2, 5, 5), torch.rand(5, 5)
    calls = {
        "lora_conv2d": lambda: layer(image),
        "lora_linear": lambda: linear(torch.rand(2, 4)),
        "merge_lora": lambda: lk.merge_lora(layer.base_weight, layer.lora_up, layer.lora_down),
        "cassi_forward": lambda: lk.cassi_forward(image, mask),
        "cassi_adjoint": lambda: lk.cassi_adjoint(torch.rand(1, 5, 7), mask, 2),
        "cassi_step": lambda: lk.cassi_hqs_step(image, torch.rand(1, 5, 7), mask, 0.5),
    }
    for name, call in calls.items():
        for backend, expected in (("cpu", True), ("reference", False)):
            with lk.use_backend(backend), torch.profiler.profile() as profile:
                call()
            assert any(e.name == f"lorun::{name}" for e in profile.events()) == expected, (name, backend)


def test_the_environment_variable_chooses_for_the_process():
    script = "import torch, lorun_kernels.backends as b; print(b.cassi_backend(torch.rand(1)))"
    assert run(script, LORUN_BACKEND="reference").stdout.strip() == "reference"
    assert run(script, LORUN_BACKEND="").stdout.strip() == "cpu"
    wrong = run(script, LORUN_BACKEND="gpu")
    assert wrong.returncode == 1
    assert "LORUN_BACKEND: the backend must be one of" in wrong.stderr.splitlines()[-1]


def test_the_default_takes_the_first_row_that_can_run_and_is_large_enough(monkeypatch):
    table = {"cpu": [("cuda", float("inf")), ("reference", 10), ("cpu", float("inf"))]}
    monkeypatch.setattr(backends, "CASSI_DEFAULTS", table)
    monkeypatch.setattr(backends, "_usable_backends", {})
    monkeypatch.setattr(backends, "cuda_missing_reason", lambda: "none here")
    assert backends.cassi_backend(torch.rand(10)) == "reference"
    assert backends.cassi_backend(torch.rand(11)) == "cpu"
    assert backends.cassi_backend(torch.rand(1, device="meta")) == "reference"


def test_importing_the_package_imports_no_triton_and_starts_no_cuda():
    script = "import lorun_kernels, sys, torch; print('triton' in sys.modules, torch.cuda.is_initialized())"
    assert run(script, LORUN_BACKEND="").stdout.split() == ["False", "False"]


def test_the_measured_table_is_read_row_by_row(monkeypatch):
    # The name of a backend that runs everywhere stands in for that of a GPU.
    rows = [(3, 28, 28, 1000, "cpu"), (3, None, 28, 500, "reference"), (1, None, None, float("inf"), "cpu")]
    monkeypatch.setattr(backends, "LORA_DEFAULTS", rows)

    def chosen(shape, weight, dtype=torch.bfloat16):
        return backends._measured_lora_backend(torch.empty(shape, dtype=dtype), torch.empty(weight))

    assert chosen((1, 28, 25, 40), (28, 28, 3, 3)) == "cpu"
    assert chosen((1, 28, 25, 41), (28, 28, 3, 3)) == "aten"
    assert chosen((2, 56, 10, 25), (28, 56, 3, 3)) == "reference"
    assert chosen((2, 56, 500, 500), (7, 56, 1, 1)) == "cpu"
    assert chosen((1, 28, 25, 40), (28, 28, 3, 3), torch.float32) == "aten"
    monkeypatch.setattr(backends, "LORA_DEFAULTS", [(3, 28, 28, 1000, "cuda")])
    monkeypatch.setattr(backends, "_missing_reason", lambda name: "it is not there")
    assert chosen((1, 28, 25, 40), (28, 28, 3, 3)) == "aten"
