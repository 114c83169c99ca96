"""Adapters as files: a directory with adapter_config.json, adapter_model.safetensors and perhaps a base."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorun.adapters.adapter_set import LayerAdapter
from lorun.adapters.plan import COMMON, OWN
from lorun.adapters.record import recorded, share_as_recorded
from lorun.adapters.sets import (
    DEFAULT,
    NamedSet,
    active_adapters,
    add_adapters,
    get_adapters,
    rank_of,
    set_adapters,
)
from lorun.files import inside, write_in_one_step
from lorun.tensor_files import CheckpointError, TensorFile, open_tensors, write_tensors
from lorun_kernels import adapted_weights, is_merged, shared_groups, tensor_name, unwrapped

CONFIG = "adapter_config.json"
MODEL = "adapter_model.safetensors"
BASE = "base.safetensors"
FORMAT = "lorun-adapters-1"


def save_adapters(
    model: nn.Module,
    directory: str | Path,
    *,
    base: bool = False,
    task: str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the adapters that a network computes with into a directory, which is made if there is none.

    ``adapter_config.json`` says what they are: form, rank and scaling of each, a hash of the base that they
    belong to, and what became of each parameter of a stage. ``adapter_model.safetensors`` holds the factors,
    and what the network keeps beside base and adapters: step sizes, biases, norms. No pickle anywhere.

    Args:
        base: write the base weights too, as ``base.safetensors``: the directory then holds the whole network,
            in the size of base and adapters.
        task: what the adapters are for, a note in the config.
        dtype: of the files; None keeps that of the network.

    Raises:
        ValueError: a network without adapters, with merged ones, or with NaN or Inf in them.
        OSError: a directory that cannot be written; files that were there stay.
    """
    model, directory = unwrapped(model), Path(directory)
    if is_merged(model):
        raise ValueError("model: its adapters are merged; call lorun.unmerge(model) first")
    held = get_adapters(model)
    tensors = _named_tensors(held)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name}: holds NaN or Inf; save adapters from before training diverged")
    shared = _in(dtype if base else None, base_tensors(model))
    description = {
        "format": FORMAT,
        "lorun_version": version("lorun"),
        "task": task,
        "base_sha256": _hash(shared),
        "sharing": recorded(model),
        "adapters": {name: _settings(adapter) for name, adapter in held.adapters.items()},
        "own": sorted(held.own),
    }
    directory.mkdir(parents=True, exist_ok=True)
    if base:
        write_tensors(shared, {}, inside(directory, BASE))
    write_tensors(_in(dtype, tensors), {"adapters": description}, inside(directory, MODEL))
    text = json.dumps(description, indent=1, sort_keys=True)
    write_in_one_step(inside(directory, CONFIG), lambda part: part.write_text(text, encoding="utf-8"))


def load_adapters(
    model: nn.Module, directory: str | Path, name: str | None = None, *, activate: bool = True
) -> nn.Module:
    """Read what `save_adapters` wrote into a network, and return the network.

    A network that is as its own code builds it, with K separate stages, is first given the shared base and
    the adapters that the files describe, in place. Where the directory holds a base, it takes the place of
    another one. Tensors are read one at a time.

    Args:
        name: of the set of adapters; None replaces the active one.
        activate: whether the network computes with them at once.

    Raises:
        FileNotFoundError: no such directory, or one that lacks a file.
        ValueError: files that are damaged or of another version, adapters for another base or another network
            (the message says which), or a file that lies elsewhere. The adapters of the network stay.
    """
    inner, directory = unwrapped(model), Path(directory)
    with open_tensors(inside(directory, MODEL)) as file:
        description = _description(directory, file)
        wanted, record = description["base_sha256"], description["sharing"]
        if not adapted_weights(inner):
            if record is None:
                raise ValueError(
                    "model: has no adapters, and these are not of a network that share_stages made; build "
                    "the model as it was when they were saved"
                )
            if first_stage_hash(inner, record) != wanted:
                _check_base(directory, wanted)
            share_as_recorded(inner, record)
        if base_hash(inner) != wanted:
            _check_base(directory, wanted)
            _load_base(inner, inside(directory, BASE))
        set_name = name or active_adapters(inner) or DEFAULT
        add_adapters(inner, set_name, _read_set(description, file))
        if activate:
            set_adapters(inner, set_name)
    return model


