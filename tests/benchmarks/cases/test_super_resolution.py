"""The cases of super-resolution: that every form of the steps is those steps, with their gradients."""

import pytest

from benchmarks.cases import super_resolution
from benchmarks.harness.case import OURS
from benchmarks.peers import super_resolution as peers

SMALL = {"size": 12, "scale": 3, "batch": 2, "stages": 2, "side": 5}


@pytest.mark.parametrize("algorithm", ["pgd", "hqs"])
@pytest.mark.parametrize("grad", [False, True])
def test_every_peer_computes_the_steps(algorithm, grad, measured, not_installed):
    record = measured(super_resolution.data_steps(algorithm, "cpu", grad=grad, **SMALL))
    expected = {OURS, "published style", "deepinv"}
    if algorithm == "hqs":
        expected.add("published style, terms once")
    if not grad:
        expected.add(super_resolution.DENOISERS)
    assert {*record["candidates"], *record["missing"]} == expected
    assert {*record["missing"]} == not_installed("deepinv")
    unlike = {name for name, one in record["candidates"].items() if one["unlike"] is not None}
    assert unlike == (set() if grad else {super_resolution.DENOISERS})


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_gradients_of_large_images_can_be_checked_in_float32(scale, measured, monkeypatch):
    """A gradient of mu sums over all pixels: terms that cancel would leave nothing to compare."""
    monkeypatch.setattr(super_resolution, "TOLERANCE", 2e-4)
    measured(super_resolution.data_steps("hqs", "cpu", size=128, scale=scale, grad=True))


def test_a_run_computes_once_what_its_stages_share(monkeypatch):
    transfers = []
    right = peers.Published._transfer
    monkeypatch.setattr(peers.Published, "_transfer", lambda self, x: transfers.append(1) or right(self, x))
    case = super_resolution.data_steps("hqs", "cpu", **SMALL)
    for name, expected in (("published style", SMALL["stages"]), ("published style, terms once", 1)):
        for _ in range(2):
            transfers.clear()
            case.candidates[name].call(0)
            assert len(transfers) == expected


def test_a_wrong_peer_is_caught(monkeypatch, measured):
    monkeypatch.setattr(peers.Published, "_repeated", lambda self, ratio: ratio.repeat(1, 1, 3, 3) * 2)
    with pytest.raises(AssertionError, match="published style, result 0"):
        measured(super_resolution.data_steps("hqs", "cpu", **SMALL))


def test_without_deepinv_it_is_missing(monkeypatch):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(peers, "package", absent)
    case = super_resolution.data_steps("hqs", "cpu", **SMALL)
    assert case.missing == {"deepinv": "ImportError: No module named 'deepinv'"}
    assert (case.title, case.images) == ("2x3x12x12, x3, 2 stages", 2)
