"""Adapters of loralib and LyCORIS as ours, and back where they are the same; PEFT's are in peft_files.py."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorun.adapters.adapter_set import AdapterSet, LayerAdapter
from lorun.errors import ArgumentError
from lorun_kernels import largest_rank, matrix_shape

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# What follows the layer's name in the keys of a LyCORIS file: of LoCon, and how those of others begin.
_LOCON_PARTS = {"lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha", "diff"}
_OTHER_METHODS = {
    "dora_scale": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "diff_b": "a trained bias",
    "on_input": "IA3",
}


class ExchangeError(ValueError):
    """Factors or a file that cannot be converted; the message names the layer or the file, and what to do."""


@dataclass(frozen=True)
class Target:
    """A layer that can be adapted, as far as others' adapters depend on it.

    Attributes:
        shape: of its weight, ``(out, in)`` in an nn.Linear, ``(Cout, Cin/groups, kh, kw)`` in an nn.Conv2d.
        groups, dilation, padding_mode: of the nn.Conv2d.
    """

    shape: tuple[int, ...]
    groups: int = 1
    dilation: tuple[int, int] = (1, 1)
    padding_mode: str = "zeros"


# By the full name of the weight, such as "stages.0.conv.weight"; a file may adapt some of them only.
Targets = Mapping[str, Target]


def scaling_of(rank: int, alpha: float, rslora: bool = False) -> float:
    """What multiplies the product of the factors: alpha / rank, or alpha / sqrt(rank) (arXiv 2312.03732).

    Raises:
        ArgumentError: a rank below 1, or an alpha that is NaN or infinite.
    """
    if rank < 1:
        raise ArgumentError("rank", f"rank: expected at least 1, got {rank}; give the columns of lora_B")
    if not math.isfinite(alpha):
        raise ArgumentError("alpha", f"alpha: expected a finite number, got {alpha}; give lora_alpha")
    return alpha / (math.sqrt(rank) if rslora else rank)


def from_loralib(
    state: Mapping[str, Tensor], targets: Targets, alpha: float = 1.0, prefix: str = ""
) -> dict[str, LayerAdapter]:
    """The adapters in the state of a module with layers of loralib (0.1.2): Linear and Conv2d.

    ``LAYER.lora_A`` and ``LAYER.lora_B`` become the adapter of ``LAYER.weight``, in form "reshape", which is
    what loralib computes. Weights and biases are left out. A weight that `eval()` merged holds its adapter.

    Args:
        state: `module.state_dict()` or `loralib.lora_state_dict(module)`.
        targets: what the layers of the caller's model are.
        alpha: loralib's `lora_alpha`, which the state does not hold; the scaling is alpha / rank.
        prefix: what the names in `state` begin with and those in `targets` do not, such as "module.".

    Raises:
        ExchangeError: an unknown layer, another layer of loralib, factors that do not fit the weight or are
            not finite, or trained biases.
        ArgumentError: an alpha that is not finite.
    """
    _check_no_trained_bias(state)
    adapters = {}
    for layer, factors in by_layer(state, (".lora_A", ".lora_B"), prefix).items():
        name = f"{layer}.weight" if layer else "weight"
        target = find_target(name, targets, layer)
        down, up = both(factors, ".lora_A", ".lora_B", layer)
        _check_square(name, target.shape)
        _check_linear(name, target, up, down)
        adapters[name] = low_rank(name, target, "reshape", up, down, alpha)
    return adapters


def to_loralib(adapters: AdapterSet, alpha: float = 1.0, prefix: str = "") -> dict[str, Tensor]:
    """The state that `load_state_dict(..., strict=False)` takes into a module with layers of loralib.

    Args:
        adapters: in form "reshape", or of linear layers and 1x1 convolutions in any form with factors.
        alpha: the `lora_alpha` of loralib's layers. Where their scaling, alpha / rank, is not the adapter's,
            the quotient of both is in `lora_B`.
        prefix: goes in front of all names.

    Raises:
        ExchangeError: an adapter that loralib has no layer for, or one that is not finite.
        ArgumentError: an alpha that is 0 or not finite.
    """
    if alpha == 0:
        raise ArgumentError("alpha", "alpha: expected another number than 0, got 0; give lora_alpha")
    state = {}
    for name, adapter in adapters.items():
        layer = layer_of(name)
        up, down = _reshape_factors(name, adapter)
        inner = matrix_shape(adapter.shape, "reshape", adapter.groups)[2]
        ratio = adapter.scaling / scaling_of(down.shape[0] // inner, alpha)
        stem = f"{prefix}{layer}." if layer else prefix
        state[f"{stem}lora_A"] = down.detach().clone()
        state[f"{stem}lora_B"] = up.detach().clone() if ratio == 1 else up.detach() * ratio
        check_tensors(name, state[f"{stem}lora_B"])
    return state


def from_locon(
    source: str | Path | Mapping[str, Tensor], targets: Targets, prefix: str = "lora_unet_"
) -> dict[str, LayerAdapter]:
    """The adapters in a file of LyCORIS's LoCon, or of kohya's LoRA: both have the same keys.

    Taken as LyCORIS's `make_weight` takes them: ``up @ down * alpha / rank`` is added to the weight, where an
    absent alpha is the rank. With ``lora_mid`` (Tucker), ``einsum("ijkl,oi,jc->ockl", mid, up, down)`` takes
    the place of ``up @ down``: mid and down make the down of form "factored". ``diff`` is the added weight
    itself.

    Args:
        source: a .safetensors file, or what is in one.
        targets: what the layers of the caller's model are.
        prefix: what all keys begin with; then comes the layer's name with underscores for its dots.

    Raises:
        FileNotFoundError: no such file.
        ExchangeError: a damaged file, an unknown layer or one that could be several, another method than
            LoCon, or tensors that do not fit the weight or are not finite.
    """
    state = read_safetensors(source) if isinstance(source, str | Path) else source
    by_flat_name: dict[str, list[str]] = {}
    for name in targets:
        if name.endswith(".weight"):
            by_flat_name.setdefault(prefix + layer_of(name).replace(".", "_"), []).append(name)
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        flat_name, _, part = key.partition(".")
        layers.setdefault(flat_name, {})[part] = tensor
    adapters = {}
    for flat_name, parts in layers.items():
        names = by_flat_name.get(flat_name, [])
        if not names:
            raise ExchangeError(f"{flat_name}: no layer of the model has this name; {_some(by_flat_name)}")
        if len(names) > 1:
            raise ExchangeError(f"{flat_name}: could be {_few(names)}; rename these layers so that one fits")
        adapters[names[0]] = _locon_adapter(names[0], find_target(names[0], targets, flat_name), parts)
    return adapters


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        FileNotFoundError: no such file.
        ExchangeError: a file that is damaged or of another kind, such as a pickle.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of adapters")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, OSError, UnicodeDecodeError, ValueError) as error:
        raise ExchangeError(
            f"{path}: damaged, or not a safetensors file ({error}); fetch it again, or save it as safetensors"
        ) from error


def layer_of(name: str) -> str:
    """The layer that a weight is of: "stages.0.conv" for "stages.0.conv.weight", and "" for "weight".

    Raises:
        ExchangeError: a parameter of another name, which other libraries do not adapt.
    """
    if name != "weight" and not name.endswith(".weight"):
        raise ExchangeError(f"{name}: expected the name of a layer's weight; leave this adapter out")
    return name[: -len("weight")].removesuffix(".")


def find_target(name: str, targets: Targets, layer: str) -> Target:
    """The target of this name, with a weight of two or four dimensions.

    Raises:
        ExchangeError: none of this name, or one that is no linear layer or 2D convolution.
    """
    if name not in targets:
        raise ExchangeError(f"{layer}: no layer of the model has this name; {_some(targets)}")
    if len(targets[name].shape) not in (2, 4):
        raise ExchangeError(
            f"{name}: expected a weight of an nn.Linear or nn.Conv2d, got shape {targets[name].shape}; "
            "leave its adapter out"
        )
    return targets[name]


def low_rank(
    name: str, target: Target, form: str, up: Tensor, down: Tensor, alpha: float | None, rslora: bool = False
) -> LayerAdapter:
    """Factors of somebody else, checked and copied; the scaling is that of `scaling_of`, or 1 without alpha.

    Raises:
        ExchangeError: shapes or a rank that the form does not have for this weight, or values not finite.
        ArgumentError: an alpha that is not finite.
    """
    rows, columns, inner = matrix_shape(target.shape, form, target.groups)
    matrices = up.ndim == down.ndim == 2 and up.shape[1] == down.shape[0] and up.shape[1] % inner == 0
    if not matrices or (up.shape[0], down.shape[1]) != (rows, columns):
        raise ExchangeError(
            f"{name}: expected factors of shapes ({rows}, {inner} r) and ({inner} r, {columns}) for a weight "
            f"{target.shape}, got {tuple(up.shape)} and {tuple(down.shape)}; name the layer they are for"
        )
    rank, most = up.shape[1] // inner, largest_rank(target.shape, form, target.groups)
    if not 1 <= rank <= most:
        raise ExchangeError(f"{name}: expected a rank from 1 to {most}, got {rank}; reduce it by an SVD")
    check_tensors(name, up, down)
    up, down = (one.detach().clone(memory_format=torch.contiguous_format) for one in (up, down))
    scaling = 1.0 if alpha is None else scaling_of(rank, alpha, rslora)
    return LayerAdapter(tuple(target.shape), form, up=up, down=down, scaling=scaling, groups=target.groups)


def check_tensors(name: str, *tensors: Tensor) -> None:
    """Raise an ExchangeError for tensors that are not finite numbers of one floating-point type."""
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        raise ExchangeError(
            f"{name}: expected tensors of one floating-point type of 16 to 64 bits, got "
            f"{_few(sorted(map(str, dtypes)))}; convert them to float32"
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise ExchangeError(f"{name}: its adapter holds NaN or Inf; train or fetch it again")


def by_layer(
    state: Mapping[str, Tensor], endings: tuple[str, ...], prefix: str
) -> dict[str, dict[str, Tensor]]:
    """The tensors whose names have one of these endings, by layer and ending.

    Raises:
        ExchangeError: such a name that does not begin with the prefix.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        ending = next((one for one in endings if f".{key}".endswith(one)), None)
        if ending is None:
            continue
        if not key.startswith(prefix):
            raise ExchangeError(f"{key}: expected a name that begins with {prefix!r}; give its prefix")
        layer = f".{key.removeprefix(prefix)}"[1 : -len(ending)]
        layers.setdefault(layer, {})[ending] = tensor
    return layers


