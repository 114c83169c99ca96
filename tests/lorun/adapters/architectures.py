"""Small deep unfolding networks in published styles, for the tests of lorun.share_stages.

Each has three stages of equal structure and no weight in common. ARCHITECTURES, at the end, names them all.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

STEPS = (0.4, 0.5, 0.6)
SIZE = 16
BANDS = 4


def descend(x: Tensor, y: Tensor, mask: Tensor, step: Tensor) -> Tensor:
    """One gradient step on ||mask x - y||^2 / 2."""
    return x - step * mask * (mask * x - y)


class Descent(nn.Module):
    """The plain loop of most networks here: a stage gets the estimate, the measurement and the mask."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(self.stage_type(step) for step in STEPS)

    def forward(self, y, mask):
        x = y
        for stage in self.stages:
            x = stage(x, y, mask)
        return x


class PgdStage(nn.Module):
    def __init__(self, step: float):
        super().__init__()
        self.step = nn.Parameter(torch.tensor([step]))
        self.head = nn.Conv2d(1, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.down = nn.Conv2d(8, 12, 3, padding=1, stride=2)
        self.up = nn.ConvTranspose2d(12, 8, 4, padding=1, stride=2)
        self.tail = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x, y, mask):
        x = descend(x, y, mask, self.step)
        h = F.relu(self.wide(F.relu(self.head(x))))
        h = F.relu(self.up(F.relu(self.down(h))) + h)
        return x + self.tail(h)


class Pgd(Descent):
    """Proximal gradient descent, the proximal operator a residual CNN: the plainest style of unfolding."""

    stage_type = PgdStage


class UNetWithBatchNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.entry = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.entry_norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 12, 4, padding=1, stride=2)
        self.body = nn.Conv2d(12, 12, 3, padding=1, groups=3, bias=False)
        self.body_norm = nn.BatchNorm2d(12)
        self.up = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.join = nn.Conv2d(16, 8, 3, padding=1)
        self.exit = nn.Conv2d(8, 1, 3, padding=1)
        self.act = nn.LeakyReLU(0.1)

    def forward(self, x):
        skip = self.act(self.entry_norm(self.entry(x)))
        h = self.act(self.down(skip))
        h = self.act(self.body_norm(self.body(h)))
        h = self.act(self.join(torch.cat([self.up(h), skip], dim=1)))
        return x + self.exit(h)


class Hqs(nn.Module):
    """Half-quadratic splitting with numbered U-Nets and all penalties in one vector at the root."""

    def __init__(self):
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(STEPS))
        for number in range(len(STEPS)):
            setattr(self, f"denoiser_{number}", UNetWithBatchNorm())

    def forward(self, y, mask):
        x = y
        for number, mu in enumerate(self.mu):
            z = getattr(self, f"denoiser_{number}")(x)
            x = (mask * y + mu * z) / (mask.square() + mu)
        return x


