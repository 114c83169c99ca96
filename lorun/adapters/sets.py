"""Named sets of adapters on one base: adding, switching and disabling them in a running network."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from lorun.adapters.adapter_set import AdapterSet, LayerAdapter, adapters_are_finite
from lorun_kernels import (
    AdaptedWeight,
    adapted_weights,
    become_full_delta,
    factor_shapes,
    grow_rank,
    share_adapter,
    shared_groups,
    unwrapped,
)

ATTRIBUTE = "_lorun_adapter_sets"
DEFAULT = "default"


@dataclasses.dataclass(frozen=True)
class NamedSet:
    """Adapters, and what else of a network belongs to them.

    Attributes:
        adapters: by the full name of the weight that each adapts.
        own: parameters and buffers that are neither shared nor adapters, such as step sizes, biases, norms
            and their running statistics, by their names in the state dict.
    """

    adapters: AdapterSet
    own: Mapping[str, Tensor]


@dataclasses.dataclass
class _Sets:
    """The sets of a network. Of the active one, the network itself holds the values."""

    stored: dict[str, NamedSet]
    active: str | None
    # The ranks of the active set, which may be smaller than those of the network.
    ranks: dict[str, int | None]


def adapter_names(model: nn.Module) -> list[str]:
    """The names of a network's sets of adapters, the active one first."""
    sets = _sets(unwrapped(model))
    return [name for name in (sets.active,) if name is not None] + sorted(sets.stored)


def active_adapters(model: nn.Module) -> str | None:
    """The name of the set that a network computes with; None while its adapters are disabled."""
    return _sets(unwrapped(model)).active


@torch.no_grad()
def get_adapters(model: nn.Module) -> NamedSet:
    """Copies of the adapters that a network computes with, and of what belongs to them."""
    model = unwrapped(model)
    sets = _sets(model)
    return _held(sets, *_live(model))


@torch.no_grad()
def add_adapters(model: nn.Module, name: str, adapters: NamedSet | AdapterSet) -> None:
    """Give a network a further set of adapters under a name; `set_adapters` makes it the active one.

    A set may lack weights, for which it then adds nothing, and may have other ranks: the network's factors
    become as large as the largest, padded with zeros, or a full delta where a set has one. Where they change
    size, they are new Parameters: make optimisers afterwards, and a compiled network compiles once more.
    Adding to the active name replaces what the network computes with.

    Raises:
        ValueError: no name, adapters of weights that the network does not adapt, of other shapes or of
            another form, with NaN or Inf; or adapters that are merged.
    """
    model = unwrapped(model)
    given = adapters if isinstance(adapters, NamedSet) else NamedSet(adapters, {})
    _check(model, name, given)
    sets = _sets(model)
    _make_room(model, given.adapters)
    if name == sets.active:
        _put(sets, given, *_live(model))
    else:
        sets.stored[name] = NamedSet(dict(given.adapters), {n: t.clone() for n, t in given.own.items()})


@torch.no_grad()
def set_adapters(model: nn.Module, name: str) -> None:
    """Let a network compute with another of its sets of adapters, without a new compilation.

    The values move into the Parameters that the network has; those of the set that was active, trained
    meanwhile or not, are kept under its name. No call of the network may run at the same time.

    Raises:
        ValueError: no set of that name, or adapters that are merged.
    """
    model = unwrapped(model)
    sets = _sets(model)
    live = _live(model)
    _refuse_merged(live[0])
    if name == sets.active:
        return
    if name not in sets.stored:
        raise ValueError(f"name: no adapters are called {name!r}; expected one of {adapter_names(model)}")
    if sets.active is not None:
        sets.stored[sets.active] = _held(sets, *live)
    _put(sets, sets.stored.pop(name), *live)
    sets.active = name


