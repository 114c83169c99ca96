"""What a stopped run goes on from: parameters, Adam's moments, the step, the log and the settings."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorun.checkpoint import assign_tensors, network_tensors, read_tensors, write_tensors
from lorun.unfolding import UnfoldingNetwork


def save_state(net: UnfoldingNetwork, optimizer: torch.optim.Optimizer, step: int, path: Path) -> None:
    """Write everything that a run needs to go on: parameters, Adam's moments and the step."""
    tensors = {f"net.{name}": p.detach().cpu().contiguous() for name, p in network_tensors(net).items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{key}": value.cpu().contiguous() for key, value in moments.items()}
    write_tensors(tensors, {"step": step}, path)


def load_state(net: UnfoldingNetwork, optimizer: torch.optim.Optimizer, path: Path) -> int:
    """Restore what `save_state` wrote; returns the step to go on from."""
    tensors, header = read_tensors(path)
    parameters = {name.removeprefix("net."): t for name, t in tensors.items() if name.startswith("net.")}
    assign_tensors(net, parameters, path)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return header["step"]


def claim_folder(out: Path, settings: dict[str, Any]) -> None:
    """Record the settings in `out`; refuse a folder that belongs to another run."""
    text = json.dumps(settings, indent=1)
    path = out / "config.json"
    if path.exists() and json.loads(path.read_text()) != json.loads(text):
        raise ValueError(
            f"{out}: holds a run with other settings; choose another --out, or remove that folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def truncate_log(path: Path, steps: int) -> None:
    """Drop the entries of steps that will run again, because they came after the last checkpoint."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line for line in lines if json.loads(line)["step"] <= steps))