class TransformerStage(nn.Module):
    patch, width = 4, 8

    def __init__(self, step: float):
        super().__init__()
        width, pixels = self.width, self.patch**2
        self.step = nn.Parameter(torch.tensor(step))
        self.embed = nn.Conv2d(1, width, self.patch, stride=self.patch)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.position = nn.Parameter(0.02 * torch.randn(1, (SIZE // self.patch) ** 2, width))
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.cross = nn.MultiheadAttention(width, 2, kdim=pixels, vdim=2 * pixels, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.exit = nn.Linear(width, pixels)

    def forward(self, x, y, mask):
        x = descend(x, y, mask, self.step)
        h = self.embed(x)
        h = h + self.depthwise(h)
        tokens = h.flatten(2).transpose(1, 2) + self.position
        tokens = self.attend(tokens, self.patches(y), self.patches(x))
        tokens = self.encoder(tokens)
        tokens = tokens + self.ffn(tokens)
        pixels = self.exit(tokens).transpose(1, 2).unflatten(2, h.shape[2:])
        return x + F.pixel_shuffle(pixels, self.patch)

    def attend(self, tokens, measured, current):
        """The tokens among themselves, then to the measurement with its own widths of keys and values."""
        h = self.norm(tokens)
        tokens = tokens + self.attention(h, h, h, need_weights=False)[0]
        values = torch.cat([measured, current], dim=2)
        return tokens + self.cross(tokens, measured, values, need_weights=False)[0]

    def patches(self, image):
        return F.pixel_unshuffle(image, self.patch).flatten(2).transpose(1, 2)


class Transformer(Descent):
    """Unfolding with a vision transformer as the denoiser, its patches embedded and shuffled back."""

    stage_type = TransformerStage


class FeatureStage(nn.Module):
    width = 6

    def __init__(self, step: float):
        super().__init__()
        width = self.width
        self.step = nn.Parameter(torch.tensor(step))
        self.spectral = nn.Conv3d(1, 4, 3, padding=1)
        self.merge = nn.Conv3d(4, 1, 1)
        self.across_bands = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.down = nn.Conv2d(BANDS + width, 8, 4, padding=1, stride=2)
        self.up = nn.Conv2d(8, 4 * width, 3, padding=1)
        self.squeeze = nn.Linear(width, 3)
        self.excite = nn.Linear(3, width)
        self.exit = nn.Conv2d(width, BANDS, 3, padding=1)

    def forward(self, x, features):
        cube = self.weigh_bands(x + self.merge(F.gelu(self.spectral(x[:, None])))[:, 0])
        h = F.gelu(self.down(torch.cat([cube, features], dim=1)))
        h = features + F.pixel_shuffle(self.up(h), 2)
        features = self.weigh_channels(h)
        return x + self.exit(features), features

    def weigh_bands(self, cube):
        means = cube.mean(dim=(2, 3))[:, None]
        return cube * torch.sigmoid(self.across_bands(means))[:, 0, :, None, None]

    def weigh_channels(self, h):
        means = h.mean(dim=(2, 3))
        return h * torch.sigmoid(self.excite(F.gelu(self.squeeze(means))))[:, :, None, None]


class Features(nn.Module):
    """Spectral unfolding (DAUHST, DGUNet) whose stages hand on features; the root reads each stage's step."""

    def __init__(self):
        super().__init__()
        self.iterations = nn.ModuleList(FeatureStage(step) for step in STEPS)

    def forward(self, y, mask):
        x = mask * y
        features = x.new_zeros(len(x), FeatureStage.width, *x.shape[2:])
        for stage in self.iterations:
            residual = (mask * x).mean(dim=1, keepdim=True) - y
            x, features = stage(x - stage.step * mask * residual, features)
        return x


def clamp_output(module, inputs, output):
    """A forward hook that limits what a layer may put out."""
    return output.clamp(-0.3, 0.3)


class GatedCell(nn.Module):
    width = 6

    def __init__(self, step: float):
        super().__init__()
        width = self.width
        self.step = nn.Parameter(torch.tensor(step))
        self.read = nn.Conv2d(1, width, 3, padding=1)
        self.read.register_forward_hook(clamp_output)
        self.before = nn.Conv2d(width, width, 3, padding=1)
        self.after = self.before
        self.gates = nn.Conv2d(2 * width, 4 * width, 3, padding=1)
        self.write = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x, state, y, mask):
        x = descend(x, y, mask, self.step)
        hidden, memory = state
        h = torch.tanh(self.before(self.read(x)))
        gates = self.gates(torch.cat([h, hidden], dim=1))
        enter, forget, leave, new = gates.chunk(4, dim=1)
        memory = torch.sigmoid(forget) * memory + torch.sigmoid(enter) * torch.tanh(new)
        hidden = torch.sigmoid(leave) * torch.tanh(memory)
        return x + self.write(self.after(hidden)), (hidden, memory)


class Recurrent(nn.Module):
    """Unfolding with a ConvLSTM between named stages; one convolution has two names, another has a hook."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (GatedCell(step) for step in STEPS)

    def forward(self, y, mask):
        x = y
        state = (y.new_zeros(len(y), GatedCell.width, *y.shape[2:]),) * 2
        for cell in (self.first, self.second, self.third):
            x, state = cell(x, state, y, mask)
        return x


def shrink(h: Tensor, threshold: Tensor) -> Tensor:
    """Soft thresholding by channel."""
    return h.sign() * F.relu(h.abs() - threshold[:, None, None])


class RawStage(nn.Module):
    def __init__(self, step: float):
        super().__init__()
        self.step = nn.Parameter(torch.tensor(step))
        self.threshold = nn.Parameter(step * torch.linspace(0.01, 0.03, 8))
        self.D = nn.Parameter(torch.randn(8, 1, 3, 3) / 3)
        self.mix = nn.Parameter(torch.randn(8, 8) / 8**0.5)
        self.lift = nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x, y, mask):
        x = descend(x, y, mask, self.step)
        h = torch.einsum("oc,bchw->bohw", self.mix, F.conv2d(x, self.D, padding=1))
        h = shrink(h, self.threshold)
        h = F.conv_transpose2d(F.relu(self.lift(h)), self.lift.weight, padding=1)
        return x + F.conv_transpose2d(h, self.D, padding=1) / 9


class Raw(Descent):
    """ISTA-Net: bare dictionaries that are also applied transposed, and learned soft thresholds."""

    stage_type = RawStage


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose filters get mean 0 and norm 1 in its forward."""

    def forward(self, x):
        centred = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        weight = F.normalize(centred.flatten(1)).view_as(centred)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class SamePaddingConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's "same" does: an odd pixel goes to the right and below."""

    def forward(self, x):
        padding = []
        for size, kernel, stride in zip(x.shape[2:], self.kernel_size, self.stride, strict=True):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding = [missing // 2, missing - missing // 2, *padding]
        return F.conv2d(F.pad(x, padding), self.weight, self.bias, self.stride)


class WeightNormStage(nn.Module):
    def __init__(self, step: float):
        super().__init__()
        self.step = nn.Parameter(torch.tensor(step))
        self.entry = weight_norm(nn.Conv2d(1, 8, 3, padding=1))
        self.bounded = spectral_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.standardised = StandardisedConv2d(8, 8, 3, padding=1)
        self.down = SamePaddingConv2d(8, 12, 3, stride=2)
        self.exit = weight_norm(nn.Conv2d(12, 1, 3, padding=1))

    def forward(self, x, y, mask):
        x = descend(x, y, mask, self.step)
        h = F.relu(self.entry(x))
        h = F.relu(self.bounded(h)) + F.relu(self.standardised(h))
        h = F.interpolate(F.relu(self.down(h)), scale_factor=2)
        return x + self.exit(h)


class WeightNorm(Descent):
    """Unfolding with constrained denoisers: weights computed by torch or in a layer's own forward."""

    stage_type = WeightNormStage


def trained(kind: type[nn.Module]) -> nn.Module:
    """A network whose norms, biases and running statistics have left their equal starts, as by training."""
    model = kind()
    with torch.no_grad():
        for p in model.parameters():
            if p.numel() > 1 and p.min() == p.max():
                p.add_(0.1 * torch.randn_like(p))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.1 * torch.rand_like(buffer))
    return model


def masked(channels: int = 1, batch: int = 2) -> tuple[Tensor, Tensor]:
    """A measurement of one channel and its mask of some channels, the same at every call; no step is idle."""
    random = torch.Generator().manual_seed(0)
    mask = torch.rand(1, channels, SIZE, SIZE, generator=random)
    mask = torch.where(mask < 0.4, 0.0, mask)
    image = torch.rand(batch, channels, SIZE, SIZE, generator=random)
    return (mask * image).mean(dim=1, keepdim=True), mask


@dataclass(frozen=True)
class Architecture:
    """A network, what share_stages is told about it, and what each of its stages must keep for itself."""

    make: Callable[[], nn.Module]
    stages: str | list[str]
    per_stage: tuple[str, ...]
    inputs: Callable[[], tuple[Tensor, ...]] = masked
    has_norm_buffers: bool = False

    def stages_of(self, model: nn.Module) -> list[nn.Module]:
        """The stages in their order, found without share_stages: a ModuleList, names, or a regex of names."""
        if isinstance(self.stages, list):
            return [model.get_submodule(name) for name in self.stages]
        if hasattr(model, self.stages):
            return list(getattr(model, self.stages))
        return [child for name, child in model.named_children() if re.fullmatch(self.stages, name)]


def own(*parameters: str, biases: str, norms: str = "") -> tuple[str, ...]:
    """Names of parameters, the bias of each of some layers, and weight and bias of each of some norms."""
    names = [f"{layer}.bias" for layer in biases.split()]
    return (*parameters, *names, *(f"{norm}.{kind}" for norm in norms.split() for kind in ("weight", "bias")))


PGD = own("step", biases="head wide down up tail")
HQS = own(biases="down up join exit", norms="entry_norm body_norm")
TRANSFORMER = own(
    *("step", "attention.in_proj_bias", "cross.in_proj_bias", "encoder.self_attn.in_proj_bias"),
    biases="embed depthwise attention.out_proj cross.out_proj encoder.self_attn.out_proj"
    " encoder.linear1 encoder.linear2 ffn.0 ffn.2 exit",
    norms="norm encoder.norm1 encoder.norm2",
)
FEATURES = own("step", biases="spectral merge down up squeeze excite exit")
RECURRENT = own("step", biases="read before gates write")
RAW = own("step", "threshold", biases="lift")
WEIGHT_NORM = own("step", biases="entry bounded standardised down exit")

ARCHITECTURES = {
    "pgd": Architecture(partial(trained, Pgd), "stages", PGD),
    "hqs": Architecture(partial(trained, Hqs), r"denoiser_\d+", HQS, has_norm_buffers=True),
    "transformer": Architecture(partial(trained, Transformer), "stages", TRANSFORMER),
    "features": Architecture(partial(trained, Features), "iterations", FEATURES, partial(masked, BANDS)),
    "recurrent": Architecture(partial(trained, Recurrent), ["first", "second", "third"], RECURRENT),
    "raw": Architecture(partial(trained, Raw), "stages", RAW),
    "weight_norm": Architecture(partial(trained, WeightNorm), "stages", WEIGHT_NORM),
}