def both(factors: Mapping[str, Tensor], first: str, second: str, layer: str) -> tuple[Tensor, Tensor]:
    """The two factors of a layer; an ExchangeError if one is missing."""
    for one in (first, second):
        if one not in factors:
            raise ExchangeError(f"{layer}: lacks {one.removeprefix('.')!r}; save both factors of the layer")
    return factors[first], factors[second]


def _check_no_trained_bias(state: Mapping[str, Tensor]) -> None:
    """`loralib.lora_state_dict` gives no weights, and biases only if they were trained with the adapters."""
    biases = [key for key in state if key.endswith("bias")]
    if biases and not any(key.endswith("weight") for key in state):
        raise ExchangeError(
            f"{biases[0]}: a trained bias, which is no part of an adapter here; copy it into the model "
            'yourself, and give the state of lora_state_dict(..., bias="none")'
        )


def _check_square(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) == 4 and shape[2] != shape[3]:
        raise ExchangeError(
            f"{name}: expected a square kernel, as all of loralib's are, got {shape[2]}x{shape[3]}; "
            "add the adapter to the weight instead"
        )


def _check_linear(name: str, target: Target, up: Tensor, down: Tensor) -> None:
    """loralib's Embedding, MergedLinear and fan_in_fan_out give these names to factors of other products."""
    shape, product = target.shape, (*up.shape[:1], *down.shape[1:])
    if len(shape) != 2 or (product == shape and up.shape[1:] == down.shape[:1]):
        return
    advice = "if they are a MergedLinear's, call eval() on it and load its weight, which is then merged"
    if product == shape[::-1]:
        advice = (
            "they are the transposed weight's, as an Embedding's and those of fan_in_fan_out are: give "
            "lora_A.T as lora_B and lora_B.T as lora_A"
        )
    raise ExchangeError(
        f"{name}: expected lora_B (out, r) and lora_A (r, in) for a weight {shape}, got {tuple(up.shape)} "
        f"and {tuple(down.shape)}; {advice}"
    )