def base_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What the stages of a network share, by the first name that each tensor has."""
    tensors = {owners[0][0]: shared.parameter for shared, owners in shared_groups(model).items()}
    known = {id(tensor) for tensor in tensors.values()}
    for name, weight in adapted_weights(model).items():
        if id(weight.base) not in known:
            tensors[name] = weight.base
            known.add(id(weight.base))
    return {name: tensor.detach() for name, tensor in tensors.items()}


def base_hash(model: nn.Module) -> str:
    """The SHA-256 of the values of a network's base, in whatever dtype they are stored."""
    return _hash(base_tensors(model))


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        wide = tensor if tensor.dtype == torch.float64 else tensor.float()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(wide.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _settings(adapter: LayerAdapter) -> dict[str, Any]:
    return {
        "form": adapter.form,
        "rank": None if adapter.up is None else rank_of(adapter),
        "scaling": adapter.scaling,
        "groups": adapter.groups,
        "shape": list(adapter.shape),
    }


def _named_tensors(held: NamedSet) -> dict[str, Tensor]:
    """The tensors of a set under the names that they have in the network."""
    tensors = dict(held.own)
    for name, adapter in held.adapters.items():
        kinds = {"lora_up": adapter.up, "lora_down": adapter.down, "lora_delta": adapter.delta}
        tensors |= {_tensor_name(kind, name): t for kind, t in kinds.items() if t is not None}
    return tensors


def _tensor_name(kind: str, weight: str) -> str:
    path, dot, parameter = weight.rpartition(".")
    return f"{path}{dot}{tensor_name(kind, parameter)}"


def _in(dtype: torch.dtype | None, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in tensors.items()
    }


def _description(directory: Path, file: TensorFile) -> dict[str, Any]:
    """What both files say of the adapters."""
    path = inside(directory, CONFIG)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; save_adapters writes it beside {MODEL}")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        written_as = description["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: does not describe LoRun adapters ({error}); fetch it again"
        ) from error
    if written_as != FORMAT:
        raise CheckpointError(f"{path}: format {written_as!r}, this version reads {FORMAT!r}; upgrade lorun")
    if file.header.get("adapters") != description:
        raise CheckpointError(f"{directory}: {CONFIG} and {MODEL} are not of one save; take both from one")
    return description


def first_stage_hash(model: nn.Module, record: Mapping[str, Any]) -> str:
    """What `base_hash` would be if the stages of a record shared the weights of the first."""
    first = record["stages"][0]
    names = [f"{first}.{name}" for name, kind in record["parameters"].items() if kind not in (OWN, COMMON)]
    held = dict(model.named_parameters(remove_duplicate=False))
    return _hash({name: held[name].detach() for name in names if name in held})


def _check_base(directory: Path, wanted: str) -> None:
    """Raise unless the base beside the adapters is the one that they belong to."""
    path = inside(directory, BASE)
    if not path.is_file():
        raise ValueError(
            f"{directory}: its adapters belong to another base than that of this network; load the base that "
            "they were trained on first, or save them with base=True"
        )
    with open_tensors(path) as file:
        if _hash(file) != wanted:
            raise CheckpointError(f"{path}: is not the base that the adapters beside it belong to")


@torch.no_grad()
def _load_base(model: nn.Module, path: Path) -> None:
    own = base_tensors(model)
    with open_tensors(path) as file:
        differing = sorted(set(file) ^ set(own))
        differing += [name for name in file if name in own and file[name].shape != own[name].shape]
        if differing:
            raise CheckpointError(
                f"{path}: is the base of another network: they differ in {', '.join(differing[:5])}"
            )
        for name, tensor in own.items():
            tensor.copy_(file[name])


def _read_set(description: dict[str, Any], file: TensorFile) -> NamedSet:
    return NamedSet(_AdaptersInFile(description["adapters"], file), _Chosen(description["own"], file))


class _Chosen(Mapping[str, Tensor]):
    """Some tensors of an open file, each read when it is asked for."""

    def __init__(self, names: Sequence[str], file: TensorFile) -> None:
        self._names, self._file = names, file

    def __getitem__(self, name: str) -> Tensor:
        return self._file[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _AdaptersInFile(Mapping[str, LayerAdapter]):
    """The adapters of an open file, each read when it is asked for: memory holds one at a time."""

    def __init__(self, settings: Mapping[str, Mapping[str, Any]], file: TensorFile) -> None:
        self._settings, self._file = settings, file

    def __getitem__(self, name: str) -> LayerAdapter:
        own = self._settings[name]
        kinds = ("lora_delta",) if own["rank"] is None else ("lora_up", "lora_down")
        tensors = {kind: self._file[_tensor_name(kind, name)] for kind in kinds}
        return LayerAdapter(
            tuple(own["shape"]),
            own["form"],
            tensors.get("lora_up"),
            tensors.get("lora_down"),
            tensors.get("lora_delta"),
            own["scaling"],
            own["groups"],
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)
