"""The base class of modules with adapted weights: the adapters, what they make, the state dict."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from lorun_kernels.adapter_shapes import check_form, factor_shapes
from lorun_kernels.recomputed_weights import remember
from lorun_kernels.sharing import ATTRIBUTE, check_shared, follow, leave

# torch.fx records calls of them: a Proxy has no dtype to decide by, and ranks are dropped anew in every call.
torch.fx.wrap("merge_parts")
torch.fx.wrap("drop_ranks")


@dataclass(frozen=True)
class Adapter:
    """How one weight is adapted.

    Attributes:
        form: "reshape" (Eq. 4 of arXiv 2602.18697), "factored", or "full": an additive weight.
        rank: of the factors; None in form "full".
        scaling: multiplies what the adapter adds.
        groups: of the convolution that uses the weight; the shapes of "reshape" depend on it.
        rank_dropout: the probability with which training leaves out each rank, in [0, 1).
    """

    form: str
    rank: int | None
    scaling: float = 1.0
    groups: int = 1
    rank_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_form(self.form)
        check_rank_dropout(self.rank_dropout)


@dataclass(frozen=True)
class AdaptedWeight:
    """One adapted weight of a module: its base, the tensors of its adapter, and what they make together."""

    module: Adapted
    name: str
    adapter: Adapter

    @property
    def base(self) -> nn.Parameter:
        """The weight before adaptation, which may be shared."""
        return cast(nn.Parameter, self.module._parameters[self.name])

    @property
    def up(self) -> nn.Parameter | None:
        return self.module._parameters[tensor_name("lora_up", self.name)]

    @property
    def down(self) -> nn.Parameter | None:
        return self.module._parameters[tensor_name("lora_down", self.name)]

    @property
    def delta(self) -> nn.Parameter | None:
        return self.module._parameters[tensor_name("lora_delta", self.name)]

    @property
    def tensors(self) -> tuple[nn.Parameter, ...]:
        """The adapter's own Parameters: up and down, or delta."""
        return tuple(t for t in (self.up, self.down, self.delta) if t is not None)

    @property
    def is_merged(self) -> bool:
        """Whether the module uses a merged weight that `lorun_kernels.merge` made."""
        return cache_name(self.name) in self.module._buffers

    def merged(self) -> Tensor:
        """The weight that the module applies, in the shape, dtype and layout of the base; differentiable."""
        return merge_parts(self.base, self.up, self.down, self.delta, self.adapter.scaling)


@torch.no_grad()
def grow_rank(weight: AdaptedWeight, rank: int) -> None:
    """Let factors have a larger rank, padded with zeros: new Parameters that add what the old ones did."""
    assert weight.up is not None and weight.down is not None
    adapter, shape = weight.adapter, tuple(weight.base.shape)
    shapes = factor_shapes(shape, adapter.form, rank, adapter.groups)
    for kind, old, new_shape in zip(KINDS, (weight.up, weight.down), shapes, strict=False):
        new = torch.zeros(new_shape, device=old.device, dtype=old.dtype)
        new[: old.shape[0], : old.shape[1]] = old
        name = tensor_name(kind, weight.name)
        weight.module._parameters[name] = nn.Parameter(new, requires_grad=old.requires_grad)
    weight.module._set_rank(weight.name, rank)


@torch.no_grad()
def become_full_delta(weight: AdaptedWeight) -> None:
    """Let factors be an additive weight, which can hold what any adapter adds: a new Parameter."""
    assert weight.up is not None and weight.down is not None
    delta = (weight.up @ weight.down).view(weight.base.shape)
    parameter = nn.Parameter(delta, requires_grad=weight.up.requires_grad)
    for kind, value in zip(KINDS, (None, None, parameter), strict=True):
        weight.module._parameters[tensor_name(kind, weight.name)] = value
    weight.module._set_rank(weight.name, None)


def tensor_name(kind: str, parameter: str) -> str:
    """The name of an adapter's tensor: `lora_up` for `weight`, `lora_up_D` for a parameter called `D`."""
    return kind if parameter == "weight" else f"{kind}_{parameter}"


KINDS = ("lora_up", "lora_down", "lora_delta")


def merge_parts(
    base: Tensor, up: Tensor | None, down: Tensor | None, delta: Tensor | None, scaling: float
) -> Tensor:
    """``base + scaling * (up @ down).view_as(base)``, or ``base + scaling * delta``.

    The result has the dtype of the base. Factors of a wider dtype multiply and add in theirs, and round once.
    """
    device = "cpu" if base.is_meta else base.device.type  # autocast knows no meta tensors
    with torch.autocast(device, enabled=False):
        if delta is not None:
            added = delta
        else:
            assert up is not None and down is not None
            added = (up @ down).view(base.shape)
        if scaling != 1.0:
            added = scaling * added
        # Dtypes that differ are promoted to the wider one by the sum.
        return (base + added).to(base.dtype)


