"""Measurement models. Each has A, A_adjoint, start, pgd_step, hqs_step, and physics(x), A(x) and noise."""

from lorun.physics.block_cs import BlockCS
from lorun.physics.cassi import CASSI
from lorun.physics.noise import GaussianNoise, ShotNoise
from lorun.physics.physics import Physics

__all__ = ["CASSI", "BlockCS", "GaussianNoise", "Physics", "ShotNoise"]
