"""Adapters of PEFT as ours, and ours as PEFT's: adapter_config.json and adapter_model.safetensors."""

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from lorun.adapters.adapter_set import AdapterSet, LayerAdapter
from lorun.adapters.exchange import (
    ExchangeError,
    Target,
    Targets,
    both,
    by_layer,
    check_tensors,
    find_target,
    layer_of,
    low_rank,
    read_safetensors,
    scaling_of,
)
from lorun.errors import ArgumentError
from lorun.files import inside, write_in_one_step
from lorun_kernels import matrix_shape

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
ENDINGS = (".lora_A.weight", ".lora_B.weight")

# Settings of PEFT's LoraConfig that change what is computed, and the values with which they do not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # The others, such as "pissa", also change the weights that are adapted.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
} | dict.fromkeys(
    (
        "use_dora", "fan_in_fan_out", "lora_bias", "modules_to_save", "use_qalora", "target_parameters",
        "trainable_token_indices", "layer_replication", "alora_invocation_tokens", "use_bdlora",
        "arrow_config", "kasa_config", "monteclora_config",
    ),
    (None, False, [], {}),
)  # fmt: skip


def from_peft(
    directory: str | Path, targets: Targets, subfolder: str = "", prefix: str = PREFIX
) -> dict[str, LayerAdapter]:
    """The adapters that `PeftModel.save_pretrained` wrote into a directory, in form "factored".

    Args:
        directory: with adapter_config.json and adapter_model.safetensors. Links out of it are refused.
        targets: what the layers of the caller's model are.
        subfolder: inside `directory`, where PEFT saves adapters of another name than "default".
        prefix: what PEFT's names begin with and those in `targets` do not.

    Raises:
        FileNotFoundError: one of the files is not there.
        ValueError: a name or link out of the directory.
        ExchangeError: a damaged file, or what `from_peft_state` refuses.
    """
    config_path = inside(directory, f"{subfolder}/{CONFIG_NAME}" if subfolder else CONFIG_NAME)
    weights_path = inside(directory, f"{subfolder}/{WEIGHTS_NAME}" if subfolder else WEIGHTS_NAME)
    if not weights_path.is_file() and weights_path.with_name("adapter_model.bin").is_file():
        raise ExchangeError(f"{weights_path.parent}: holds a pickle; save it as safetensors")
    return from_peft_state(read_safetensors(weights_path), _read_config(config_path), targets, prefix)


def from_peft_state(
    state: Mapping[str, Tensor], config: Mapping[str, Any], targets: Targets, prefix: str = PREFIX
) -> dict[str, LayerAdapter]:
    """The adapters in `peft.get_peft_model_state_dict(model)`, in form "factored".

    PEFT's adapter of a convolution is one of the same kernel, stride and padding to r channels, and a 1x1
    convolution after it. It has no dilation, pads with zeros, and has other groups than the layer. So it adds
    something to the layer's weight only where the layer has dilation 1, zero padding and one group.

    Args:
        config: LoraConfig's fields; of those that are absent, r and lora_alpha must not be.

    Raises:
        ExchangeError: settings that change what is computed, such as DoRA; tensors other than lora_A and
            lora_B; an unknown layer, or one whose adapter adds nothing to its weight; ranks that are not the
            config's; factors that do not fit the weight or are not finite.
    """
    for setting, values in _PLAIN.items():
        if setting in config and config[setting] not in values:
            raise ExchangeError(
                f"{setting}: expected {values[0]!r} in PEFT's config, got {config[setting]!r}, which is not "
                "supported; call merge_and_unload() of peft, and load the merged weights"
            )
    for key in state:
        if not key.endswith(ENDINGS):
            raise ExchangeError(
                f"{key}: expected a name that ends in {' or '.join(ENDINGS)}; call merge_and_unload() of "
                "peft, and load the merged weights"
            )
    adapters = {}
    for layer, factors in by_layer(state, ENDINGS, prefix).items():
        name = f"{layer}.weight"
        target = find_target(name, targets, layer)
        _check_same_convolution(name, target)
        down, up = both(factors, *ENDINGS, layer)
        rank = _setting(config, "r", "rank_pattern", layer)
        if down.shape[:1] != (rank,):
            raise ExchangeError(
                f"{layer}: expected rank {rank} as in PEFT's config, got lora_A {tuple(down.shape)}; fetch "
                "both files again"
            )
        if up.ndim != len(target.shape) or down.shape[1:] != target.shape[1:] or up.shape[2:].numel() != 1:
            raise ExchangeError(
                f"{layer}: expected lora_A (r, in[, kh, kw]) and lora_B (out, r[, 1, 1]) for a weight "
                f"{target.shape}, got {tuple(down.shape)} and {tuple(up.shape)}; name the layer they are for"
            )
        alpha = _setting(config, "lora_alpha", "alpha_pattern", layer)
        rslora = bool(config.get("use_rslora", False))
        adapters[name] = low_rank(name, target, "factored", up.flatten(1), down.flatten(1), alpha, rslora)
    return adapters


