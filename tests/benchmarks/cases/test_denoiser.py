"""A stage's denoiser as a case: layer by layer and merged, forward and with gradients."""

import pytest
import torch

from benchmarks.cases import denoiser
from benchmarks.harness.case import OURS, REFERENCE
from benchmarks.table import MODELS


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_candidates_of_every_network(measured, model, grad):
    case = denoiser.stage("cpu", model, batch=1, size=8, grad=grad)
    record = measured(case)
    assert list(record["candidates"]) == [
        OURS,
        f"{OURS}, stage merged",
        REFERENCE,
        f"{REFERENCE}, stage merged",
    ]
    assert not record["missing"]
    with torch.set_grad_enabled(grad):
        results = case.candidates[OURS].call(0)
    # The image's gradient, and those of both factors of sixteen layers.
    assert len(results) == (33 if grad else 1)


def test_the_scratch_counts_among_the_weights():
    case = denoiser.stage("cpu", MODELS[1], batch=1, size=8)
    alone, merged = (case.candidates[name].parameters for name in (OURS, f"{OURS}, stage merged"))
    assert merged >= alone > 0