def _reshape_factors(name: str, adapter: LayerAdapter) -> tuple[Tensor, Tensor]:
    """The factors of an adapter whose matrix is that of form "reshape"."""
    shape, groups = adapter.shape, adapter.groups
    if adapter.up is None or adapter.down is None:
        raise ExchangeError(
            f'{name}: form "full" has no factors, and loralib needs some; add it to the weight instead'
        )
    if len(shape) not in (2, 4):
        raise ExchangeError(f"{name}: loralib has no layer for a weight {shape}; leave its adapter out")
    _check_square(name, shape)
    if matrix_shape(shape, adapter.form, groups) != matrix_shape(shape, "reshape", groups):
        raise ExchangeError(
            f'{name}: expected form "reshape", as in loralib\'s Conv2d, got {adapter.form!r}; add it to the '
            'weight instead, or train with form="reshape"'
        )
    low_rank(name, Target(shape, groups), "reshape", adapter.up, adapter.down, None)
    return adapter.up, adapter.down


def _locon_adapter(name: str, target: Target, parts: Mapping[str, Tensor]) -> LayerAdapter:
    for part in sorted(set(parts) - _LOCON_PARTS):
        method = next((of for start, of in _OTHER_METHODS.items() if part.startswith(start)), "unknown")
        raise ExchangeError(
            f"{name}: holds {part!r} ({method}), which is not LoCon; merge the adapter where it was made"
        )
    if "diff" in parts:
        return _full_adapter(name, target, parts)
    down, up = both(parts, "lora_down.weight", "lora_up.weight", name)
    if "lora_mid.weight" in parts:
        mid = parts["lora_mid.weight"]
        check_tensors(name, up, mid, down)
        down = _with_middle(name, mid, down)
        up = up.to(down.dtype)
    if up.ndim < 2 or _trimmed(up.shape[2:]) or _trimmed(down.shape[1:]) != _trimmed(target.shape[1:]):
        raise ExchangeError(
            f"{name}: expected lora_up (out, r, 1, 1), and lora_down (r, ...) that ends as its weight "
            f"{target.shape} does, got {tuple(up.shape)} and {tuple(down.shape)}; name the layer they are for"
        )
    return low_rank(name, target, "factored", up.flatten(1), down.flatten(1), _alpha(name, parts))


