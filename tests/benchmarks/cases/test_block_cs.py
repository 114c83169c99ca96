"""The cases of block compressive sensing: their work, and that every form of a step is that step."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import block_cs
from benchmarks.harness.case import OURS, Work
from benchmarks.peers import block_cs as peers
from lorun.physics import BlockCS

# 2 images of 2 x 2 blocks of 9 pixels, 3 measurements each.
SMALL = {"size": 6, "batch": 2, "ratio": 0.3, "block": 3}


@pytest.mark.parametrize("algorithm", block_cs.PEERS)
def test_work_by_hand(algorithm):
    case = block_cs.data_step(algorithm, "cpu", **SMALL)
    assert case.work == Work(bytes=4 * (2 * 72 + 24 + 27), flops=8 * 4 * 27)
    assert (case.title, case.images) == ("2x1x6x6", 2)


@pytest.mark.parametrize("orthonormal", [True, False])
@pytest.mark.parametrize("algorithm", block_cs.PEERS)
def test_every_peer_computes_the_step(monkeypatch, algorithm, orthonormal, measured, not_installed):
    phi = None if orthonormal else torch.randn(4, 9)
    monkeypatch.setattr(block_cs, "BlockCS", lambda *args, **options: BlockCS(*args, phi, **options))
    record = measured(block_cs.data_step(algorithm, "cpu", **SMALL | {"ratio": 4 / 9}))
    assert {*record["candidates"], *record["missing"]} == {OURS, *block_cs.PEERS[algorithm]}
    assert {*record["missing"]} == not_installed("deepinv")
    assert all(one["unlike"] is None for one in record["candidates"].values())


def test_a_wrong_peer_is_caught(monkeypatch, measured):
    right = peers.Rows._image
    monkeypatch.setattr(peers.Rows, "_image", lambda self, rows, like: right(self, rows, like).mT)
    with pytest.raises(AssertionError, match="dense matrix, result 0"):
        measured(block_cs.data_step("pgd", "cpu", **SMALL))


def test_without_deepinv_it_is_missing(monkeypatch):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(peers, "package", absent)
    case = block_cs.data_step("hqs", "cpu", **SMALL)
    assert case.missing == {"deepinv": "ImportError: No module named 'deepinv'"}
