"""One base and two sets of adapters, each for a task of its own: trained, switched, disabled.

Run it: python examples/switch_adapters.py
"""

import torch
from drop_in import SmallDUN, count, psnr, share_one_base, train
from torch import nn

import lorun

# The share of pixels that are seen.
TASKS = {"few": 0.2, "many": 0.7}


def trained_base(steps: int) -> SmallDUN:
    """A network whose stages are one module, trained on the half of all pixels."""
    dun = SmallDUN(width=16)
    dun.stages = nn.ModuleList([dun.stages[0]] * len(dun.stages))
    train(dun, steps)
    return dun


def train_adapters(dun: SmallDUN, steps: int) -> None:
    """A set of adapters for each task, all of which start as the one that the network has now."""
    start = lorun.adapters.get_adapters(dun)
    for name, seen in TASKS.items():
        lorun.adapters.add_adapters(dun, name, start)
        lorun.set_adapters(dun, name)
        train(dun, steps, seen)  # with an optimiser of its own


def table(dun: SmallDUN) -> dict[str, dict[str, float]]:
    """PSNR of each set of adapters on each task, and of the base."""
    rows = {}
    for name in TASKS:
        lorun.set_adapters(dun, name)
        rows[name] = {task: psnr(dun, seen) for task, seen in TASKS.items()}
    lorun.set_adapters(dun, "default")  # has learned nothing since the stages were shared
    rows["none"] = {task: psnr(dun, seen) for task, seen in TASKS.items()}
    return rows


def main() -> None:
    torch.manual_seed(0)
    dun = share_one_base(trained_base(steps=100))
    train_adapters(dun, steps=100)
    print(f"{count(dun):,} parameters; sets of adapters: {', '.join(lorun.adapters.adapter_names(dun))}")
    print("adapters", *(f"{seen:>6.0%} seen" for seen in TASKS.values()))
    for name, values in table(dun).items():
        print(f"{name:<8}", *(f"{value:>8.2f} dB" for value in values.values()))


if __name__ == "__main__":
    main()
