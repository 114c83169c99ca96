"""LoRun: deep unfolding networks that share one denoiser and own a low-rank adapter per stage."""

from lorun import metrics, physics
from lorun.report import report
from lorun.restorer import Measurement, Restorer
from lorun.spectral_restorer import SpectralRestorer
from lorun.unfolding import UnfoldingNetwork
from lorun.zoo import create_model, list_models

__version__ = "0.1.0"

__all__ = [
    "Measurement",
    "Restorer",
    "SpectralRestorer",
    "UnfoldingNetwork",
    "create_model",
    "list_models",
    "metrics",
    "physics",
    "report",
]