class Adapted(nn.Module):
    """A module with weights that have an adapter beside them.

    Reading such a weight, as ``module.weight``, gives what the module applies: base and adapter together.
    `state_dict` and `parameters` hold the base under that name, and the adapter beside it.
    """

    def adapters(self) -> dict[str, Adapter]:
        """How each adapted weight of this module, itself and not of its children, is adapted."""
        raise NotImplementedError

    def _set_rank(self, name: str, rank: int | None) -> None:
        """Note the rank of a weight's factors; None for a full additive weight."""
        raise NotImplementedError

    def adapted_weights(self) -> list[AdaptedWeight]:
        """The adapted weights of this module."""
        return [AdaptedWeight(self, name, adapter) for name, adapter in self.adapters().items()]

    def _add_adapter(self, name: str, adapter: Adapter) -> None:
        """Add the Parameters of an adapter that adds nothing yet, on the base's device and in its dtype."""
        base = self._parameters[name]
        assert base is not None
        shapes: list[tuple[int, ...] | None] = [None, None, tuple(base.shape)]
        if adapter.rank is not None:
            shapes = [*factor_shapes(tuple(base.shape), adapter.form, adapter.rank, adapter.groups), None]
        for kind, shape in zip(KINDS, shapes, strict=True):
            tensor = (
                None
                if shape is None
                else nn.Parameter(torch.empty(shape, device=base.device, dtype=base.dtype))
            )
            self.register_parameter(tensor_name(kind, name), tensor)
        reset(AdaptedWeight(self, name, adapter))

    @torch.no_grad()
    def reset_adapter(self) -> None:
        """Start again: `lora_up` or `lora_delta` is zero, `lora_down` is N(0, 1 / its number of columns)."""
        for weight in self.adapted_weights():
            reset(weight)

    def _merged(self, name: str) -> Tensor:
        """The weight of that name that the module applies, which autograd need not keep."""
        cached = self._buffers.get(cache_name(name))
        if cached is not None:
            if self.training and torch.is_grad_enabled():
                raise RuntimeError(
                    f"{type(self).__name__}: its adapter is merged and does not train; call "
                    "lorun_kernels.unmerge(model) before training, or model.eval() before inference"
                )
            return cached
        check_shared_eagerly(self, name)
        adapter = self.adapters()[name]
        base = _parameter(self, name)
        if isinstance(base, Proxy):
            _name_base(base, self, name)
        up, down, delta = (_parameter(self, tensor_name(kind, name)) for kind in KINDS)
        if adapter.rank_dropout and self.training and up is not None:
            assert adapter.rank is not None
            up = drop_ranks(up, adapter.rank, adapter.rank_dropout)
        scaling = adapter.scaling
        merged = merge_parts(base, up, down, delta, scaling)
        recorded = isinstance(merged, Proxy) or torch.compiler.is_compiling()
        if torch.is_grad_enabled() and not recorded:
            parts = tuple(part for part in (base, up, down, delta) if part is not None)
            remember(merged, parts, lambda: merge_parts(base, up, down, delta, scaling))
        return merged

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("_is_replica") and isinstance(value, Tensor):
            # DataParallel gives its replicas plain tensors in place of Parameters.
            self._parameters[name] = value  # type: ignore[assignment]
            return
        # Who sets the weight means the weight that the module applies, as with torch's parametrizations.
        if isinstance(value, nn.Parameter) and name in self._own_weights():
            self._refuse_merged(f"{name}: cannot be set")
            leave(self, name)
            with torch.no_grad():
                added = self._merged(name) - cast(Tensor, self._parameters[name])
                if added.any():
                    value = nn.Parameter(value - added, requires_grad=value.requires_grad)
        super().__setattr__(name, value)

    def _own_weights(self) -> tuple[str, ...]:
        """The names of weights whose adapters are there; none while the module is being made or loaded."""
        parameters = self.__dict__.get("_parameters", {})
        if "lora_up" not in parameters and "_adapters" not in self.__dict__:
            return ()
        return () if self.__dict__.get("_loading") else tuple(self.adapters())

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, *args):
        # A file that does not hold the adapter, a plain layer's or a base's, leaves it as it is.
        self._refuse_merged(f"{prefix}weight: cannot be loaded")
        held = dict(state_dict)
        for weight in self.adapted_weights():
            names = [tensor_name(kind, weight.name) for kind in KINDS]
            if not any(prefix + name in held for name in names) and prefix + weight.name in held:
                held |= {
                    prefix + name: self._parameters[name]
                    for name in names
                    if self._parameters[name] is not None
                }
        self.__dict__["_loading"] = True
        try:
            super()._load_from_state_dict(held, prefix, local_metadata, strict, *args)
        finally:
            del self.__dict__["_loading"]

    def _refuse_merged(self, what: str) -> None:
        if any(cache_name(name) in self._buffers for name in self.adapters()):
            raise RuntimeError(
                f"{what} while the adapters are merged; call lorun_kernels.unmerge(model) first"
            )

    def _apply(self, fn: Callable, recurse: bool = True) -> Adapted:
        before = {name: self._parameters[name] for name in self.__dict__.get(ATTRIBUTE, {})}
        super()._apply(fn, recurse)
        for name, parameter in before.items():
            if parameter is not None:
                follow(self, name, parameter)
        return self


