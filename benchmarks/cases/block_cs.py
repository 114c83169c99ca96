"""The data steps of block compressive sensing, against the field's forms of them and linear algebra."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness.case import OURS, Candidate, Case, Work
from benchmarks.peers import block_cs as peers
from lorun.physics import BlockCS

PEERS = {
    "pgd": {
        "convolution form": peers.Convolutions,
        "dense matrix": peers.Rows,
        "dense matrix, Phi^T Phi formed": peers.Gram,
        "deepinv": peers.Deepinv,
    },
    "hqs": {
        "dense solve": peers.Gram,
        "dense matrix, inverse formed": peers.Inverse,
        "deepinv": peers.Deepinv,
    },
}
# deepinv's conjugate gradients stop at a relative residual of 1e-4.
TOLERANCES = {"pgd": 1e-4, "hqs": 1e-3}


def data_step(
    algorithm: str, device: str, size: int, batch: int = 1, ratio: float = 0.25, block: int = 32
) -> Case:
    """The step of "pgd" or "hqs" on images of whole blocks."""
    physics = BlockCS(ratio, block, learned=False).to(device)
    rows, scale = len(physics.phi), torch.tensor(0.5, device=device)
    x = torch.rand(batch, 1, size, size, device=device)
    y = torch.rand(batch, rows, size // block, size // block, device=device)
    case = Case(
        f"{batch}x1x{size}x{size}",
        images=batch,
        # Phi x, then Phi^T of the residual: each row of Phi meets every pixel twice.
        work=Work(2 * x.nbytes + y.nbytes + physics.phi.nbytes, flops=4 * rows * x.numel()),
        tolerance=TOLERANCES[algorithm],
    )
    step = getattr(physics, f"{algorithm}_step")
    case.candidates[OURS] = Candidate(lambda i: step(x, y, scale), ours=True)
    for name, peer in PEERS[algorithm].items():
        case.add(name, partial(_candidate, algorithm, x, partial(peer, physics, y, scale)))
    return case


def _candidate(algorithm: str, x: Tensor, peer: Callable[[], object]) -> Candidate:
    step = getattr(peer(), f"{algorithm}_step")
    return Candidate(lambda i: step(x))
