"""The spectral-spatial transformer: attention across bands, attention in windows, depthwise convolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorun.denoisers.layers import conv, double, zero, zero_bias

# Cosines lie in [-1, 1]: at a temperature of 1 the softmax over bands would start as an average, and stay one
# for long.
FIRST_TEMPERATURE = 4.0

# The last layer starts at zero, and an optimizer moves it in steps of one size: the larger the image is in
# the features that it sees, the sooner it removes noise. 200 steps on 28 bands went from 16.4 to 28.3 dB with
# a gain of 10, to 21.9 with 3, and to 17.4 with random features alone.
IMAGE_GAIN = 10.0


class SpectralAttention(nn.Module):
    """Mixes channels by how alike they vary over the whole image: attention between C channels.

    Channel i of the result is ``sum_j softmax_j(t_i cos(q_i, k_j)) v_j``, where q, k and v are C maps of
    the image and t is learned. The cost grows with H W as a convolution's does, and every pixel takes part.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.query = conv(channels, channels, 1)
        self.key = conv(channels, channels, 1)
        self.value = conv(channels, channels, 1)
        self.project = conv(channels, channels, 1)
        self.temperature = nn.Parameter(torch.full((channels, 1), FIRST_TEMPERATURE))

    def forward(self, x: Tensor) -> Tensor:
        h = normalize(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.query, self.key, self.value))  # [B, C, H*W]
        weights = torch.softmax(self.temperature * cosines(q, k), -1).to(v.dtype)
        # As pixels times weights, the product is in channels_last already.
        mixed = torch.bmm(v.transpose(1, 2), weights.transpose(1, 2)).transpose(1, 2)
        return self.project(mixed.unflatten(2, x.shape[-2:]), residual=x)


class WindowAttention(nn.Module):
    """Attention between the pixels of each `window` x `window` tile; H and W are multiples of `window`."""

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.query = conv(channels, channels, 1)
        self.key = conv(channels, channels, 1)
        self.value = conv(channels, channels, 1)
        self.project = conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        # The projections are pointwise, so all of the layer runs on windows: one copy in and one out.
        windows = to_windows(x, self.window)
        h = normalize(windows)
        q, k, v = (self._tokens(layer(h)) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [windows, pixels, C]
        mixed = mixed.transpose(1, 2).unflatten(2, (self.window, self.window))
        return from_windows(self.project(mixed, residual=windows), x.shape)

    def _tokens(self, windows: Tensor) -> Tensor:
        """(windows, C, window, window) -> (windows, heads, pixels, C / heads)."""
        return windows.flatten(2).transpose(1, 2).unflatten(2, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """1x1 to `expansion` times the channels, 3x3 depthwise, GELU, 1x1 back."""

    def __init__(self, channels: int, expansion: int):
        super().__init__()
        inner = expansion * channels
        self.expand = conv(channels, inner, 1)
        self.local = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.project = conv(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.gelu(self.local(self.expand(normalize(x)))), residual=x)


class SpectralTransformer(nn.Module):
    """Removes noise of a known level from a spectral image: (B, C, H, W) and a level -> (B, C, H, W).

    A U-shape of three levels, the channels doubling and the sides halving at each. A block is attention
    between channels over the whole image (the transposed attention of Restormer, arXiv 2111.09881, and MST,
    arXiv 2111.07910), attention between the pixels of a window, and a feed-forward layer, each added to its
    input. With the defaults it has 596,148 parameters, so that nine of them are the Block-9 of Table III of
    arXiv 2602.18697. It computes in channels_last, starts as the identity, and pads any H, W inside to a
    multiple of `downscale`; the attention between channels sees the padding, so part of an image is not
    restored exactly as it is within the whole.

    Args:
        channels: C of the image, its bands.
        width: channels of the first level.
        blocks: blocks per level: of the first and the second, which run them before and after the level
            below, and of the third.
        expansion: channels inside a feed-forward layer, as a multiple of the level's.
        window: side of an attention window in pixels of its level.

    Raises:
        ValueError: one of these below 1, or not three counts of blocks.
    """

    def __init__(
        self,
        channels: int = 28,
        width: int = 28,
        blocks: tuple[int, int, int] = (1, 1, 3),
        expansion: int = 2,
        window: int = 8,
    ):
        super().__init__()
        sizes = {"channels": channels, "width": width, "expansion": expansion, "window": window}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"SpectralTransformer: expected {name} of at least 1, got {size}")
        if len(blocks) != 3 or min(blocks) < 1:
            raise ValueError(f"blocks: expected three counts of at least 1, such as (1, 1, 3), got {blocks}")
        self.channels, self.width = channels, width
        self.downscale = 4 * window

        def level(index: int) -> nn.Sequential:
            return _level(width * 2**index, 2**index, blocks[index], expansion, window)

        self.embed = conv(channels + 1, width, 3)
        self.encoder1 = level(0)
        self.down1 = conv(width, 2 * width, 1)
        self.encoder2 = level(1)
        self.down2 = conv(2 * width, 4 * width, 1)
        self.bottom = level(2)
        self.up2 = conv(4 * width, 2 * width, 1)
        self.skip2 = conv(2 * width, 2 * width, 1)
        self.decoder2 = level(1)
        self.up1 = conv(2 * width, width, 1)
        self.skip1 = conv(width, width, 1)
        self.decoder1 = level(0)
        self.last = conv(width, channels, 3)
        self._start()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def _start(self) -> None:
        """The features start as the image, beside random ones, up to the last layer, and that at zero."""
        for band in range(min(self.channels, self.width)):
            self.embed.weight[band, band, 1, 1] += IMAGE_GAIN
        for skip in (self.skip1, self.skip2):
            nn.init.dirac_(skip.weight)
            zero_bias(skip)
        zero(self.last)

    def forward(self, x: Tensor, noise_level: Tensor | float) -> Tensor:
        """`noise_level`: standard deviation on the scale of x, one number or one per sample.

        Raises:
            ValueError: an image that is not (B, channels, H, W), or another number of levels than of samples.
        """
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"x: expected (B, {self.channels}, H, W), the channels this denoiser was made for, "
                f"got {list(x.shape)}"
            )
        height, width = x.shape[-2:]
        padding = (0, -width % self.downscale, 0, -height % self.downscale)
        image = F.pad(x, padding, mode="replicate") if any(padding) else x
        return self._denoise(image, noise_level)[..., :height, :width]

    def _denoise(self, x: Tensor, noise_level: Tensor | float) -> Tensor:
        level = torch.as_tensor(noise_level, dtype=x.dtype, device=x.device)
        if level.numel() not in (1, x.shape[0]):
            raise ValueError(
                f"noise_level: expected one number or one per sample, {x.shape[0]}, got {level.numel()}"
            )
        level_map = level.reshape(-1, 1, 1, 1).expand(x.shape[0], 1, *x.shape[-2:])
        h = self.embed(torch.cat([x, level_map], 1).contiguous(memory_format=torch.channels_last))
        h1 = self.encoder1(h)
        h2 = self.encoder2(self.down1(F.avg_pool2d(h1, 2)))
        h = self.bottom(self.down2(F.avg_pool2d(h2, 2)))
        # Together a 1x1 convolution of both, the half of the deeper level computed before it is doubled.
        h = self.decoder2(self.skip2(h2, residual=double(self.up2(h))))
        h = self.decoder1(self.skip1(h1, residual=double(self.up1(h))))
        # Added in the image's own precision, also under autocast.
        return x + self.last(h)


