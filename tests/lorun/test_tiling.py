import pytest
import torch
from torch import Tensor

from lorun.denoisers import SpectralTransformer, UNet
from lorun.tiling import denoise_in_tiles, spans

# How far a U-Net of three levels looks, as test_the_reach_of_the_unet finds it.
REACH = 36


def lively(net: torch.nn.Module) -> torch.nn.Module:
    """Random weights everywhere, scaled so that no layer's output vanishes or explodes."""
    with torch.no_grad():
        for p in net.parameters():
            fan_in = p[0].numel() if p.dim() == 4 else 1
            p.normal_(std=1.4 * fan_in**-0.5 if p.dim() == 4 else 0.3)
    return net.eval()


class Recorder:
    """A denoiser that remembers the sides of the tiles it saw."""

    def __init__(self, denoise):
        self.denoise, self.sizes = denoise, []

    def __call__(self, *tiles: Tensor) -> Tensor:
        self.sizes.append(tuple(tiles[0].shape[-2:]))
        return self.denoise(*tiles)


def farthest_influence(net: torch.nn.Module, position: int) -> int:
    x = torch.randn(1, 1, 4, 256, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(net(x, 0.3)[0, 0, 2, position], x)
    columns = grad.abs().sum(-2).flatten().nonzero().flatten()
    return (columns - position).abs().max().item()


def test_the_reach_of_the_unet():
    net = lively(UNet(width=4).double())
    assert max(farthest_influence(net, 128 + phase) for phase in range(4)) == REACH


@torch.no_grad()
@pytest.mark.parametrize("size", [(150, 203), (128, 300), (301, 90), (256, 256), (129, 129)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_unet_in_tiles_is_the_unet(size, layout):
    net = lively(UNet(channels=3, width=4))
    x = torch.rand(2, 3, *size).contiguous(memory_format=layout)
    level = torch.tensor([0.1, 0.5])
    whole = net(x, level)
    assert whole.std() > 0.1
    tiled = denoise_in_tiles(lambda part: net(part, level), (x,), tile=128, overlap=REACH)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)
    assert tiled.is_contiguous(memory_format=layout)


@torch.no_grad()
@pytest.mark.parametrize("broken", [{"overlap": REACH - 4}, {"align": 3}, {"align": 2}])
def test_less_overlap_or_other_origins_are_not_enough(broken):
    net = lively(UNet(width=4).double())
    x = torch.rand(1, 1, 150, 203).double()
    options = {"tile": 126, "overlap": REACH} | broken
    tiled = denoise_in_tiles(lambda part: net(part, 0.1), (x,), **options)
    assert (tiled - net(x, 0.1)).abs().max() > 1e-9


@torch.no_grad()
def test_further_inputs_are_cut_alike():
    net = lively(UNet(channels=2, width=4))
    x, guide = torch.rand(1, 1, 70, 163), torch.rand(1, 1, 70, 163)

    def denoise(part: Tensor, guide: Tensor) -> Tensor:
        return net(torch.cat([part, guide], 1), 0.1)[:, :1]

    tiled = denoise_in_tiles(denoise, (x, guide), tile=112, overlap=REACH)
    torch.testing.assert_close(tiled, denoise(x, guide), rtol=0, atol=1e-5)


def test_every_pixel_is_far_from_the_border_of_its_tile():
    for length in range(1, 400, 3):
        for tile, overlap, align in [(128, 36, 4), (100, 0, 1), (30, 14, 1), (97, 31, 32), (41, 7, 6)]:
            if tile < 2 * overlap + align:
                continue
            parts = spans(length, tile, overlap, align)
            assert [0, *(part.last for part in parts)] == [*(part.first for part in parts), length]
            for part in parts:
                assert part.first < part.last and part.stop - part.start <= tile
                assert part.start % align == 0
                assert part.start == 0 or part.first - part.start >= overlap
                assert part.stop == length or part.stop - part.last >= overlap
                assert part.start == 0 or part.stop - part.start > tile - 2 * align


@torch.no_grad()
def test_no_tile_is_larger_than_asked():
    denoise = Recorder(lambda part: part + 1)
    x = torch.rand(1, 2, 500, 333)
    tiled = denoise_in_tiles(denoise, (x,), tile=130, overlap=33, align=4)
    assert torch.equal(tiled, x + 1)
    assert max(max(size) for size in denoise.sizes) == 128
    assert len(denoise.sizes) == 8 * 5


def test_an_image_that_fits_is_not_cut():
    denoise = Recorder(lambda part: part * 2)
    x = torch.rand(1, 1, 128, 97)
    result = denoise_in_tiles(denoise, (x,), tile=128, overlap=36)
    assert torch.equal(result, x * 2)
    assert denoise.sizes == [(128, 97)]


@torch.no_grad()
def test_the_transformer_comes_close_on_a_smooth_image():
    net = SpectralTransformer(channels=4, width=4, blocks=(1, 1, 1), window=4).eval()
    torch.nn.init.normal_(net.last.weight, std=0.1)
    rows, columns = torch.linspace(0, 3, 200)[:, None], torch.linspace(0, 4, 170)
    bands = [0.5 + 0.4 * torch.sin(rows + band) * torch.cos(columns - band) for band in range(4)]
    x = torch.stack(bands)[None]
    whole = net(x, 0.1)
    tiled = denoise_in_tiles(lambda part: net(part, 0.1), (x,), tile=128, overlap=32, align=net.downscale)
    assert (whole - x).std() > 0.01
    assert (tiled - whole).square().mean().sqrt() < 0.2 * (whole - x).square().mean().sqrt()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"tile": 128, "overlap": 64}, "tile: expected at least 132"),
        ({"tile": 130, "overlap": 63, "align": 32}, "tile: expected at least 160"),
        ({"tile": 0, "overlap": 0}, "tile: expected at least 4"),
        ({"tile": 128, "overlap": -1}, "overlap: expected at least 0"),
        ({"tile": 128, "align": 0}, "align: expected at least 1"),
    ],
)
def test_bad_sizes_say_what_was_expected(options, words):
    with pytest.raises(ValueError, match=words):
        denoise_in_tiles(lambda part: part, (torch.zeros(1, 1, 8, 8),), **options)


