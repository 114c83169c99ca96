"""ISTA-Net+ (Zhang and Ghanem, CVPR 2018), for its published weights: nine stages that share nothing."""

from pathlib import Path

import numpy as np
import scipy.io
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 33
STAGES = 9
WIDTH = 32


class Stage(nn.Module):
    """A gradient step, then a soft threshold between learned transforms; its weights are bare Parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.lambda_step = nn.Parameter(torch.tensor([0.5]))
        self.soft_thr = nn.Parameter(torch.tensor([0.01]))
        self.conv_D = _weights(WIDTH, 1)
        self.conv1_forward, self.conv2_forward = _weights(WIDTH, WIDTH), _weights(WIDTH, WIDTH)
        self.conv1_backward, self.conv2_backward = _weights(WIDTH, WIDTH), _weights(WIDTH, WIDTH)
        self.conv_G = _weights(1, WIDTH)

    def forward(self, x: Tensor, gram: Tensor, start: Tensor) -> Tensor:
        """x, (N, 1089): blocks; gram is Phi^T Phi, and start Phi^T y."""
        image = (x + self.lambda_step * (start - x @ gram)).view(-1, 1, BLOCK, BLOCK)
        features = _between(_convolved(image, self.conv_D), self.conv1_forward, self.conv2_forward)
        kept = features.sign() * F.relu(features.abs() - self.soft_thr)
        back = _between(kept, self.conv1_backward, self.conv2_backward)
        return (image + _convolved(back, self.conv_G)).view(-1, BLOCK**2)


class ISTANetPlus(nn.Module):
    """Restores blocks (N, 1089) in [0, 1] from y = x Phi^T, with the published Phi and its initial matrix."""

    phi: Tensor
    start: Tensor

    def __init__(self, phi: Tensor, start: Tensor) -> None:
        super().__init__()
        self.fcs = nn.ModuleList(Stage() for _ in range(STAGES))
        self.register_buffer("phi", phi, persistent=False)
        self.register_buffer("start", start, persistent=False)

    def forward(self, blocks: Tensor) -> Tensor:
        """Measure blocks, and restore them."""
        y = blocks @ self.phi.T
        x = y @ self.start.T
        gram, adjoint = self.phi.T @ self.phi, y @ self.phi
        for stage in self.fcs:
            x = stage(x, gram, adjoint)
        return x


def _weights(out: int, channels: int) -> nn.Parameter:
    return nn.Parameter(nn.init.xavier_normal_(torch.empty(out, channels, 3, 3)))


def _convolved(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def _between(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return _convolved(F.relu(_convolved(x, first)), second)


def published(folder: Path, percent: int) -> ISTANetPlus:
    """The published network at a sampling ratio, from the folder `peers` of the data."""
    matrices = folder / "phi_1089"
    phi, start = (_matrix(matrices, key, percent) for key in ("phi", "Qinit"))
    net = ISTANetPlus(phi, start)
    state = torch.load(
        folder / "ista_net_plus" / f"ratio_{percent}.pkl", weights_only=True, map_location="cpu"
    )
    net.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return net.eval()


def _matrix(folder: Path, key: str, percent: int) -> Tensor:
    for path in sorted(folder.glob(f"*_{percent}*.mat")):
        content = scipy.io.loadmat(path)
        if key in content:
            return torch.from_numpy(np.asarray(content[key], np.float32))
    raise FileNotFoundError(f"{folder}: no matrix {key!r} for {percent} %")


def to_blocks(photo: np.ndarray) -> Tensor:
    """(H, W) in [0, 1] as (N, 1089): padded with zeros below and to the right to whole blocks."""
    image = torch.from_numpy(np.ascontiguousarray(photo, np.float32))[None, None]
    height, width = image.shape[-2:]
    return F.unfold(F.pad(image, (0, -width % BLOCK, 0, -height % BLOCK)), BLOCK, stride=BLOCK)[0].T


def to_photo(blocks: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The photograph that blocks (N, 1089) make, in [0, 1]."""
    padded = tuple(side + -side % BLOCK for side in size)
    image = F.fold(blocks.T[None], padded, BLOCK, stride=BLOCK)[0, 0, : size[0], : size[1]]
    return image.clamp(0, 1).numpy()
