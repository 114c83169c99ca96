"""Your own K-stage network, with one shared base and K low-rank adapters in place of K denoisers.

Run it: python examples/drop_in.py
"""

import copy

import skimage.data
import torch
import torch.nn.functional as F
from torch import nn

from lorun_kernels import FusedLoRAConv2d


class SmallDUN(nn.Module):
    """A deep unfolding network as people write them: a ModuleList of K denoisers, plain nn.Conv2d."""

    def __init__(self, stages: int = 5, width: int = 32):
        super().__init__()
        self.rho = nn.Parameter(torch.full((stages,), 0.5))
        self.denoisers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(1, width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, 1, 3, padding=1),
            )
            for _ in range(stages)
        )

    def forward(self, y, mask):
        x = y
        for rho, denoiser in zip(self.rho, self.denoisers, strict=True):
            x = x - rho * mask * (mask * x - y)  # Phi is a mask: the pixels that were seen
            x = x + denoiser(x)
        return x


# --- the twenty lines to copy ---------------------------------------------------------------------


def with_adapters(base: nn.Module, gamma: float = 10) -> nn.Module:
    """A stage that computes with `base`'s own weights, frozen, plus a low-rank adapter of its own."""
    shared = {id(p): p for p in base.parameters()}
    stage = copy.deepcopy(base, memo=shared)  # copies the structure, keeps the parameters
    for parent in list(stage.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Conv2d:
                setattr(parent, name, FusedLoRAConv2d.from_conv(child, gamma=gamma))
    return stage


def share_one_base(dun: nn.Module, gamma: float = 10) -> nn.Module:
    """Replace the K denoisers of a network by one frozen base, the first of them, and K adapters."""
    base = dun.denoisers[0]
    dun.denoisers = nn.ModuleList(with_adapters(base, gamma) for _ in dun.denoisers)
    return dun


# ---------------------------------------------------------------------------------------------------


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
    print(f"before: {count(dun):,} parameters in {len(dun.denoisers)} denoisers of their own")
    dun = share_one_base(dun)
    trained = sum(p.numel() for p in dun.parameters() if p.requires_grad)
    print(
        f"after:  {count(dun):,} parameters, one base and {len(dun.denoisers)} adapters ({trained:,} trained)"
    )
    losses = torch.tensor(train(dun, steps=60))
    print(f"loss:   {losses[:10].mean():.4f} in the first ten steps, {losses[-10:].mean():.4f} in the last")


if __name__ == "__main__":
    main()
