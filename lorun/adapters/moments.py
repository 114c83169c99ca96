"""What the layers of a network see: the second moments of their input patches, from a few inputs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorun_kernels import ConvAct

# Layers whose input patches are known.
KNOWN = (nn.Conv2d, ConvAct, nn.Linear)


@torch.no_grad()
def input_moments(
    model: nn.Module, stages: Mapping[str, nn.Module], inputs: Iterable[Sequence[Any]]
) -> dict[str, Tensor]:
    """E[p p^T] over the patches p that each layer of each stage unfolds its input into.

    Args:
        stages: the stages of the model, by name.
        inputs: arguments of calls of the model, a tuple for each call; the model runs in evaluation mode.

    Returns:
        By the full name of a weight, (n, n) in float32 with n = prod(weight.shape[1:]), for nn.Conv2d,
        ConvAct and nn.Linear; of a grouped convolution, the mean over its groups.
    """
    sums: dict[str, tuple[Tensor, int]] = {}
    handles = [
        module.register_forward_pre_hook(_adding_to(sums, f"{stage}.{path}.weight".replace("..", ".")))
        for stage, root in stages.items()
        for path, module in root.named_modules()
        if type(module) in KNOWN
    ]
    training = model.training
    model.eval()
    try:
        for arguments in inputs:
            model(*arguments)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return {name: total / count for name, (total, count) in sums.items()}


def _adding_to(sums: dict[str, tuple[Tensor, int]], name: str) -> Any:
    def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        for rows in _patches(module, arguments):
            total, count = sums.get(name, (0, 0))
            sums[name] = (total + rows.T @ rows, count + len(rows))

    return hook


def _patches(module: nn.Module, arguments: tuple[Tensor, ...]) -> list[Tensor]:
    """The rows (m, n) that the weight's rows are multiplied with, for each group."""
    image = arguments[0].float()
    if isinstance(module, nn.Linear):
        return [image.reshape(-1, module.in_features)]
    assert isinstance(module, nn.Conv2d)
    if len(arguments) > 1 and arguments[1] is not None:
        image = torch.cat([image, arguments[1].float()], -3)
    image = image.unsqueeze(0) if image.dim() == 3 else image
    padding = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(image, padding, mode=mode)
    parts = padded.chunk(module.groups, 1)
    return [
        F.unfold(part, module.kernel_size, module.dilation, 0, module.stride).transpose(1, 2).flatten(0, 1)
        for part in parts
    ]