def _full_adapter(name: str, target: Target, parts: Mapping[str, Tensor]) -> LayerAdapter:
    delta = parts["diff"]
    if len(parts) > 1 or tuple(delta.shape) != target.shape:
        raise ExchangeError(
            f"{name}: expected 'diff' alone, in the weight's shape {target.shape}, got {_few(sorted(parts))} "
            f"with shape {tuple(delta.shape)}; name the layer it is for"
        )
    check_tensors(name, delta)
    return LayerAdapter(tuple(target.shape), "full", delta=delta.detach().clone(), groups=target.groups)


def _with_middle(name: str, mid: Tensor, down: Tensor) -> Tensor:
    """A Tucker adapter's mid (r, r, kh, kw) on its down (r, Cin, 1, 1), as one down (r, Cin, kh, kw)."""
    if down.ndim != 4 or down.shape[2:] != (1, 1) or mid.ndim != 4 or {*mid.shape[:2]} != {down.shape[0]}:
        raise ExchangeError(
            f"{name}: expected lora_mid (r, r, kh, kw) and lora_down (r, in, 1, 1), got {tuple(mid.shape)} "
            f"and {tuple(down.shape)}; fetch the file again"
        )
    exact = torch.promote_types(down.dtype, torch.float32)
    return torch.einsum("ijkl,jc->ickl", mid.to(exact), down[:, :, 0, 0].to(exact))


def _alpha(name: str, parts: Mapping[str, Tensor]) -> float | None:
    """LyCORIS takes an alpha of 0 as the rank, other readers as 0: it is refused."""
    if "alpha" not in parts:
        return None
    alpha = float(parts["alpha"]) if parts["alpha"].numel() == 1 else math.nan
    if not math.isfinite(alpha) or alpha == 0:
        raise ExchangeError(
            f"{name}: expected one finite alpha other than 0, got {alpha}; write the number it is"
        )
    return alpha


def _trimmed(sizes: Iterable[int]) -> tuple[int, ...]:
    """Without the ones at the end, which a 1x1 convolution has and a linear layer does not."""
    left = list(sizes)
    while left and left[-1] == 1:
        left.pop()
    return tuple(left)


def _some(names: Iterable[str]) -> str:
    known = list(names)
    return f"it has {_few(known)}; check the prefix" if known else "the targets are empty; list its layers"


def _few(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(repr(name) for name in shown[:3]) + (", ..." if len(shown) > 3 else "")
