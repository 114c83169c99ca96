"""A network in another style than LoRun's, converted in place, trained, saved and loaded.

Its stages are attributes (stage1, stage2, ...), their filters are bare Parameters that are used forwards and
transposed, and beside them are transposed convolutions, a norm and a step size of each stage's own.

Run it: python examples/convert_your_network.py
"""

import tempfile

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lorun

KERNEL = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0])[:, None] * torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 256


class Stage(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.step = nn.Parameter(torch.tensor(0.5))
        self.threshold = nn.Parameter(torch.tensor(0.01))
        self.filters = nn.Parameter(torch.randn(width, 1, 5, 5) * 0.1)
        self.down = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.norm = nn.GroupNorm(4, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x - self.step * blur(blur(x) - y)
        z = F.conv2d(x, self.filters, padding=2)
        z = z + self.up(F.gelu(self.norm(self.down(z))))
        z = torch.sign(z) * F.relu(z.abs() - self.threshold)
        return x + F.conv_transpose2d(z, self.filters, padding=2)


class YourNetwork(nn.Module):
    def __init__(self, stages: int = 4, width: int = 16):
        super().__init__()
        self.count = stages
        for k in range(1, stages + 1):
            setattr(self, f"stage{k}", Stage(width))

    def forward(self, y: Tensor) -> Tensor:
        x = y
        for k in range(1, self.count + 1):
            x = getattr(self, f"stage{k}")(x, y)
        return x


def blur(x: Tensor) -> Tensor:
    """The measurement, which is its own adjoint."""
    return F.conv2d(x, KERNEL.to(x)[None, None], padding=2)


def train(net: nn.Module, steps: int) -> list[float]:
    """The training loop as it was: it takes the parameters that require gradients. The loss of every step."""
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(steps):
        x = F.interpolate(torch.rand(4, 1, 8, 8), size=(32, 32))
        loss = F.mse_loss(net(blur(x)), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# --- all that LoRun adds ----------------------------------------------------------------------------


def convert(net: nn.Module) -> nn.Module:
    return lorun.share_stages(net, r"stage\d+", gamma=20, rank_pattern={"up": 2})


def save(net: nn.Module, folder: str) -> None:
    lorun.save_adapters(net, folder, base=True, task="deblurring")


def load(folder: str) -> nn.Module:
    """Into the network as its own code makes it, which is converted as the saved one was."""
    return lorun.load_adapters(YourNetwork(), folder)


# ----------------------------------------------------------------------------------------------------


def main() -> None:
    torch.manual_seed(0)
    net = convert(YourNetwork())
    print(lorun.report(net), end="\n\n")
    lorun.print_trainable_parameters(net)
    losses = torch.tensor(train(net, steps=150))
    print(f"loss: {losses[:10].mean():.4f} in the first ten steps, {losses[-10:].mean():.4f} in the last")
    y = torch.rand(1, 1, 32, 32)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(net, folder)
        print("loaded into a fresh network, equal:", torch.equal(load(folder)(y), net(y)))
        plain = YourNetwork()
        plain.load_state_dict(lorun.merge_all(net))
        print(f"merged into the original network, differs by {(plain(y) - net(y)).abs().max():.1e}")


if __name__ == "__main__":
    main()
