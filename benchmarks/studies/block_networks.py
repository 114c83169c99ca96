"""Trains the two Block-9 networks that the study of compression compresses.

    python -m benchmarks.studies.block_networks --out runs/compression

(a) common: nine copies of the shipped Shared-9 denoiser, trained on as a Block network.
(b) independent: nine denoisers, each with a start of its own, trained from scratch.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from lorun.networks import build_network, network_config
from lorun.tasks import TASKS
from lorun.tasks.task import Samples
from lorun.training.config import Phase, TrainConfig
from lorun.training.phase import run_phase
from lorun.unfolding import UnfoldingNetwork
from lorun.zoo import create_model

NETWORK = network_config("cs", ratio=0.25, stages=9, variant="block")
DATA = ("train/div2k_gray", "train/bsd400_gray", "train/div2k_rgb", "train/t91_rgb")
STEPS = {"common": 1000, "independent": 2500}
# The steps that the shipped Shared-9 network had been trained for.
COMMON_START_STEPS = 1800


def config(name: str, steps: int, lr: float) -> TrainConfig:
    """A run of one segment: four 64x64 crops a step, through all nine stages."""
    phase = Phase(steps=(steps,), stages=(9,), batch=(4,), crop=(64,), lr=lr, phi_lr=0.03)
    return TrainConfig(name, NETWORK, phase1=phase, data=DATA, precision="bfloat16")


def samples(run: TrainConfig) -> Samples:
    return TASKS["cs"].samples(run.network, run.data, run.task_settings, run.seed)


def common_start() -> UnfoldingNetwork:
    """(a) before training: every stage begins as the shipped Shared-9 denoiser."""
    shared = create_model("cs25-unet-shared9")
    net = UnfoldingNetwork(shared.physics, shared.denoiser, 9, "block", shared.algorithm)
    net.raw_step, net.raw_lambda = shared.raw_step, shared.raw_lambda
    return net


def independent_start(run: TrainConfig) -> UnfoldingNetwork:
    """(b) before training: every stage has random weights of its own."""
    torch.manual_seed(run.seed)
    net = build_network(run.network)
    net.denoisers = nn.ModuleList(TASKS["cs"].denoiser(run.network) for _ in net.denoisers)
    samples(run).prepare(net.physics)
    return net


def block_network(name: str, folder: Path) -> UnfoldingNetwork:
    """The trained network, from its folder, or trained into it; a run that was stopped continues."""
    run = config(name, STEPS[name], 1e-3 if name == "common" else 2e-3)
    net = common_start() if name == "common" else independent_start(run)
    folder.mkdir(parents=True, exist_ok=True)
    run_phase(net, run, 1, samples(run), folder)
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/compression"))
    out = parser.parse_args().out
    for name in STEPS:
        block_network(name, out / name)


if __name__ == "__main__":
    main()
