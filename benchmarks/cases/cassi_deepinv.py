"""The CASSI operators and data steps with one column between bands, as deepinv has them."""

from __future__ import annotations

import torch

import lorun_kernels as lk
from benchmarks.harness.case import OURS, Call, Candidate, Case
from benchmarks.peers.deepinv_cassi import STEP, DeepinvCASSI

MU = 0.5
# deepinv's solver stops at a relative residual of 1e-4.
TOLERANCE = 1e-3


def operation(name: str, device: str, height: int, width: int, batch: int = 1, bands: int = 28) -> Case:
    """One of "forward", "adjoint", "pgd" and "hqs", in a size for which deepinv is right (see the peer)."""
    x = torch.rand(batch, bands, height, width, device=device)
    y = torch.rand(batch, height, width + STEP * (bands - 1), device=device)
    mask, rho = torch.rand(height, width, device=device), 1 / bands

    def deepinv() -> Candidate:
        peer = DeepinvCASSI(mask, bands)
        calls: dict[str, Call] = {
            "forward": lambda i: peer.forward(x),
            "adjoint": lambda i: peer.adjoint(y),
            "pgd": lambda i: peer.pgd_step(x, y, rho),
            "hqs": lambda i: peer.hqs_step(x, y, MU),
        }
        return Candidate(calls[name])

    ours: dict[str, Call] = {
        "forward": lambda i: lk.cassi_forward(x, mask, STEP),
        "adjoint": lambda i: lk.cassi_adjoint(y, mask, bands, STEP),
        "pgd": lambda i: lk.cassi_pgd_step(x, y, mask, rho, STEP),
        "hqs": lambda i: lk.cassi_hqs_step(x, y, mask, MU, STEP),
    }
    case = Case(f"{batch}x{bands}x{height}x{width}", images=batch, tolerance=TOLERANCE)
    case.candidates[OURS] = Candidate(ours[name], ours=True)
    case.add("deepinv", deepinv)
    return case
