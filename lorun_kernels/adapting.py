"""An adapter for any weight of any module, in place: it keeps its forward, its hooks and its names."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable
from typing import Any, cast

import torch
from torch import nn

from lorun_kernels.adapted import (
    KINDS,
    Adapted,
    AdaptedWeight,
    Adapter,
    choose_rank,
    merged_property,
    tensor_name,
)
from lorun_kernels.adapter_shapes import check_form, largest_rank, weight_channels
from lorun_kernels.conv_act import ConvAct
from lorun_kernels.lora_conv_layer import FusedLoRAConv2d
from lorun_kernels.lora_linear_layer import FusedLoRALinear
from lorun_kernels.recomputed_weights import recomputed_weights
from lorun_kernels.unwrap import unwrapped

FUSED = {nn.Conv2d: FusedLoRAConv2d, ConvAct: FusedLoRAConv2d, nn.Linear: FusedLoRALinear}
# What a fused layer would read as its own.
FUSED_ATTRIBUTES = {"form", "scaling", "rank", "rank_dropout"}
ACTIVATION_ATTRIBUTES = {"activation", "negative_slope"}


def add_adapter(
    module: nn.Module,
    name: str = "weight",
    *,
    rank: int | None = None,
    gamma: float = 10,
    form: str = "reshape",
    scaling: float = 1.0,
    rank_dropout: float = 0.0,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Give one weight of a module an adapter, in place, and return the module.

    An nn.Conv2d or :class:`ConvAct` becomes a :class:`FusedLoRAConv2d`, an nn.Linear a FusedLoRALinear.
    Any other module keeps the forward of its class: reading the weight gives base and adapter together from
    now on, whoever reads it. That covers transposed and other convolutions, nn.MultiheadAttention, Parameters
    that a module uses by itself, subclasses with a forward of their own, and the tensors behind
    `torch.nn.utils.parametrizations` (they are Parameters of ``module.parametrizations.weight``). The module
    stays the same object, under all of its names, with its hooks and attributes; it has the name of its
    class, and is an instance of it.

    Args:
        module: the module that owns the weight.
        name: of the weight, a Parameter of two or more dimensions of this module, not of its children.
        rank, gamma, form, scaling, rank_dropout: as :class:`FusedLoRAConv2d` takes them; any number of
            dimensions has both forms (:func:`lorun_kernels.matrix_shape`).
        dtype: of the adapter; None takes that of the weight. A frozen base in bfloat16 trains best with
            adapters in float32, whose small steps bfloat16 would lose.

    Raises:
        TypeError: a module or a Parameter that cannot be adapted, or is adapted already.
        ValueError: a rank, gamma, form or rank_dropout outside its range.
    """
    parameter = check_adaptable(module, name)
    if fuses(module, name):
        _become_fused(module, rank, gamma, form, scaling, rank_dropout)
    else:
        _adapt_anything(module, name, parameter, rank, gamma, form, scaling, rank_dropout)
    assert isinstance(module, Adapted)
    weight = AdaptedWeight(module, name, module.adapters()[name])
    for tensor in weight.tensors:
        tensor.data = tensor.data.to(dtype)
    return module


def _adapt_anything(
    module: nn.Module,
    name: str,
    parameter: nn.Parameter,
    rank: int | None,
    gamma: float,
    form: str,
    scaling: float,
    rank_dropout: float,
) -> None:
    check_form(form)
    shape, groups = tuple(parameter.shape), groups_of(module, name)
    largest = largest_rank(shape, form, groups)
    chosen = choose_rank(f"add_adapter({name})", *weight_channels(shape, groups), largest, rank, gamma)
    own_rank = None if form == "full" else chosen
    _become_adapted(module, name, Adapter(form, own_rank, scaling, groups, rank_dropout))


def check_adaptable(module: nn.Module, name: str) -> nn.Parameter:
    """The Parameter of that name; raises (TypeError) for one that can have no adapter."""
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(f"{kind} is compiled by TorchScript; adapt the module that it was made of")
    if isinstance(module, Adapted) and name in module.adapters():
        raise TypeError(f"{name} of {kind} has an adapter already")
    parameter = module._parameters.get(name)
    if parameter is None:
        raise TypeError(f"name: {kind} has no Parameter of its own that is called {name!r}")
    if isinstance(parameter, nn.UninitializedParameter):
        raise TypeError(f"{name} of {kind} has no values yet; call the module once, then adapt it")
    if not (parameter.is_floating_point() and parameter.dim() >= 2 and parameter.numel()):
        raise TypeError(
            f"{name} of {kind} must be of floating point and have two or more dimensions, none of them "
            f"empty, got {parameter.dtype} and {tuple(parameter.shape)}"
        )
    return parameter


def groups_of(module: nn.Module, name: str) -> int:
    """The groups of the convolution that a weight belongs to."""
    is_convolution = isinstance(module, nn.modules.conv._ConvNd) and name == "weight"
    return module.groups if is_convolution else 1  # type: ignore[return-value]


