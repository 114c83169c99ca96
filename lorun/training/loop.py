"""Algorithm 1: phase 1 trains the shared network, phase 2 its adapters; both can stop and go on."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lorun.checkpoint import save_network
from lorun.device import choose_device
from lorun.figures import save_curves
from lorun.networks import NetworkConfig, build_network
from lorun.training.config import Phase, TrainConfig
from lorun.training.schedule import learning_rate
from lorun.training.state import claim_folder, load_state, save_state, truncate_log
from lorun.training.tasks import Sample, Task, make_task
from lorun.unfolding import UnfoldingNetwork

GRADIENT_NORM = 1.0
# A PSNR of 60 dB counts as perfect.
LEAST_MSE = 1e-6


def train(config: TrainConfig, out: str | Path) -> Path:
    """Run both phases and return the final model file; a run stopped before goes on where it was.

    Writes into `out`: config.json, phase1.jsonl and phase2.jsonl (the training curves), one `.state` file a
    phase, curves.png, the final model file and, where that holds adapters, the shared base it belongs to.
    """
    out = Path(out)
    task = make_task(config)
    check_run(config, task)
    claim_folder(out, dataclasses.asdict(config))
    shared = config.network.variant != "block"
    start_config = dataclasses.replace(config.network, variant="shared" if shared else "block")
    torch.manual_seed(config.seed)
    net = build_network(start_config).to(choose_device(config.device))
    task.prepare(net)
    run_phase(net, config, 1, task, out)
    base_path = None
    if config.network.variant == "lorun":
        base_path = model_file(out, config.name, start_config)
        save_network(net, start_config, base_path, notes=training_notes(config, 1))
        net = phase2_network(net, config)
    run_phase(net, config, 2, task, out)
    final_path = model_file(out, config.name, config.network)
    save_network(net, config.network, final_path, base=base_path, notes=training_notes(config, 2))
    save_curves({"phase 1": out / "phase1.jsonl", "phase 2": out / "phase2.jsonl"}, out / "curves.png")
    return final_path


def check_run(config: TrainConfig, task: Task) -> None:
    """Raise now what a later phase or segment would raise after hours."""
    build_network(config.network)
    choose_device(config.device)
    for phase in (config.phase1, config.phase2):
        if max(phase.stages) > config.network.stages:
            raise ValueError(
                f"stages: a phase runs {max(phase.stages)} of them, the network has {config.network.stages}"
            )
    task.check(config)


def model_file(out: Path, name: str, network: NetworkConfig) -> Path:
    """Where a run writes a network, such as OUT/cs25-unet-lorun9.safetensors."""
    return out / f"{name}-{network.variant}{network.stages}.safetensors"


def phase2_network(shared: UnfoldingNetwork, config: TrainConfig) -> UnfoldingNetwork:
    """The LoRun network that phase 2 trains: frozen base, adapters, scalars, and Phi or its adapter."""
    shared = _rounded_to_half(shared)
    torch.manual_seed(config.seed + 1)
    net = UnfoldingNetwork.from_shared(shared, config.network.gamma, config.network.form)
    if config.network.phi_rank:
        net.physics.add_adapter(config.network.phi_rank)
    return net


def run_phase(net: UnfoldingNetwork, config: TrainConfig, number: int, task: Task, folder: Path) -> None:
    """Train `net` in place through phase 1 or 2, from its last `.state` if there is one."""
    phase = (config.phase1, config.phase2)[number - 1]
    first_sample = config.phase1.total_steps if number == 2 else 0
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
            if segment and step == sum(phase.steps[:segment]):
                grow(net, phase.stages[segment - 1], phase.stages[segment])
            sample = task.sample(net, first_sample + step, phase.batch[segment], phase.size(segment))
            loss = train_step(
                net, optimizer, sample, phase.stages[segment], learning_rate(phase, step), config
            )
            entry = {"step": step + 1, "stages": phase.stages[segment], "loss": loss}
            entry["images_per_s"] = round(len(sample.images) / (time.perf_counter() - started), 2)
            last = step + 1 == phase.total_steps
            if (step + 1) % config.save_every == 0 or last:
                entry["psnr"] = round(validation_psnr(net, task, phase.stages[segment]), 3)
            with log_path.open("a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")
            if "psnr" in entry:
                save_state(net, optimizer, step + 1, state_path)
            shown |= {name: entry[name] for name in ("loss", "images_per_s", "psnr") if name in entry}
            bar.set_postfix(shown)
            bar.update()


def parameter_groups(net: UnfoldingNetwork, phase: Phase) -> list[dict[str, Any]]:
    """Trained parameters, with the learning rate of a full Phi as a share of the others'."""
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    full_phi = [p for name, p in trained.items() if name == "physics.phi"]
    rest = [p for name, p in trained.items() if name != "physics.phi"]
    groups = [{"params": rest, "scale": 1.0}, {"params": full_phi, "scale": phase.phi_lr}]
    return [group for group in groups if group["params"]]


def train_step(
    net: UnfoldingNetwork,
    optimizer: torch.optim.Optimizer,
    sample: Sample,
    stages: int,
    lr: float,
    config: TrainConfig,
) -> float:
    """One optimiser step; raises where the loss is not finite."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
    with torch.autocast(sample.images.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        restored = net(sample.y, physics=sample.physics, size=sample.size, stages=stages)
    loss = loss_between(restored.float(), sample.images, config.loss)
    if not torch.isfinite(loss):
        raise FloatingPointError(
            "the training loss is not finite; go on from the last checkpoint with a lower learning rate"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], GRADIENT_NORM)
    optimizer.step()
    return loss.item()


def loss_between(restored: Tensor, images: Tensor, loss: str) -> Tensor:
    """ "l1" is the mean absolute error, "psnr" minus the mean PSNR in units of 10 dB."""
    if loss == "l1":
        return F.l1_loss(restored, images)
    mse = (restored - images).square().mean((1, 2, 3))
    return (mse + LEAST_MSE).log10().mean()


def grow(net: UnfoldingNetwork, before: int, after: int) -> None:
    """Give stages that have not run yet the step size and lambda of the last one that has."""
    for raw in (net.raw_step, net.raw_lambda):
        raw.data[before:after] = raw.data[before - 1]


@torch.no_grad()
def validation_psnr(net: UnfoldingNetwork, task: Task, stages: int) -> float:
    """Mean PSNR in dB over what the task keeps from training."""
    net.eval()
    sample = task.held_out(net)
    restored = net(sample.y, physics=sample.physics, size=sample.size, stages=stages)
    net.train()
    mse = (restored.clamp(0, 1) - sample.images).square().mean((1, 2, 3))
    return (-10 * mse.log10()).mean().item()


def training_notes(config: TrainConfig, phase: int) -> dict[str, Any]:
    """What a model file says about its own training."""
    steps = config.phase1.total_steps + (config.phase2.total_steps if phase == 2 else 0)
    return {"training_steps": steps, "seed": config.seed, "data": list(config.data)}


def _rounded_to_half(net: UnfoldingNetwork) -> UnfoldingNetwork:
    """The network as its fp16 file holds it, so that adapters train on the base that ships."""
    for parameter in net.parameters():
        parameter.data.copy_(parameter.data.half())
    return net
