"""How much quality `lorun.compress` costs: PSNR over parameters, before and after a short training.

    python -m benchmarks.studies.compression --out runs/compression

Trains the two Block-9 networks (or takes them from the folder), compresses each to several sizes, trains what
came out for a tenth of the steps that the network had been trained for, and writes results.json. A run that
was stopped continues where it was.
"""

import argparse
import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import lorun
from benchmarks.studies.block_networks import COMMON_START_STEPS, STEPS, block_network, config, samples
from lorun import metrics
from lorun.adapters.align import unet_channel_groups
from lorun.data import list_photos, read_grey
from lorun.data.locate import find_training_data
from lorun.files import write_in_one_step
from lorun.training.phase import run_phase
from lorun.unfolding import UnfoldingNetwork

TEST = "test/set11"
SHARE_OF_STEPS = 0.1
FINE_TUNING_RATE = 5e-4


def methods(net: UnfoldingNetwork) -> dict[str, dict[str, Any]]:
    """The arguments of `compress` for each row of the table."""
    block = parameters(net)
    groups = unet_channel_groups(net.denoisers[0])
    return {
        "1/2, allocated": {"parameters": block // 2, "form": "factored"},
        "1/3, allocated": {"parameters": block // 3, "form": "factored"},
        "1/3, allocated, aligned": {"parameters": block // 3, "form": "factored", "align": groups},
        "gamma 10": {"gamma": 10},
        "gamma 10, aligned": {"gamma": 10, "align": groups},
        "1/4, allocated": {"parameters": block // 4, "form": "factored"},
        "1/5, allocated": {"parameters": block // 5, "form": "factored"},
    }


def parameters(net: UnfoldingNetwork) -> int:
    """The parameters of all denoisers."""
    return sum(p.numel() for p in net.denoisers.parameters())


def psnr(net: UnfoldingNetwork) -> float:
    """The mean over Set11, protocol cs."""
    restorer = lorun.Restorer(net.eval())
    photos = [read_grey(path) for path in list_photos(find_training_data((TEST,))[0])]
    values = [metrics.psnr(restorer.restore(restorer.measure(photo)), photo, "cs") for photo in photos]
    return sum(values) / len(values)


def steps_of(name: str) -> int:
    """The steps that a network had been trained for, with those of its common start."""
    return STEPS[name] + (COMMON_START_STEPS if name == "common" else 0)


def fine_tuned(net: UnfoldingNetwork, name: str, folder: Path) -> UnfoldingNetwork:
    """Trained on for a tenth of its steps."""
    run = config(name, round(SHARE_OF_STEPS * steps_of(name)), FINE_TUNING_RATE)
    folder.mkdir(parents=True, exist_ok=True)
    run_phase(net, run, 1, samples(run), folder)
    return net


def row(net: UnfoldingNetwork, name: str, folder: Path, method: Mapping[str, Any] | None) -> dict[str, float]:
    """One row of the table: the network as it is (None), or compressed by a method."""
    net = copy.deepcopy(net)
    if method is not None:
        lorun.adapters.compress(net, "denoisers", **method)
    before = psnr(net)
    after = psnr(fine_tuned(net, name, folder))
    return {"parameters": parameters(net), "psnr": before, "psnr_after_tuning": after}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/compression"))
    out = parser.parse_args().out
    results_path = out / "results.json"
    results: dict[str, Any] = json.loads(results_path.read_text()) if results_path.exists() else {}
    for name in STEPS:
        torch.manual_seed(0)
        net = block_network(name, out / name)
        for label, method in {"Block-9": None, **methods(net)}.items():
            if label not in results.setdefault(name, {}):
                folder = out / name / label.replace("/", "-").replace(", ", "-").replace(" ", "-")
                results[name][label] = row(net, name, folder, method)
                text = json.dumps(results, indent=1)
                write_in_one_step(results_path, lambda part, text=text: part.write_text(text))


if __name__ == "__main__":
    main()
