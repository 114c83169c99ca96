"""nn.Conv2d and nn.Linear with a low-rank adapter beside a weight that may be shared."""

from __future__ import annotations

import math
from fractions import Fraction
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorun_kernels import reference
from lorun_kernels._checks import check_input
from lorun_kernels.backends import lora_backend, uses_reference
from lorun_kernels.lora_conv import activation_name, check_images, resolve_padding_of_both
from lorun_kernels.lora_linear import lora_linear
from lorun_kernels.lora_merge import merge_lora

FORMS = ("reshape", "factored")


def _eq12_rank(in_channels: int, out_channels: int, gamma: float) -> int:
    """ceil(min(in, out) * gamma / 100), in exact arithmetic: 30 channels at 10 % are 3, never 4."""
    percent = Fraction(gamma).limit_denominator(10**6)
    return max(1, math.ceil(min(in_channels, out_channels) * percent / 100))


def _choose_rank(
    owner: str, in_channels: int, out_channels: int, largest: int, rank: int | None, gamma: float
) -> int:
    if rank is None:
        if not 0 < gamma <= 100:
            raise ValueError(f"{owner}: gamma must be a percentage in (0, 100], got {gamma}")
        return min(_eq12_rank(in_channels, out_channels, gamma), largest)
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= largest:
        raise ValueError(
            f"{owner}: rank must be an int between 1 and {largest} for this layer, got {rank!r}; "
            "choose a smaller rank, or leave it to gamma"
        )
    return rank


class _Adapted(nn.Module):
    """What the two layers share: the adapter's parameters, their start, and loading without them."""

    weight: nn.Parameter
    rank: int | None
    scaling: float
    form: str
    lora_up: nn.Parameter | None
    lora_down: nn.Parameter | None
    lora_delta: nn.Parameter | None

    # W as `StageWeights` has merged it for the running stage, or None: each call then merges it.
    stage_weight: Tensor | None = None

    def _add_adapter(self, up: tuple[int, int] | None, down: tuple[int, int] | None, like: Tensor) -> None:
        """Add an adapter of these shapes, or a full additive weight where they are None."""

        def parameter(shape: tuple[int, ...] | None) -> nn.Parameter | None:
            if shape is None:
                return None
            return nn.Parameter(torch.empty(shape, device=like.device, dtype=like.dtype))

        self.lora_up = parameter(up)
        self.lora_down = parameter(down)
        self.lora_delta = parameter(tuple(like.shape) if up is None else None)
        self.reset_adapter()

    def reset_adapter(self) -> None:
        """Start the adapter anew: a zero `lora_up` (or `lora_delta`) and a Gaussian `lora_down`."""
        with torch.no_grad():
            if self.lora_delta is not None:
                self.lora_delta.zero_()
                return
            self.lora_up.zero_()
            self.lora_down.normal_(std=self.lora_down.shape[1] ** -0.5)

    def merged_weight(self) -> Tensor:
        """The full weight W0 + scaling * (up @ down) that the layer applies, in the weight's layout."""
        if self.lora_delta is not None:
            return self.weight + self.scaling * self.lora_delta
        return merge_lora(self.weight, self.lora_up, self.lora_down, self.scaling, self.form)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # A plain layer's state dict means an adapter that adds nothing, not missing keys.
        names = [name for name in ("lora_up", "lora_down", "lora_delta") if getattr(self, name) is not None]
        if prefix + "weight" in state_dict and not any(prefix + name in state_dict for name in names):
            state_dict = dict(state_dict)
            for name in names:
                value = getattr(self, name).detach()
                state_dict[prefix + name] = value if name == "lora_down" else torch.zeros_like(value)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict:
        # A copy, or a file, is not of the stage that happens to run.
        return {name: value for name, value in self.__dict__.items() if name != "stage_weight"}

    def extra_repr(self) -> str:
        adapter = "full delta" if self.rank is None else f"rank={self.rank}"
        scaling = "" if self.scaling == 1.0 else f", scaling={self.scaling}"
        return f"{super().extra_repr()}, {adapter}{scaling}"


