"""Measurement models. Each has A, A_adjoint, pgd_step, hqs_step, and physics(x) = A(x)."""

from lorun.physics.block_cs import BlockCS

__all__ = ["BlockCS"]
