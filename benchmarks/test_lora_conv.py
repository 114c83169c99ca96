"""The U-Net's own layers, channels_last on CPU, against the plain frozen convolution and loralib's ConvLoRA.

No clock is asserted: the figures are ratios within interleaved rounds; the seconds of every round are kept in
`extra_info`, and a table is printed at the end of the run.
"""

from __future__ import annotations

import loralib
import pytest
import torch
from torch import nn

from lorun_kernels import FusedLoRAConv2d

# (in, out, size, kernel) at a 256 x 256 image.
LAYERS = [
    (2, 28, 256, 3),
    (28, 28, 256, 3),
    (28, 56, 128, 3),
    (56, 56, 128, 3),
    (56, 112, 64, 3),
    (112, 112, 64, 3),
    (168, 56, 128, 3),
    (84, 28, 256, 3),
    (28, 1, 256, 1),
]
ROUNDS = 100


def _layers(in_channels: int, out_channels: int, kernel: int) -> dict[str, nn.Module]:
    plain = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    fused = FusedLoRAConv2d.from_conv(plain, gamma=10)
    peer = loralib.Conv2d(
        in_channels, out_channels, kernel, r=fused.rank, lora_alpha=fused.rank, padding=kernel // 2
    )
    peer.conv.bias.requires_grad_(False)
    torch.nn.init.normal_(fused.lora_up, std=0.01)
    torch.nn.init.normal_(peer.lora_B, std=0.01)
    layers = {"plain": plain, "lorun": fused, "loralib": peer}
    return {name: layer.to(memory_format=torch.channels_last) for name, layer in layers.items()}


def _step(layer: nn.Module, image: torch.Tensor, grad: torch.Tensor):
    wanted = [image, *(p for p in layer.parameters() if p.requires_grad)]
    return lambda: torch.autograd.grad(layer(image), wanted, grad)


def _report(benchmark, table, call, seconds: dict[str, list[float]], peer: str, layer: str) -> None:
    benchmark.extra_info.update({"layer": layer, "peer": peer, "seconds": seconds})
    table(benchmark.group, layer, peer, seconds["lorun"], seconds[peer], summed=True)
    benchmark.pedantic(call, rounds=3)


@pytest.mark.parametrize("in_channels, out_channels, size, kernel", LAYERS)
@pytest.mark.benchmark(group="lora_conv2d forward")
def test_forward_against_the_frozen_convolution(
    benchmark, interleaved, table, in_channels, out_channels, size, kernel
):
    image = torch.randn(1, in_channels, size, size).to(memory_format=torch.channels_last)
    layers = _layers(in_channels, out_channels, kernel)
    calls = {name: lambda layer=layers[name]: layer(image) for name in ("lorun", "plain")}
    with torch.no_grad():
        seconds = interleaved(calls, ROUNDS)
        name = f"{in_channels}->{out_channels} {kernel}x{kernel} @{size}"
        _report(benchmark, table, calls["lorun"], seconds, "plain", name)


@pytest.mark.parametrize("in_channels, out_channels, size, kernel", LAYERS)
@pytest.mark.benchmark(group="lora_conv2d forward+backward")
def test_forward_and_backward_against_loralib(
    benchmark, interleaved, table, in_channels, out_channels, size, kernel
):
    layout = torch.channels_last
    image = torch.randn(1, in_channels, size, size).to(memory_format=layout).requires_grad_()
    grad = torch.randn(1, out_channels, size, size).to(memory_format=layout)
    layers = _layers(in_channels, out_channels, kernel)
    calls = {name: _step(layers[name], image, grad) for name in ("lorun", "loralib")}
    seconds = interleaved(calls, ROUNDS)
    name = f"{in_channels}->{out_channels} {kernel}x{kernel} @{size}"
    _report(benchmark, table, calls["lorun"], seconds, "loralib", name)