def to_peft(
    adapters: AdapterSet,
    directory: str | Path,
    targets: Targets,
    rank: int | None = None,
    rslora: bool = False,
    tolerance: float = 1e-6,
) -> dict[str, float]:
    """Write adapter_config.json and adapter_model.safetensors, for `peft.PeftModel.from_pretrained`.

    Form "factored" and linear layers are written as they are. Other forms become the factored one: the
    singular value decomposition of the added weight, as a matrix (Cout, Cin*kh*kw), is cut off at a rank.

    Args:
        directory: made if it is not there.
        targets: what the layers of the caller's model are.
        rank: at which to cut off, where the layer's matrix has as many; None for the smallest one that is
            within `tolerance`.
        rslora: write ranks and alphas so that the scaling is alpha / sqrt(rank).
        tolerance: in [0, 1), the relative error of the added weight that None allows, in the Frobenius norm.

    Returns:
        For each adapter the relative error of what was written, in the Frobenius norm.

    Raises:
        ExchangeError: no adapters, or one of a layer that PEFT would adapt otherwise, or of another shape
            than its target, or that is not finite.
        ValueError: a file of the directory that is a link out of it.
        ArgumentError: a rank below 1, or a tolerance outside its range.
        OSError: a directory that cannot be written to; the old files stay.
    """
    _check_cut(rank, tolerance)
    if not adapters:
        raise ExchangeError("adapters: expected at least one, got none; PEFT loads no empty files")
    state: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    errors: dict[str, float] = {}
    for name, adapter in adapters.items():
        layer = layer_of(name)
        target = find_target(name, targets, layer)
        _check_written(name, layer, adapter, target)
        up, down, scaling = _factored(name, adapter, target, rank, tolerance)
        errors[name] = _relative_error(up, down, scaling, adapter)
        ranks[layer] = up.shape[1]
        alphas[layer] = scaling / scaling_of(up.shape[1], 1.0, rslora)
        ones = (1,) * (len(target.shape) - 2)
        state[f"{PREFIX}{layer}.lora_A.weight"] = down.reshape(-1, *target.shape[1:]).contiguous()
        state[f"{PREFIX}{layer}.lora_B.weight"] = up.reshape(*up.shape, *ones).contiguous()
    _write(Path(directory), state, _config(ranks, alphas, rslora))
    return errors


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; name a directory that peft's save_pretrained wrote")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ExchangeError(f"{path}: damaged, or no JSON ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise ExchangeError(f"{path}: expected a JSON object, got {type(config).__name__}; fetch it again")
    return config


def _setting(config: Mapping[str, Any], setting: str, patterns: str, layer: str) -> Any:
    """The rank or alpha of a layer: of the first pattern that is the end of its name, as PEFT reads them."""
    value: Any = config.get(setting)
    own_values = config.get(patterns) or {}
    if not isinstance(own_values, Mapping):
        raise ExchangeError(f"{patterns}: expected a JSON object, got {own_values!r}; fetch the config again")
    for pattern, own_value in own_values.items():
        if _pattern(patterns, pattern).match(layer):
            value = own_value
            break
    kind, types = ("a whole", (int,)) if setting == "r" else ("a finite", (int, float))
    if type(value) not in types or not abs(value) <= sys.float_info.max:
        raise ExchangeError(
            f"{layer}: expected {kind} number as {setting}, got {value!r}; fetch the config again"
        )
    return value


def _pattern(patterns: str, pattern: str) -> re.Pattern[str]:
    """PEFT's regular expression; one that a file could make us match for hours is refused."""
    repeats = len(re.findall(r"(?<!\\)[*+?{]", pattern))
    if repeats > 2 or re.search(r"\)[*+?{]", pattern):
        raise ExchangeError(f"{patterns}: {pattern!r} repeats too much; write the names of the layers")
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise ExchangeError(f"{patterns}: {pattern!r} is no pattern ({error}); write names") from error


def _check_same_convolution(name: str, target: Target) -> None:
    """Raise for a layer whose adapter in PEFT is nothing that is added to its weight."""
    if len(target.shape) != 4:
        return
    wrong = []
    if target.groups != 1:
        wrong.append(f"groups={target.groups}")
    if target.dilation != (1, 1) and target.shape[2:] != (1, 1):
        wrong.append(f"dilation={target.dilation}")
    if target.padding_mode != "zeros":
        wrong.append(f"padding_mode={target.padding_mode!r}")
    if wrong:
        raise ExchangeError(
            f"{name}: expected a convolution with groups=1, dilation=(1, 1) and padding_mode='zeros', as in "
            f"PEFT's adapter, got {', '.join(wrong)}; leave its adapter out"
        )