def _parameter(module: nn.Module, name: str) -> Any:
    # By nn.Module's own look-up, in which torch.fx puts a Proxy: a property may stand before the name.
    return nn.Module.__getattr__(module, name)


def _name_base(base: Proxy, module: nn.Module, name: str) -> None:
    """Let torch.fx's read of a weight read the base: the weight's own name reads as the merged one."""
    path = cast(Any, base.tracer).path_of_module(module)
    base.node.target = f"{path}.{base_attribute(name)}".removeprefix(".")


def recorded_call(module: nn.Module, input: Proxy, **images: Proxy | None) -> Any:
    """What torch.fx records of a layer that is called: the call itself, as of a layer of torch.nn."""
    path = cast(Any, input.tracer).path_of_module(module)
    if not path:
        raise TypeError(
            f"torch.fx records calls of a {type(module).__name__} and does not look inside; "
            "trace nn.Sequential(layer), or the network that holds it"
        )
    given = {name: image for name, image in images.items() if image is not None}
    return input.tracer.create_proxy("call_module", path, (input,), given)


def check_shared_eagerly(module: nn.Module, name: str) -> None:
    """`check_shared`, except in a compiler, which sees what was checked before, and in a replica."""
    if not torch.compiler.is_compiling() and "_is_replica" not in module.__dict__:
        check_shared(module, name)


def cache_name(name: str) -> str:
    """The buffer that holds the merged weight while the adapters are merged."""
    return f"_merged_{name}"


# Of the one weight that a layer has: each call asks for it.
MERGED_WEIGHT = cache_name("weight")


def base_attribute(name: str) -> str:
    """The attribute that is the base, where the weight's name reads as base and adapter together."""
    return f"_base_{name}"


@torch.no_grad()
def reset(weight: AdaptedWeight) -> None:
    """Let an adapter add nothing: up or delta is zero, down is Gaussian."""
    if weight.delta is not None:
        weight.delta.zero_()
        return
    assert weight.up is not None and weight.down is not None
    weight.up.zero_()
    weight.down.normal_(std=weight.down.shape[1] ** -0.5)


def drop_ranks(up: Tensor, rank: int, probability: float) -> Tensor:
    """`up` without some of its ranks, chosen anew in every call; the others make up for them."""
    kept = torch.rand(rank, device=up.device) >= probability
    mask = kept.repeat_interleave(up.shape[1] // rank).to(up.dtype) / (1 - probability)
    return up * mask


class MergedProperty(property):
    """The property of a merged weight; it gives its class another one for the base."""

    def __set_name__(self, owner: type, name: str) -> None:
        setattr(owner, base_attribute(name), property(lambda module: module._parameters[name]))


def merged_property(name: str) -> property:
    """The attribute through which a module's adapted weight of that name is read."""

    def get(self: Adapted) -> Tensor:
        if name not in self._own_weights():
            return _parameter(self, name)
        try:
            return self._merged(name)
        except AttributeError as error:
            # An AttributeError would make Python look for a Parameter of this name, and find the base.
            raise RuntimeError(f"{type(self).__name__}.{name} could not be merged: {error}") from error

    return MergedProperty(get, doc="The weight that the module applies: base and adapter together.")


def choose_rank(
    owner: str, in_channels: int, out_channels: int, largest: int, rank: int | None, gamma: float
) -> int:
    """`rank` if it is given, else that of Eq. 12, ceil(min(in, out) * gamma / 100), at most `largest`."""
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


def _eq12_rank(in_channels: int, out_channels: int, gamma: float) -> int:
    # In exact arithmetic: 30 channels at 10 % are 3, never 4.
    percent = Fraction(gamma).limit_denominator(10**6)
    return max(1, math.ceil(min(in_channels, out_channels) * percent / 100))


def check_rank_dropout(probability: float) -> None:
    """Refuse a probability outside [0, 1)."""
    if not 0 <= probability < 1:
        raise ValueError(f"rank_dropout must be a probability in [0, 1), got {probability}")
