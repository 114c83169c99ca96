"""What the adapted layers have in common: one weight, its rank, form and scaling as attributes."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn

from lorun_kernels.adapted import Adapted, Adapter, merged_property
from lorun_kernels.conv_act import ConvAct
from lorun_kernels.sharing import share_with

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


class AdaptedLayer(Adapted):
    """A layer whose weight, which it may share with others, has an adapter beside it.

    Attributes:
        weight: what the layer applies, base and adapter together, computed when it is read. Setting it sets
            the base such that the layer applies what was set.
        base_weight: the Parameter without the adapter.
        rank: of the adapter; None for a full additive weight.
        form: "reshape", "factored" or "full".
        scaling: multiplies what the adapter adds.
        rank_dropout: the probability with which training leaves out each rank.
    """

    bias: Tensor | None
    rank: int | None
    scaling: float
    form: str
    rank_dropout: float = 0.0
    lora_up: nn.Parameter | None
    lora_down: nn.Parameter | None
    lora_delta: nn.Parameter | None

    weight: Any = merged_property("weight")

    @property
    def base_weight(self) -> nn.Parameter:
        """The weight without its adapter: the Parameter that layers of other stages may share."""
        base = self._parameters["weight"]
        assert base is not None
        return base

    def adapters(self) -> dict[str, Adapter]:
        form = "full" if self.rank is None else self.form
        return {
            "weight": Adapter(form, self.rank, self.scaling, getattr(self, "groups", 1), self.rank_dropout)
        }

    def _set_rank(self, name: str, rank: int | None) -> None:
        self.rank = rank

    def _factors(self) -> tuple[nn.Parameter, nn.Parameter]:
        """`lora_up` and `lora_down` of a layer that has a rank."""
        assert self.lora_up is not None and self.lora_down is not None
        return self.lora_up, self.lora_down

    def merged_weight(self) -> Tensor:
        """The weight that the layer applies, in the shape, dtype and layout of `weight`.

        It is ``base_weight + scaling * (lora_up @ lora_down).view_as(base_weight)``, Eq. 4 of arXiv
        2602.18697, or ``base_weight + scaling * lora_delta``; differentiable in every tensor.
        """
        return self._merged("weight")

    def extra_repr(self) -> str:
        adapter = "full delta" if self.rank is None else f"rank={self.rank}"
        scaling = "" if self.scaling == 1.0 else f", scaling={self.scaling}"
        dropout = f", rank_dropout={self.rank_dropout}" if self.rank_dropout else ""
        return f"{super().extra_repr()}, {adapter}{scaling}{dropout}"


# The classes that a plain layer can have, subclasses first.
PLAIN = (ConvAct, nn.Conv2d, nn.Linear)

Layer = TypeVar("Layer", bound=AdaptedLayer)


def check_source(method: str, expected: str, source: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Refuse (TypeError) a layer that `method` cannot replace by one that computes the same.

    `kinds` are the classes of which the source must be one, or a subclass with the same forward.
    """
    name = type(source).__name__
    elsewhere = "; lorun_kernels.add_adapter(layer) adapts it in place"
    if not isinstance(source, kinds):
        raise TypeError(f"{method}: expected an {expected}, got {name}")
    if isinstance(source, Adapted):
        raise TypeError(f"{method}: {name} has an adapter already; adapt its base layer")
    if not isinstance(source._parameters.get("weight"), nn.Parameter):
        raise TypeError(f"{method}: the layer's weight is computed (parametrized or normed){elsewhere}")
    if isinstance(source._parameters["weight"], nn.UninitializedParameter):
        raise TypeError(f"{method}: {name} has no weight yet; call it once, then adapt it")
    if not computes_as(source, kinds):
        raise TypeError(f"{method}: {name} has a forward of its own, which would be lost{elsewhere}")
    if any(source.__dict__.get(hooks) for hooks in HOOKS):
        raise TypeError(f"{method}: the layer has hooks, which would be lost; remove them{elsewhere}")


def computes_as(source: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether a layer computes as one of these classes does, by what its class and itself define."""
    if {"forward", "_conv_forward"} & source.__dict__.keys():
        return False
    methods = ("forward", "_conv_forward", "__call__")
    return any(
        all(getattr(type(source), name, None) is getattr(kind, name, None) for name in methods)
        for kind in kinds
        if isinstance(source, kind)
    )


def share(layer: Layer, source: nn.Conv2d | nn.Linear, freeze: bool) -> Layer:
    """Give a layer that was built on the meta device the Parameters of `source` and a real adapter."""
    share_with(layer, "weight", source, "weight")
    layer.bias = source.bias
    layer.__dict__["_plain_class"] = next(kind for kind in PLAIN if isinstance(source, kind))
    layer._add_adapter("weight", layer.adapters()["weight"])
    if freeze:
        layer.base_weight.requires_grad_(False)
        if layer.bias is not None:
            layer.bias.requires_grad_(False)
    return layer.train(source.training)
