"""Every op in plain PyTorch: the definition that the backends are tested against.

Shapes and meanings are those of the public functions of the same names. Nothing is checked here, and autograd
differentiates these functions any number of times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Step = int | Sequence[int] | Tensor


def merge_lora(
    weight: Tensor, lora_up: Tensor, lora_down: Tensor, scaling: float = 1.0, form: str = "reshape"
) -> Tensor:
    """W = W0 + scaling * (up @ down).view_as(W0): Eq. 4, and the same line in the factored form."""
    del form  # it decides the shapes of up and down, and these decide the rest
    return weight + scaling * (lora_up @ lora_down).view(weight.shape)


def lora_conv2d(
    input: Tensor,
    weight: Tensor,
    lora_up: Tensor,
    lora_down: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    scaling: float = 1.0,
    form: str = "reshape",
) -> Tensor:
    merged = merge_lora(weight, lora_up, lora_down, scaling, form)
    return F.conv2d(input, merged, bias, stride, padding, dilation, groups)


def activate(z: Tensor, activation: str | None, negative_slope: float = 0.01) -> Tensor:
    if activation is None:
        return z
    if activation == "leaky_relu":
        return F.leaky_relu(z, negative_slope)
    return F.gelu(z) if activation == "gelu" else F.relu(z)


def lora_conv2d_act(
    input: Tensor,
    *args: Any,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    input2: Tensor | None = None,
) -> Tensor:
    both = input if input2 is None else torch.cat([input, input2], -3)
    output = activate(lora_conv2d(both, *args), activation, negative_slope)
    return output if residual is None else output + residual


def lora_linear(
    input: Tensor,
    weight: Tensor,
    lora_up: Tensor,
    lora_down: Tensor,
    bias: Tensor | None = None,
    scaling: float = 1.0,
) -> Tensor:
    return F.linear(input, merge_lora(weight, lora_up, lora_down, scaling), bias)


def band_offsets(step: Step, bands: int) -> list[int]:
    """The number of columns by which each band is shifted to the right."""
    if isinstance(step, int):
        return [step * band for band in range(bands)]
    return step.tolist() if isinstance(step, Tensor) else list(step)


def _columns(offsets: Sequence[int], width: int, device: torch.device) -> Tensor:
    """The column of the measurement in which each pixel of a band is: (C, 1, W)."""
    starts = torch.tensor(offsets, device=device)
    return starts[:, None, None] + torch.arange(width, device=device)


def shift(x: Tensor, step: Step = 2) -> Tensor:
    """Move band c of (..., C, H, W) to the right by its offset, into zeros: (..., C, H, W')."""
    offsets = band_offsets(step, x.shape[-3])
    index = _columns(offsets, x.shape[-1], x.device).expand(x.shape)
    return x.new_zeros([*x.shape[:-1], x.shape[-1] + max(offsets)]).scatter(-1, index, x)


def unshift(y: Tensor, step: Step = 2) -> Tensor:
    """Undo `shift`: the W columns of each band of (..., C, H, W') that start at its offset."""
    offsets = band_offsets(step, y.shape[-3])
    width = y.shape[-1] - max(offsets)
    return y.gather(-1, _columns(offsets, width, y.device).expand([*y.shape[:-1], width]))


def cassi_forward(x: Tensor, mask: Tensor, step: Step = 2) -> Tensor:
    return shift(mask * x, step).sum(-3)


def cassi_adjoint(y: Tensor, mask: Tensor, bands: int, step: Step = 2) -> Tensor:
    return mask * unshift(y.unsqueeze(-3).expand(*y.shape[:-2], bands, *y.shape[-2:]), step)


def cassi_gram(mask: Tensor, bands: int, step: Step = 2) -> Tensor:
    squares = mask.square()
    if mask.dim() == 2:
        squares = squares.expand(bands, *mask.shape)
    return shift(squares, step).sum(-3)


def _per_sample(value: float | Tensor, like: Tensor) -> Tensor:
    value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return value.reshape(-1, 1, 1)


def cassi_pgd_step(x: Tensor, y: Tensor, mask: Tensor, rho: float | Tensor, step: Step = 2) -> Tensor:
    """Eq. 5: x - rho * Phi^T (Phi x - y)."""
    residual = cassi_forward(x, mask, step) - y
    return x - cassi_adjoint(_per_sample(rho, y) * residual, mask, x.shape[-3], step)


def cassi_hqs_step(w: Tensor, y: Tensor, mask: Tensor, mu: float | Tensor, step: Step = 2) -> Tensor:
    """Eq. 9: (Phi^T Phi + mu I)^-1 (Phi^T y + mu w) = w + Phi^T (Phi Phi^T + mu I)^-1 (y - Phi w).

    A measured pixel that no open mask element reaches says nothing, and is left out.
    """
    gram = cassi_gram(mask, w.shape[-3], step)
    measured = gram > 0
    weight = torch.where(measured, 1 / torch.where(measured, gram + _per_sample(mu, gram), 1), 0)
    residual = y - cassi_forward(w, mask, step)
    return w + cassi_adjoint(weight * residual, mask, w.shape[-3], step)