def test_bad_tensors_say_what_was_expected():
    x = torch.zeros(1, 1, 40, 50)
    with pytest.raises(ValueError, match="inputs: expected tensors of one height and width"):
        denoise_in_tiles(lambda part, other: part, (x, x[..., 1:]), tile=32, overlap=4)
    with pytest.raises(ValueError, match="inputs: expected"):
        denoise_in_tiles(lambda: x, (), tile=32, overlap=4)
    with pytest.raises(ValueError, match="denoise: expected a result of"):
        denoise_in_tiles(lambda part: part[..., 1:], (x,), tile=32, overlap=4)


def noisy_cubes(count: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth cubes of three materials, and the same under noise."""
    amounts = torch.randn(count, 3, height // 8 + 2, width // 8 + 2)
    amounts = torch.nn.functional.interpolate(amounts, size=(height, width), mode="bicubic").sigmoid()
    clean = torch.einsum("ck,nkhw->nchw", torch.rand(6, 3) / 3, amounts)
    return clean, clean + 0.1 * torch.randn_like(clean)


def test_a_trained_transformer_loses_less_than_a_twentieth_of_a_decibel_to_tiles():
    net = SpectralTransformer(channels=6, width=8)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(60):
        clean, noisy = noisy_cubes(4, 32, 32)
        loss = (net(noisy, 0.1) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    clean, noisy = noisy_cubes(1, 224, 288)
    with torch.no_grad():
        tiled = denoise_in_tiles(lambda tile: net(tile, 0.1), (noisy,), 160, 40, net.downscale)
        before, whole, in_tiles = (
            -10 * (cube - clean).square().mean().log10() for cube in (noisy, net(noisy, 0.1), tiled)
        )
    assert whole > before + 4
    assert abs(whole - in_tiles) < 0.05
