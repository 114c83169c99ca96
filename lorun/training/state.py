"""What a stopped run continues from: parameters, Adam's moments, the step, the log and the settings."""

import json
from pathlib import Path

import torch
from torch import Tensor

from lorun.checkpoint import assign_tensors, network_tensors
from lorun.errors import ArgumentError
from lorun.files import write_in_one_step
from lorun.tensor_files import CheckpointError, read_tensors, write_tensors
from lorun.training.config import TrainConfig
from lorun.training.recipe import config_from_dict, config_to_dict
from lorun.unfolding import UnfoldingNetwork


def save_state(net: UnfoldingNetwork, optimizer: torch.optim.Optimizer, step: int, path: Path) -> None:
    """Write everything that a run needs to continue: parameters, Adam's moments and the step."""
    tensors = {f"net.{name}": p.detach().cpu().contiguous() for name, p in network_tensors(net).items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{key}": value.cpu().contiguous() for key, value in moments.items()}
    write_tensors(tensors, {"step": step}, path)


def load_state(net: UnfoldingNetwork, optimizer: torch.optim.Optimizer, path: Path) -> int:
    """Restore what `save_state` wrote; returns the step to continue from."""
    try:
        tensors, header = read_tensors(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: damaged; remove it to start this phase anew") from error
    parameters = {name.removeprefix("net."): t for name, t in tensors.items() if name.startswith("net.")}
    assign_tensors(net, parameters, path)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return header["step"]


def claim_folder(out: Path, config: TrainConfig) -> None:
    """Record the settings in `out`; refuse a folder that belongs to another run."""
    path = out / "config.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(config_to_dict(config), indent=1)
        write_in_one_step(path, lambda part: part.write_text(text))
    elif not _records(path, config):
        raise ArgumentError(
            "out", f"{out}: holds a run with other settings; choose another folder, or remove that one"
        )


def _records(path: Path, config: TrainConfig) -> bool:
    """Whether a run's folder was claimed with these settings."""
    try:
        return config_from_dict(json.loads(path.read_text())) == config
    except (ValueError, TypeError):
        return False


def truncate_log(path: Path, steps: int) -> None:
    """Keep the entries up to the last checkpoint: later steps will run again, and a kill may cut a line."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= steps]
    write_in_one_step(path, lambda part: part.write_text("".join(kept)))
