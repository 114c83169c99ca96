"""Algorithm 1: phase 1 trains the shared network, phase 2 its adapters; both can stop and continue."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from lorun.checkpoint import save_network
from lorun.device import choose_device
from lorun.networks import build_network
from lorun.tasks import TASKS
from lorun.tasks.task import NetworkSettings, Samples
from lorun.training.config import TrainConfig
from lorun.training.curves import save_curves
from lorun.training.phase import phase2_network, run_phase
from lorun.training.state import claim_folder


def train(config: TrainConfig, out: str | Path) -> Path:
    """Run both phases and return the final model file; a run stopped before continues where it was.

    Writes into `out`: config.json, phase1.jsonl and phase2.jsonl (the training curves), one `.state` file a
    phase, curves.png, the final model file and, if that holds adapters, the shared base it belongs to.

    Raises:
        ValueError: settings that do not fit each other or the data, or a folder that holds another run.
        OSError: training data that does not exist.
        FloatingPointError: a loss that is not finite; the last checkpoint stays.
    """
    out, network = Path(out), config.network
    samples = TASKS[network.task].samples(network, config.data, config.task_settings, config.seed)
    check_run(config, samples)
    claim_folder(out, config)
    shared = network.variant != "block"
    start_config = dataclasses.replace(network, variant="shared" if shared else "block")
    torch.manual_seed(config.seed)
    net = build_network(start_config).to(choose_device(config.device))
    samples.prepare(net.physics)
    run_phase(net, config, 1, samples, out)
    base_path = None
    if network.variant == "lorun":
        base_path = model_file(out, config.name, start_config)
        save_network(net, start_config, base_path, notes=training_notes(config, 1))
        net = phase2_network(net, config)
    run_phase(net, config, 2, samples, out)
    final_path = model_file(out, config.name, network)
    save_network(net, network, final_path, base=base_path, notes=training_notes(config, 2))
    save_curves({"phase 1": out / "phase1.jsonl", "phase 2": out / "phase2.jsonl"}, out / "curves.png")
    return final_path


def check_run(config: TrainConfig, samples: Samples) -> None:
    """Raise now what a later phase or segment would raise after hours."""
    build_network(config.network)
    choose_device(config.device)
    phases = (config.phase1, config.phase2)
    for phase in phases:
        if max(phase.stages) > config.network.stages:
            raise ValueError(
                f"stages: a phase runs {max(phase.stages)} of them, the network has {config.network.stages}"
            )
    sizes = [phase.size(segment) for phase in phases for segment in range(len(phase.steps))]
    samples.check(sizes, square=not any(phase.crop_width for phase in phases))


def model_file(out: Path, name: str, network: NetworkSettings) -> Path:
    """Where a run writes a network, such as OUT/cs25-unet-lorun9.safetensors."""
    return out / f"{name}-{network.variant}{network.stages}.safetensors"


def training_notes(config: TrainConfig, phase: int) -> dict[str, Any]:
    """What a model file says about its own training."""
    steps = config.phase1.total_steps + (config.phase2.total_steps if phase == 2 else 0)
    return {"training_steps": steps, "seed": config.seed, "data": list(config.data)}