def fuses(module: nn.Module, name: str = "weight") -> bool:
    """Whether a fused layer computes exactly what this module does with its weight."""
    kind = type(module)
    if kind not in FUSED or name != "weight" or {"forward", "_conv_forward"} & module.__dict__.keys():
        return False
    foreign = FUSED_ATTRIBUTES | (set() if kind is ConvAct else ACTIVATION_ATTRIBUTES)
    return not foreign & module.__dict__.keys()


def _become_fused(module: Any, *adapter: Any) -> None:
    kind, before = type(module), set(module.__dict__)
    if kind is nn.Conv2d:
        module.activation, module.negative_slope = None, 0.01
    module.__class__ = FUSED[kind]
    module.__dict__["_plain_class"] = kind
    try:
        module._adapt(*adapter)
    except ValueError:
        module.__class__ = kind
        for name in module.__dict__.keys() - before:
            del module.__dict__[name]
        raise


def _become_adapted(module: nn.Module, name: str, adapter: Adapter) -> None:
    adapters = module.__dict__.get("_adapters", {}) | {name: adapter}
    kind = plain_class(module)
    module.__class__ = adapted_class(kind, tuple(adapters))
    module.__dict__["_adapters"] = adapters
    module._add_adapter(name, adapter)  # type: ignore[operator]


def share_adapter(module: nn.Module, name: str, other: nn.Module, other_name: str) -> None:
    """Let an adapted weight have the adapter of another, as two modules that use one weight must."""
    for kind in KINDS:
        module._parameters[tensor_name(kind, name)] = other._parameters[tensor_name(kind, other_name)]
    assert isinstance(module, Adapted) and isinstance(other, Adapted)
    module._set_rank(name, other.adapters()[other_name].rank)


def keep_no_merged_weight(module: nn.Module) -> None:
    """Let a call of a module keep no merged weight for backward, also where it reads one of a layer inside.

    A parent that uses a layer's weight for the transpose is a case; called layers keep none anyway.
    """
    if not isinstance(module, Adapted):
        module.__class__ = adapted_class(type(module), ())
        module.__dict__["_adapters"] = {}


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module had before it was adapted; its own, if it was not."""
    if isinstance(module, AnyAdapted):
        return module._plain
    return module.__dict__.get("_plain_class", type(module))


class AnyAdapted(Adapted):
    """A module of any class, some of whose weights are adapted; `add_adapter` makes its subclasses."""

    _plain: type[nn.Module]
    _adapters: dict[str, Adapter]

    def adapters(self) -> dict[str, Adapter]:
        return self._adapters

    def _set_rank(self, name: str, rank: int | None) -> None:
        before = self._adapters[name]
        form = "full" if rank is None else before.form
        self.__dict__["_adapters"] = self._adapters | {
            name: dataclasses.replace(before, rank=rank, form=form)
        }

    def __reduce_ex__(self, protocol: Any) -> tuple:
        # The class was made here and has no name to be found by.
        return _rebuilt, (self._plain, tuple(self._adapters)), self.__getstate__()

    def extra_repr(self) -> str:
        own = ", ".join(
            f"{name}: {'full delta' if adapter.rank is None else f'rank={adapter.rank}, {adapter.form}'}"
            for name, adapter in self._adapters.items()
        )
        before = super().extra_repr()
        return f"{before}, {own}" if before else own


def adapted_class(kind: type[nn.Module], names: tuple[str, ...]) -> type[AnyAdapted]:
    """The subclass of a class of modules in which reading these Parameters gives what is applied."""
    return _made_class(cast(Hashable, kind), names)


@functools.cache
def _made_class(kind: Any, names: tuple[str, ...]) -> type[AnyAdapted]:
    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with recomputed_weights():
            return kind.forward(self, *args, **kwargs)

    properties: dict[str, Any] = {name: merged_property(name) for name in names}
    if issubclass(kind, nn.RNNBase):
        properties["_flat_weights"] = _FLAT_WEIGHTS
    # As torch.fx sees the module of a class: torch's own modules are recorded as calls.
    own = {"_plain": kind, "__module__": kind.__module__, "forward": forward}
    return type(kind.__name__, (AnyAdapted, kind), own | properties)


def _flat_weights(module: Any) -> list[Any]:
    return [getattr(module, name, None) for name in module._flat_weights_names]


# torch's recurrent layers read their weights from a list that they made once.
_FLAT_WEIGHTS = property(_flat_weights, lambda module, weights: None)


def _rebuilt(kind: type[nn.Module], names: tuple[str, ...]) -> AnyAdapted:
    made = adapted_class(kind, names)
    return made.__new__(made)


def adapted_weights(model: nn.Module) -> dict[str, AdaptedWeight]:
    """Every adapted weight in a model, by its full name, such as ``stages.0.conv.weight``; each one once."""
    return {
        f"{path}.{weight.name}".removeprefix(".").replace("_orig_mod.", ""): weight
        for path, module in unwrapped(model).named_modules()
        if isinstance(module, Adapted)
        for weight in module.adapted_weights()
    }