@torch.no_grad()
def disable_adapters(model: nn.Module) -> AbstractContextManager[None]:
    """Let a network compute with its base alone, until another set is active or the context ends.

        with lorun.disable_adapters(model):
            x = model(y)

    Called without `with`, it stays so until `set_adapters`. What each stage keeps of its own, such as biases,
    remains that of the set that was active.

    Raises:
        ValueError: adapters that are merged.
    """
    model = unwrapped(model)
    sets = _sets(model)
    live = _live(model)
    _refuse_merged(live[0])
    before = sets.active
    if before is not None:
        sets.stored[before] = _held(sets, *live)
    sets.active = None
    for weight in live[0].values():
        weight.tensors[0].zero_()
    return _enabled_again(model, before)


@contextmanager
def _enabled_again(model: nn.Module, name: str | None) -> Iterator[None]:
    try:
        yield
    finally:
        if name is not None:
            set_adapters(model, name)


def delete_adapters(model: nn.Module, name: str) -> None:
    """Forget a set of adapters that is not active.

    Raises:
        ValueError: no set of that name, or the active one.
    """
    sets = _sets(unwrapped(model))
    if name == sets.active:
        raise ValueError(f"name: {name!r} is active; set other adapters, or disable them, first")
    if sets.stored.pop(name, None) is None:
        raise ValueError(f"name: no adapters are called {name!r}; expected one of {adapter_names(model)}")


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a network that are neither shared, nor a base, nor an adapter."""
    return _live(model)[1]


def _live(model: nn.Module) -> tuple[dict[str, AdaptedWeight], dict[str, Tensor]]:
    """The adapted weights of a network, and its own tensors, by name: a network is walked through once."""
    weights = adapted_weights(model)
    others = {id(w.base) for w in weights.values()} | {id(t) for w in weights.values() for t in w.tensors}
    others |= {id(shared.parameter) for shared in shared_groups(model)}
    own: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        buffers = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
        for name, tensor in (module._parameters | buffers).items():
            if tensor is not None and id(tensor) not in others:
                own[f"{path}.{name}".removeprefix(".")] = tensor
    return weights, own


def rank_of(adapter: LayerAdapter) -> int:
    """The rank of an adapter that has factors."""
    assert adapter.up is not None
    one, _ = factor_shapes(adapter.shape, adapter.form, 1, adapter.groups)
    return adapter.up.shape[1] // one[1]


def _sets(model: nn.Module) -> _Sets:
    sets = model.__dict__.get(ATTRIBUTE)
    if sets is None:
        if not adapted_weights(model):
            raise ValueError(
                "model: has no adapters; give its stages some with lorun.share_stages(model) or "
                "lorun.compress(model)"
            )
        sets = model.__dict__[ATTRIBUTE] = _Sets({}, DEFAULT, {})
    return sets


def _taken(weight: AdaptedWeight, rank: int | None) -> LayerAdapter:
    """A copy of what a weight's adapter holds, without the zeros beyond `rank`."""
    adapter, shape = weight.adapter, tuple(weight.base.shape)
    if weight.delta is not None:
        return LayerAdapter(
            shape, "full", delta=weight.delta.detach().clone(), scaling=adapter.scaling, groups=adapter.groups
        )
    assert weight.up is not None and weight.down is not None and rank is not None
    (_, inner), _ = factor_shapes(shape, adapter.form, rank, adapter.groups)
    return LayerAdapter(
        shape,
        adapter.form,
        weight.up[:, :inner].detach().clone(),
        weight.down[:inner].detach().clone(),
        scaling=adapter.scaling,
        groups=adapter.groups,
    )


def _held(sets: _Sets, weights: Mapping[str, AdaptedWeight], own: Mapping[str, Tensor]) -> NamedSet:
    """Copies of what the network holds of its active set."""
    adapters = {
        name: _taken(weight, sets.ranks.get(name, weight.adapter.rank)) for name, weight in weights.items()
    }
    return NamedSet(adapters, {name: value.detach().clone() for name, value in own.items()})


