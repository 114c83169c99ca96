"""A stage's denoiser as a case: layer by layer and merged, forward and with gradients."""

from benchmarks.cases import denoiser
from benchmarks.harness.case import OURS, REFERENCE


def test_candidates_and_their_gradients(measured):
    # The table's tiny cases are the other network's.
    case = denoiser.stage("cpu", "cassi-unet-lorun9", batch=1, size=8, grad=True)
    record = measured(case)
    assert list(record["candidates"]) == [
        OURS,
        f"{OURS}, stage merged",
        REFERENCE,
        f"{REFERENCE}, stage merged",
    ]
    assert not record["missing"]
    # The image's gradient, and those of both factors of sixteen layers.
    assert len(case.candidates[OURS].call(0)) == 33


def test_the_scratch_counts_among_the_weights():
    case = denoiser.stage("cpu", "cs25-unet-lorun9", batch=1, size=8)
    alone, merged = (case.candidates[name].parameters for name in (OURS, f"{OURS}, stage merged"))
    assert merged >= alone > 0