def _check_cut(rank: int | None, tolerance: float) -> None:
    if rank is not None and rank < 1:
        raise ArgumentError("rank", f"rank: expected at least 1, got {rank}; None finds the smallest")
    if not 0 <= tolerance < 1:
        raise ArgumentError("tolerance", f"tolerance: expected 0 to below 1, got {tolerance}; try 1e-6")


def _check_written(name: str, layer: str, adapter: LayerAdapter, target: Target) -> None:
    if not layer:
        raise ExchangeError(f"{name}: PEFT adapts no model that is one layer; wrap it in an nn.Sequential")
    if tuple(adapter.shape) != tuple(target.shape) or adapter.groups != target.groups:
        raise ExchangeError(
            f"{name}: expected an adapter of a weight {target.shape} with groups={target.groups}, got one of "
            f"{adapter.shape} with groups={adapter.groups}; list the layers of its model"
        )
    _check_same_convolution(name, target)
    if not math.isfinite(adapter.scaling):
        raise ExchangeError(f"{name}: expected a finite scaling, got {adapter.scaling}; train it again")


def _factored(
    name: str, adapter: LayerAdapter, target: Target, rank: int | None, tolerance: float
) -> tuple[Tensor, Tensor, float]:
    """Factors of the added weight's matrix (out, rest), and what multiplies their product."""
    if adapter.up is None or adapter.down is None:
        if adapter.delta is None or tuple(adapter.delta.shape) != tuple(target.shape):
            raise ExchangeError(f"{name}: expected factors, or a delta {target.shape}; export it again")
        check_tensors(name, adapter.delta)
        return *_cut(_matrix(adapter), rank, tolerance), 1.0
    low_rank(name, target, adapter.form, adapter.up, adapter.down, None)
    if matrix_shape(adapter.shape, adapter.form) == matrix_shape(adapter.shape, "factored"):
        return adapter.up.detach(), adapter.down.detach(), adapter.scaling
    return *_cut(_matrix(adapter), rank, tolerance), 1.0


def _matrix(adapter: LayerAdapter) -> Tensor:
    """The added weight as a matrix (out, rest), in float64."""
    if adapter.delta is not None:
        added = adapter.delta.detach().double()
    else:
        assert adapter.up is not None and adapter.down is not None
        added = adapter.up.detach().double() @ adapter.down.detach().double()
    return adapter.scaling * added.reshape(adapter.shape[0], -1)


def _cut(matrix: Tensor, rank: int | None, tolerance: float) -> tuple[Tensor, Tensor]:
    """The best factors (out, r) and (r, rest) of one rank, in float32: an SVD, its values shared by both."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    if rank is None:
        # What is left out by each rank from 0 on, in the Frobenius norm.
        left_out = torch.cat([values.square().flip(0).cumsum(0).flip(0), values.new_zeros(1)]).sqrt()
        rank = int((left_out > tolerance * left_out[0]).sum())
    rank = min(max(rank, 1), len(values))
    roots = values[:rank].sqrt()
    return (left[:, :rank] * roots).float(), (roots[:, None] * right[:rank]).float()


def _relative_error(up: Tensor, down: Tensor, scaling: float, adapter: LayerAdapter) -> float:
    expected = _matrix(adapter)
    difference = scaling * (up.double() @ down.double()) - expected
    norm = expected.norm().item()
    return difference.norm().item() / norm if norm else difference.norm().item()


def _config(ranks: Mapping[str, int], alphas: Mapping[str, float], rslora: bool) -> dict[str, Any]:
    """What PEFT needs to rebuild the layers: the most frequent rank and alpha, and the others by name."""
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "use_rslora": rslora,
        # A list would also hit layers whose names end in one of these.
        "target_modules": "|".join(map(re.escape, sorted(ranks))),
        "rank_pattern": {f"^{re.escape(one)}": own for one, own in ranks.items() if own != rank},
        "alpha_pattern": {f"^{re.escape(one)}": own for one, own in alphas.items() if own != alpha},
    }


def _write(directory: Path, state: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write both files, or neither: each is complete beside its place before the first one is renamed."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if inside(directory, name).is_dir():
            raise IsADirectoryError(f"{directory / name}: is a folder; name another directory")

    def write_weights(part: Path) -> None:
        part.write_bytes(save(state))
        text = json.dumps(config, indent=2)
        write_in_one_step(directory / CONFIG_NAME, lambda config_part: config_part.write_text(text))

    write_in_one_step(directory / WEIGHTS_NAME, write_weights)