def _put(
    sets: _Sets, given: NamedSet, weights: Mapping[str, AdaptedWeight], own: Mapping[str, Tensor]
) -> None:
    """Copy a set into the Parameters of the network."""
    sets.ranks = {}
    for name, weight in weights.items():
        adapter = given.adapters.get(name)
        if adapter is None:
            weight.tensors[0].zero_()
            continue
        _copy(adapter, weight)
        sets.ranks[name] = None if adapter.up is None else rank_of(adapter)
    for name, value in given.own.items():
        own[name].copy_(value)


def _copy(adapter: LayerAdapter, weight: AdaptedWeight) -> None:
    # The network's scaling stays, as compiled code holds it.
    share = adapter.scaling / weight.adapter.scaling
    if weight.delta is not None:
        weight.delta.copy_(adapter.added().to(weight.delta) / weight.adapter.scaling)
        return
    assert adapter.up is not None and adapter.down is not None
    assert weight.up is not None and weight.down is not None
    inner = adapter.up.shape[1]
    weight.up[:, :inner].copy_(adapter.up * share if share != 1 else adapter.up)
    weight.up[:, inner:].zero_()
    weight.down[:inner].copy_(adapter.down)
    weight.down[inner:].zero_()


def _make_room(model: nn.Module, adapters: AdapterSet) -> None:
    """Let the network hold at least the ranks of a set, and its full deltas."""
    changed: dict[int, AdaptedWeight] = {}
    for name, weight in adapted_weights(model).items():
        adapter, before = adapters.get(name), id(weight.up)
        if before in changed:
            # Two modules that use one weight keep one adapter.
            first = changed[before]
            share_adapter(weight.module, weight.name, first.module, first.name)
        elif adapter is not None and weight.adapter.rank is not None:
            if adapter.up is None:
                become_full_delta(weight)
                changed[before] = weight
            elif rank_of(adapter) > weight.adapter.rank:
                grow_rank(weight, rank_of(adapter))
                changed[before] = weight


def _refuse_merged(weights: Mapping[str, AdaptedWeight]) -> None:
    if any(weight.is_merged for weight in weights.values()):
        raise ValueError("model: its adapters are merged; call lorun.unmerge(model) first")


def _check(model: nn.Module, name: str, given: NamedSet) -> None:
    weights, own = _live(model)
    _refuse_merged(weights)
    if not isinstance(name, str) or not name:
        raise ValueError(f"name: expected a name for the adapters, got {name!r}")
    if not adapters_are_finite(given.adapters):
        raise ValueError(f"adapters: {name!r} hold NaN or Inf; take adapters from before training diverged")
    for weight_name, adapter in given.adapters.items():
        if weight_name not in weights:
            raise ValueError(
                f"adapters: the network adapts no weight called {weight_name!r}; its weights are "
                f"{', '.join(list(weights)[:5])}, ..."
            )
        _check_fits(weight_name, adapter, weights[weight_name])
    for own_name, value in given.own.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"adapters: {own_name!r} holds NaN or Inf; take one from before it diverged")
        if own_name not in own or own[own_name].shape != value.shape:
            came = f"of shape {tuple(value.shape)}"
            raise ValueError(f"adapters: {own_name!r} {came} is no parameter of this network's stages")


def _check_fits(name: str, adapter: LayerAdapter, weight: AdaptedWeight) -> None:
    if adapter.shape != tuple(weight.base.shape):
        raise ValueError(
            f"adapters: {name} is of shape {tuple(weight.base.shape)} here, and its adapter is for "
            f"{adapter.shape}: they belong to another network"
        )
    own = weight.adapter
    low_rank = weight.delta is None and adapter.delta is None
    if low_rank and (adapter.form, adapter.groups) != (own.form, own.groups):
        raise ValueError(
            f"adapters: {name} has an adapter of form {own.form!r} here, got one of form "
            f"{adapter.form!r}; share the stages with that form"
        )
