"""Your own K-stage network, with one frozen base and K low-rank adapters in place of K denoisers.

Run it: python examples/drop_in.py
"""

import skimage.data
import torch
import torch.nn.functional as F
from torch import nn

import lorun


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
    """Let the K stages share the weights of the first, frozen, with an adapter for each stage; in place.

    Step sizes and biases stay each stage's own and train as before.
    """
    return lorun.share_stages(dun, "stages", gamma=gamma)


# ----------------------------------------------------------------------------------------------------


def train(dun: nn.Module, steps: int, seen: float = 0.5, lr: float = 3e-3) -> list[float]:
    """Fill in the missing pixels of a photograph, of which a share is seen; the loss of every step."""
    photo = torch.from_numpy(skimage.data.camera()).float().div(255)[None, None]
    optimizer = torch.optim.Adam((p for p in dun.parameters() if p.requires_grad), lr)
    losses = []
    for _ in range(steps):
        top, left = torch.randint(512 - 64, (2,)).tolist()
        x = photo[..., top : top + 64, left : left + 64]
        mask = (torch.rand_like(x) < seen).float()
        loss = F.l1_loss(dun(mask * x, mask), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def psnr(dun: nn.Module, seen: float = 0.5) -> float:
    """PSNR in dB on a photograph that `train` does not use; the missing pixels are always the same."""
    x = torch.from_numpy(skimage.data.coins()).float().div(255)[None, None]
    mask = (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < seen).float()
    return -10 * torch.log10(F.mse_loss(dun(mask * x, mask), x)).item()


def count(dun: nn.Module) -> int:
    return sum(p.numel() for p in dun.parameters())


def main() -> None:
    torch.manual_seed(0)
    dun = SmallDUN()
    print(f"before: {count(dun):,} parameters in {len(dun.stages)} stages of their own")
    dun = share_one_base(dun)
    trained = sum(p.numel() for p in dun.parameters() if p.requires_grad)
    print(f"after:  {count(dun):,} parameters, one base and {len(dun.stages)} adapters ({trained:,} trained)")
    losses = torch.tensor(train(dun, steps=60))
    print(f"loss:   {losses[:10].mean():.4f} in the first ten steps, {losses[-10:].mean():.4f} in the last")


if __name__ == "__main__":
    main()
