"""A trained network with K separate denoisers, compressed to a third of its parameters.

Run it: python examples/compress_network.py
"""

import copy

import torch
from drop_in import SmallDUN, count, psnr, train
from torch import nn

import lorun


def trained_network(steps: int) -> SmallDUN:
    """K stages that started from one, trained together, and were then trained apart."""
    dun = SmallDUN()
    first = dun.stages[0]
    dun.stages = nn.ModuleList([first] * len(dun.stages))
    train(dun, steps)
    dun.stages = nn.ModuleList(copy.deepcopy(first) for _ in dun.stages)
    train(dun, steps, lr=1e-3)
    return dun


def main() -> None:
    torch.manual_seed(0)
    dun = trained_network(steps=80)
    before = count(dun)
    print(f"{before:,} parameters: {psnr(dun):.2f} dB")
    lorun.compress(dun, "stages", parameters=before // 3, form="factored")
    print(f"{count(dun):,} parameters: {psnr(dun):.2f} dB, without any training")
    train(dun, steps=40, lr=3e-4)
    print(f"{count(dun):,} parameters: {psnr(dun):.2f} dB after 40 steps of training\n")
    print(lorun.report(dun))


if __name__ == "__main__":
    main()