def _level(channels: int, heads: int, blocks: int, expansion: int, window: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(blocks):
        layers += [
            SpectralAttention(channels),
            WindowAttention(channels, heads, window),
            FeedForward(channels, expansion),
        ]
    return nn.Sequential(*layers)


def normalize(x: Tensor) -> Tensor:
    """Zero mean and unit variance over the channels of every pixel, in x's dtype.

    It has no parameters: the convolution that follows can scale and shift.
    """
    # Autocast would return float32, twice the memory to write and to cast back.
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)


def cosines(q: Tensor, k: Tensor) -> Tensor:
    """Cosine of every row of q with every row of k: (B, C, N) twice -> (B, C, C), float32 or wider."""
    # Norms divide the C x C products, not the C x N maps. The scale keeps half precision from overflowing.
    pixels = q.shape[-1]
    products = torch.baddbmm(q.new_zeros(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=1 / pixels)
    dtype = torch.promote_types(q.dtype, torch.float32)
    q_norms = torch.linalg.vector_norm(q, dim=-1, keepdim=True, dtype=dtype)
    k_norms = torch.linalg.vector_norm(k, dim=-1, keepdim=True, dtype=dtype)
    norms = q_norms * k_norms.transpose(1, 2) / pixels
    return products.to(dtype) / norms.clamp_min(1e-12)


def to_windows(x: Tensor, size: int) -> Tensor:
    """(B, C, H, W) -> (B * windows, C, size, size), both in channels_last."""
    rows = x.permute(0, 2, 3, 1).unflatten(2, (-1, size)).unflatten(1, (-1, size))
    return rows.transpose(2, 3).flatten(0, 2).permute(0, 3, 1, 2)


def from_windows(windows: Tensor, shape: torch.Size) -> Tensor:
    """The image of `shape` whose windows these are."""
    batch, _, height, width = shape
    size = windows.shape[-1]
    tiles = windows.permute(0, 2, 3, 1).unflatten(0, (batch, height // size, width // size))
    return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
