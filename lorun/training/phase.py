"""The phases of Algorithm 1: segments, log and checkpoints, and the network that phase 2 begins with."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lorun.tasks import TASKS
from lorun.tasks.task import Samples
from lorun.training.config import Phase, TrainConfig
from lorun.training.schedule import learning_rate
from lorun.training.state import load_state, save_state, truncate_log
from lorun.training.step import train_step, validation_psnr
from lorun.unfolding import UnfoldingNetwork


def run_phase(
    net: UnfoldingNetwork, config: TrainConfig, number: int, samples: Samples, folder: Path
) -> None:
    """Train `net` in place through phase 1 or 2, from its last `.state` if there is one."""
    phase = (config.phase1, config.phase2)[number - 1]
    first_sample = config.phase1.total_steps if number == 2 else 0
    device = net.raw_step.device
    optimizer = torch.optim.Adam(parameter_groups(net, phase), lr=phase.lr, betas=(0.9, 0.99))
    state_path, log_path = folder / f"phase{number}.state", folder / f"phase{number}.jsonl"
    done = load_state(net, optimizer, state_path) if state_path.exists() else 0
    truncate_log(log_path, done)
    shown: dict[str, float] = {}
    net.train()
    bar = tqdm(total=phase.total_steps, initial=done, desc=f"phase {number}", unit="step", dynamic_ncols=True)
    with bar:
        for step in range(done, phase.total_steps):
            started = time.perf_counter()
            segment = phase.segment(step)
            stages, count = phase.stages[segment], phase.batch[segment]
            if segment and step == sum(phase.steps[:segment]):
                net.grow(phase.stages[segment - 1], stages)
            sample = samples.sample(first_sample + step, count, phase.size(segment), device)
            loss = train_step(net, optimizer, sample, stages, learning_rate(phase, step), config)
            entry: dict[str, Any] = {"step": step + 1, "stages": stages, "loss": loss}
            entry["images_per_s"] = round(count / (time.perf_counter() - started), 2)
            last = step + 1 == phase.total_steps
            if (step + 1) % config.save_every == 0 or last:
                entry["psnr"] = round(validation_psnr(net, samples.held_out(device), stages), 3)
            with log_path.open("a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")
            if "psnr" in entry:
                save_state(net, optimizer, step + 1, state_path)
            shown |= {name: entry[name] for name in ("loss", "images_per_s", "psnr") if name in entry}
            bar.set_postfix(shown)
            bar.update()


def parameter_groups(net: UnfoldingNetwork, phase: Phase) -> list[dict[str, Any]]:
    """The trained parameters; `scale` is each group's share of the learning rate."""
    own_rate = net.physics.parameter_groups()
    apart = {id(p) for parameters in own_rate.values() for p in parameters}
    rest = [p for p in net.parameters() if p.requires_grad and id(p) not in apart]
    groups: list[dict[str, Any]] = [{"params": rest, "scale": 1.0}]
    groups += [{"params": parameters, "scale": getattr(phase, name)} for name, parameters in own_rate.items()]
    return [group for group in groups if group["params"]]


def phase2_network(shared: UnfoldingNetwork, config: TrainConfig) -> UnfoldingNetwork:
    """The LoRun network that phase 2 trains: frozen base, adapters, scalars, and the physics' own adapter."""
    shared = _rounded_to_half(shared)
    torch.manual_seed(config.seed + 1)
    net = UnfoldingNetwork.from_shared(shared, config.network.gamma, config.network.form)
    TASKS[config.network.task].adapt_physics(net.physics, config.network)
    return net


def _rounded_to_half(net: UnfoldingNetwork) -> UnfoldingNetwork:
    """The network as its fp16 file holds it, so that adapters train on the base that ships."""
    for parameter in net.parameters():
        parameter.data.copy_(parameter.data.half())
    return net
