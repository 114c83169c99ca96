"""LoRun: deep unfolding networks that share one denoiser and own a low-rank adapter per stage."""

from lorun import adapters, metrics, physics
from lorun.adapters import (
    compress,
    disable_adapters,
    load_adapters,
    save_adapters,
    set_adapters,
    share_stages,
)
from lorun.report import report
from lorun.restorer import Measurement, Restorer
from lorun.spectral_restorer import SpectralRestorer
from lorun.stage_report import print_trainable_parameters
from lorun.tasks.sr import SuperResolver
from lorun.unfolding import UnfoldingNetwork
from lorun.zoo import create_model, list_models
from lorun_kernels import merge, merge_all, to_plain, unmerge

__version__ = "0.1.0"

__all__ = [
    "Measurement",
    "Restorer",
    "SpectralRestorer",
    "SuperResolver",
    "UnfoldingNetwork",
    "adapters",
    "compress",
    "create_model",
    "disable_adapters",
    "list_models",
    "load_adapters",
    "merge",
    "merge_all",
    "metrics",
    "physics",
    "print_trainable_parameters",
    "report",
    "save_adapters",
    "set_adapters",
    "share_stages",
    "to_plain",
    "unmerge",
]
