"""Your own K-stage network, with one frozen base and K low-rank adapters in place of K denoisers.

Run it: python examples/drop_in.py
"""

import skimage.data
import torch
import torch.nn.functional as F
from torch import nn

from lorun.adapters import adapted_view


class Stage(nn.Module):
    """A stage as people write them: its own step size, and its own denoiser of plain layers."""

    def __init__(self, width: int):
        super().__init__()
        self.rho = nn.Parameter(torch.tensor(0.5))
        self.denoiser = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 1, 3, padding=1),
        )

    def forward(self, x, y, mask):
        x = x - self.rho * mask * (mask * x - y)  # Phi is a mask: the pixels that were seen
        return x + self.denoiser(x)


class SmallDUN(nn.Module):
    def __init__(self, stages: int = 5, width: int = 32):
        super().__init__()
        self.stages = nn.ModuleList(Stage(width) for _ in range(stages))

    def forward(self, y, mask):
        x = y
        for stage in self.stages:
            x = stage(x, y, mask)
        return x


# --- the lines to copy ------------------------------------------------------------------------------


def share_one_base(dun: SmallDUN, gamma: float = 10) -> SmallDUN:
    """Replace the K denoisers by one, the first, frozen and shared, with an adapter for each stage.

    Everything in the base is frozen, also layers that get no adapter (a norm, say): K stages would otherwise
    train them as one. What each stage learns for itself, such as rho, stays outside of the denoiser.
    """
    base = dun.stages[0].denoiser.requires_grad_(False)
    for stage in dun.stages:
        stage.denoiser = adapted_view(base, gamma)
    return dun


# ----------------------------------------------------------------------------------------------------


def train(dun: nn.Module, steps: int) -> list[float]:
    """Fill in the missing half of a photograph's pixels; returns the loss of every step."""
    photo = torch.from_numpy(skimage.data.camera()).float().div(255)[None, None]
    optimizer = torch.optim.Adam((p for p in dun.parameters() if p.requires_grad), lr=3e-3)
    losses = []
    for _ in range(steps):
        top, left = torch.randint(512 - 64, (2,)).tolist()
        x = photo[..., top : top + 64, left : left + 64]
        mask = (torch.rand_like(x) < 0.5).float()
        loss = F.l1_loss(dun(mask * x, mask), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def count(dun: nn.Module) -> int:
    return sum(p.numel() for p in dun.parameters())


def main() -> None:
    torch.manual_seed(0)
    dun = SmallDUN()
    print(f"before: {count(dun):,} parameters in {len(dun.stages)} denoisers of their own")
    dun = share_one_base(dun)
    trained = sum(p.numel() for p in dun.parameters() if p.requires_grad)
    print(f"after:  {count(dun):,} parameters, one base and {len(dun.stages)} adapters ({trained:,} trained)")
    losses = torch.tensor(train(dun, steps=60))
    print(f"loss:   {losses[:10].mean():.4f} in the first ten steps, {losses[-10:].mean():.4f} in the last")


if __name__ == "__main__":
    main()