class FusedLoRAConv2d(_Adapted, nn.Conv2d):
    """`nn.Conv2d` with a low-rank adapter: ``W = weight + scaling * (lora_up @ lora_down)``, Eq. 4.

    Takes every argument of `nn.Conv2d`, has its parameter names, returns its memory format and equals it
    while `lora_up` is zero, which it is at the start. An `nn.Conv2d` state dict loads without renaming, also
    strictly: the adapter then adds nothing.

    Args:
        rank: the adapter's rank, 1 to ``min(out_channels/groups, in_channels)``; None takes it from `gamma`.
        gamma: a percentage in (0, 100]; the rank is then ``ceil(min(in_channels, out_channels)*gamma/100)``
            (Eq. 12 of arXiv 2602.18697), and at most the bound above.
        form: ``"reshape"`` (Eq. 4) or ``"factored"``; :func:`lorun_kernels.lora_conv2d` gives the shapes.
        scaling: any float; multiplies the product of the factors.
        activation: None, ``"relu"``, ``"gelu"`` or ``"leaky_relu"``, applied to the result; a residual that
            `forward` is given is added after it (:func:`lorun_kernels.lora_conv2d_act`).
        negative_slope: of the leaky ReLU.

    A grouped layer (a depthwise one, say) whose Eq. 4 adapter would be no smaller than its weight gets a full
    additive weight instead, `lora_delta`, zero at the start; `rank`, `lora_up` and `lora_down` are then None.
    Give a `rank` or ``form="factored"`` for a low-rank adapter there.

    Raises:
        ValueError: a rank, gamma or form outside these ranges, or what `nn.Conv2d` refuses.
    """

    # Also of layers that were pickled before there were these.
    activation: str | None = None
    negative_slope: float = 0.01

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rank: int | None = None,
        gamma: float = 10,
        form: str = "reshape",
        scaling: float = 1.0,
        activation: str | None = None,
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        if form not in FORMS:
            raise ValueError(f"FusedLoRAConv2d: form must be one of {FORMS}, got {form!r}")
        self.form = form
        self.scaling = scaling
        activation_name(activation)
        if not isinstance(negative_slope, Real):
            raise TypeError(f"FusedLoRAConv2d: negative_slope must be a number, got {negative_slope!r}")
        self.activation = activation
        self.negative_slope = negative_slope
        largest = min(out_channels // groups, in_channels)
        self.rank = _choose_rank("FusedLoRAConv2d", in_channels, out_channels, largest, rank, gamma)
        up, down = self._adapter_shapes()
        adapter_size = math.prod(up) + math.prod(down)
        if rank is None and form == "reshape" and groups > 1 and adapter_size >= self.weight.numel():
            self.rank = up = down = None
        self._add_adapter(up, down, self.weight)

    def _adapter_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        kh, kw = self.kernel_size
        if self.form == "factored":
            return (self.out_channels, self.rank), (self.rank, self.in_channels // self.groups * kh * kw)
        inner = self.rank * min(kh, kw)
        return (self.out_channels // self.groups * kh, inner), (inner, self.in_channels * kw)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv2d,
        *,
        rank: int | None = None,
        gamma: float = 10,
        form: str = "reshape",
        scaling: float = 1.0,
        activation: str | None = None,
        negative_slope: float = 0.01,
        freeze: bool = True,
    ) -> FusedLoRAConv2d:
        """Adapt `conv` without copying it: the result holds conv's own `weight` and `bias` Parameters.

        Several results of one `conv` therefore share it. An `activation` that conv names is its activation
        too, unless another is given. With ``freeze=True`` weight and bias stop
        requiring gradients, for all of them. The adapter starts at zero, on conv's device, in its dtype.

        Raises:
            TypeError: `conv` is not an `nn.Conv2d`, is adapted already, or computes its weight.
            ValueError: as for the constructor.
        """
        _check_source("from_conv", "nn.Conv2d", conv, nn.Conv2d)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device="meta",
            rank=rank,
            gamma=gamma,
            form=form,
            scaling=scaling,
            activation=getattr(conv, "activation", None) if activation is None else activation,
            negative_slope=negative_slope,
        )
        return _share(layer, conv, freeze)

    def extra_repr(self) -> str:
        activation = "" if self.activation is None else f", activation={self.activation!r}"
        return f"{super().extra_repr()}, form={self.form!r}{activation}"

    def forward(self, input: Tensor, input2: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """``activation(conv(cat([input, input2], 1))) + residual``; see `lorun_kernels.lora_conv2d_act`."""
        # nn.Conv2d has checked every argument but the images: a call needs no more Python than this.
        weight = self.weight
        check_input("lora_conv2d", input, weight)
        check_images(input2=input2, residual=residual)
        padding = self.padding
        if self.padding_mode != "zeros":
            input, input2 = self._pad(input), None if input2 is None else self._pad(input2)
            padding = (0, 0)
        if self.rank is None:
            return self._full_forward(input, padding, input2, residual)
        if isinstance(padding, str):
            input, input2, padding = resolve_padding_of_both(
                input, input2, weight, self.stride, padding, self.dilation
            )
        args = (
            input,
            weight,
            self.lora_up,
            self.lora_down,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            self.scaling,
            self.form,
        )
        if uses_reference():
            return reference.lora_conv2d_act(
                *args,
                activation=self.activation,
                negative_slope=self.negative_slope,
                residual=residual,
                input2=input2,
            )
        return torch.ops.lorun.lora_conv2d.default(
            *args,
            input2,
            residual,
            self.activation or "none",
            self.negative_slope,
            lora_backend(input, weight),
            self.stage_weight,
        )

    def _pad(self, image: Tensor) -> Tensor:
        return F.pad(image, self._reversed_padding_repeated_twice, mode=self.padding_mode)

    def _full_forward(self, input: Tensor, padding, input2: Tensor | None, residual: Tensor | None) -> Tensor:
        both = input if input2 is None else torch.cat([input, input2], -3)
        output = F.conv2d(
            both, self.merged_weight(), self.bias, self.stride, padding, self.dilation, self.groups
        )
        output = reference.activate(output, self.activation, self.negative_slope)
        if residual is None:
            return output
        if residual.shape != output.shape:
            raise ValueError(
                f"lora_conv2d: residual must have the output's shape, {list(output.shape)}, "
                f"got {list(residual.shape)}"
            )
        return output + residual


class FusedLoRALinear(_Adapted, nn.Linear):
    """`nn.Linear` with a low-rank adapter: ``W = weight + scaling * lora_up @ lora_down``.

    Takes every argument of `nn.Linear`, has its parameter names and equals it while `lora_up` is zero, which
    it is at the start. An `nn.Linear` state dict loads without renaming, also strictly.

    Args:
        rank: the adapter's rank, 1 to ``min(in_features, out_features)``; None takes it from `gamma`.
        gamma: a percentage in (0, 100]; the rank is then ``ceil(min(in_features, out_features)*gamma/100)``
            (Eq. 12 of arXiv 2602.18697).
        scaling: any float; multiplies the product of the factors.

    Raises:
        ValueError: a rank or gamma outside these ranges.
    """

    form = "reshape"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rank: int | None = None,
        gamma: float = 10,
        scaling: float = 1.0,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.scaling = scaling
        largest = min(in_features, out_features)
        self.rank = _choose_rank("FusedLoRALinear", in_features, out_features, largest, rank, gamma)
        self._add_adapter((out_features, self.rank), (self.rank, in_features), self.weight)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        rank: int | None = None,
        gamma: float = 10,
        scaling: float = 1.0,
        freeze: bool = True,
    ) -> FusedLoRALinear:
        """Adapt `linear` without copying it, as :meth:`FusedLoRAConv2d.from_conv` adapts a convolution.

        Raises:
            TypeError: `linear` is not an `nn.Linear`, is adapted already, or computes its weight.
            ValueError: as for the constructor.
        """
        _check_source("from_linear", "nn.Linear", linear, nn.Linear)
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            device="meta",
            rank=rank,
            gamma=gamma,
            scaling=scaling,
        )
        return _share(layer, linear, freeze)

    def forward(self, input: Tensor) -> Tensor:
        return lora_linear(input, self.weight, self.lora_up, self.lora_down, self.bias, self.scaling)


def _check_source(method: str, expected: str, source: nn.Module, kind: type[nn.Module]) -> None:
    if not isinstance(source, kind):
        raise TypeError(f"{method}: expected an {expected}, got {type(source).__name__}")
    if isinstance(source, _Adapted):
        raise TypeError(f"{method}: {type(source).__name__} has an adapter already; adapt its base layer")
    if not isinstance(source._parameters.get("weight"), nn.Parameter):
        raise TypeError(f"{method}: the layer's weight is computed (parametrized or normed); undo that first")


def _share(layer: _Adapted, source: nn.Module, freeze: bool) -> _Adapted:
    """Give a layer that was built on the meta device the source's Parameters and a real adapter."""
    layer.weight, layer.bias = source.weight, source.bias
    up, down = (
        None if factor is None else tuple(factor.shape) for factor in (layer.lora_up, layer.lora_down)
    )
    layer._add_adapter(up, down, source.weight)
    if freeze:
        layer.weight.requires_grad_(False)
        if layer.bias is not None:
            layer.bias.requires_grad_(False)
    return layer.train(source.training)
