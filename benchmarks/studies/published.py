"""What `lorun.compress` makes of a published network whose stages were not meant to share: ISTA-Net+.

    python -m benchmarks.studies.published --out runs/compression

Needs LORUN_DATA with the published weights and matrices. Writes published.json.
"""

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

import lorun
from benchmarks.peers.ista_net_plus import BLOCK, ISTANetPlus, published, to_blocks, to_photo
from benchmarks.studies.block_networks import DATA
from lorun import metrics
from lorun.data import PhotoCrops, list_photos, read_grey
from lorun.data.locate import find_training_data
from lorun.files import write_in_one_step

STEPS = 200
BATCH = 64
RATE = 1e-3


def methods(net: ISTANetPlus) -> dict[str, dict[str, Any]]:
    """The arguments of `compress` for each row of the table."""
    third = parameters(net) // 3
    return {
        "gamma 10": {"gamma": 10},
        "gamma 10, factored": {"gamma": 10, "form": "factored"},
        "1/3, allocated": {"parameters": third, "form": "factored"},
    }


def parameters(net: ISTANetPlus) -> int:
    """The parameters of all stages."""
    return sum(p.numel() for p in net.fcs.parameters())


@torch.no_grad()
def psnr(net: ISTANetPlus) -> float:
    """The mean over Set11, protocol cs."""
    photos = [read_grey(path) for path in list_photos(find_training_data(("test/set11",))[0])]
    restored = [to_photo(net(to_blocks(photo)), photo.shape) for photo in photos]
    values = [metrics.psnr(x, photo, "cs") for x, photo in zip(restored, photos, strict=True)]
    return sum(values) / len(values)


def share_of_differences(net: ISTANetPlus) -> float:
    """The norm of what tells the stages apart from their mean, over that of their weights."""
    apart = whole = 0.0
    for name, parameter in net.fcs[0].named_parameters():
        if parameter.dim() == 4:
            weights = torch.stack([stage.get_parameter(name).detach() for stage in net.fcs])
            apart += (weights - weights.mean(0)).square().sum().item()
            whole += weights.square().sum().item()
    return (apart / whole) ** 0.5


def tune(net: ISTANetPlus) -> ISTANetPlus:
    """Train what requires gradients, on blocks of training photographs."""
    photos = PhotoCrops(find_training_data(DATA), seed=0)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in tqdm(range(STEPS), desc="tuning", unit="step", dynamic_ncols=True):
        blocks = photos.batch(step, BATCH, BLOCK).flatten(1)
        loss = F.mse_loss(net(blocks), blocks)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/compression"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    net = published(find_training_data(("peers",))[0], 25)
    results: dict[str, Any] = {
        "share of differences": share_of_differences(net),
        "published": {"parameters": parameters(net), "psnr": psnr(net)},
    }
    for label, method in methods(net).items():
        compressed = lorun.compress(copy.deepcopy(net), "fcs", **method)
        before = psnr(compressed)
        after = psnr(tune(compressed))
        results[label] = {"parameters": parameters(compressed), "psnr": before, "psnr_after_tuning": after}
    text = json.dumps(results, indent=1)
    write_in_one_step(out / "published.json", lambda part: part.write_text(text))


if __name__ == "__main__":
    main()
