"""Model files: safetensors with a small JSON config and a digest inside. No pickle anywhere."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lorun.files import write_in_one_step
from lorun.networks import build_network, read_network_config
from lorun.tasks.task import NetworkSettings
from lorun.unfolding import UnfoldingNetwork

FORMAT = "lorun-1"


class CheckpointError(ValueError):
    """A model file that cannot be used; the message says why and what to do."""


def save_network(
    net: UnfoldingNetwork,
    config: NetworkSettings,
    path: str | Path,
    dtype: torch.dtype = torch.float16,
    base: str | Path | None = None,
    notes: dict[str, Any] | None = None,
) -> None:
    """Write a network so that `load_network` rebuilds it, replacing `path` only when all is written.

    Args:
        base: a model file in the same folder. Tensors equal to that file's are left out here and taken
            from there on loading, so that adapters weigh what adapters weigh.
        notes: anything JSON about the model, such as how it was trained.

    Raises:
        ValueError: a base in another folder.
        OSError: a folder that cannot be written to; an old file stays.
    """
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in network_tensors(net).items()
    }
    header: dict[str, Any] = {"config": dataclasses.asdict(config), "notes": notes or {}}
    if base is not None:
        if Path(base).resolve().parent != Path(path).resolve().parent:
            raise ValueError(f"base: expected a file in the folder of {path}, got {base}")
        base_tensors, base_header = read_tensors(base)
        tensors = {k: v for k, v in tensors.items() if k not in base_tensors or not v.equal(base_tensors[k])}
        header["base"] = {"file": Path(base).name, "digest": base_header["digest"]}
    write_tensors(tensors, header, path)


def load_network(path: str | Path) -> tuple[UnfoldingNetwork, NetworkSettings, dict[str, Any]]:
    """Read a model file: the network in float32 and evaluation mode, its config and its notes.

    Raises:
        FileNotFoundError: no such file, or no base beside it.
        CheckpointError: a damaged file, no LoRun model, or one that this version cannot build.
    """
    tensors, header = read_tensors(path)
    if "base" in header:
        tensors = _base_tensors(Path(path), header["base"]) | tensors
    config = _config_of(path, header)
    try:
        net = build_network(config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _unknown_config(path, error) from error
    assign_tensors(net, tensors, path)
    return net.eval(), config, header["notes"]


def network_tensors(net: UnfoldingNetwork) -> dict[str, Tensor]:
    """Every parameter of a network, once, even if stages share it."""
    return dict(net.named_parameters())


def assign_tensors(net: UnfoldingNetwork, tensors: dict[str, Tensor], source: str | Path) -> None:
    """Copy tensors into a network's parameters; each must be there, in its shape."""
    expected = network_tensors(net)
    missing = sorted(set(expected) - set(tensors))
    if missing:
        raise CheckpointError(
            f"{source}: lacks {missing[0]!r}, which its config asks for; fetch the file again"
        )
    for name, parameter in expected.items():
        if parameter.shape != tensors[name].shape:
            raise CheckpointError(
                f"{source}: {name!r} has shape {tuple(tensors[name].shape)}, its config asks for "
                f"{tuple(parameter.shape)}; fetch the file again"
            )
        with torch.no_grad():
            parameter.copy_(tensors[name])


def write_tensors(tensors: dict[str, Tensor], header: dict[str, Any], path: str | Path) -> None:
    """Write tensors, a JSON header and a digest of both; `path` is replaced in one step at the end."""
    text = json.dumps({"format": FORMAT, **header}, sort_keys=True)
    metadata = {"lorun": text, "digest": _digest(tensors, text)}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_in_one_step(path, lambda part: part.write_bytes(save(tensors, metadata)))


def read_config(path: str | Path) -> NetworkSettings:
    """The config in a model file, without reading its tensors.

    Raises:
        CheckpointError: a file that is not a LoRun model.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
    return _config_of(path, _header(path, metadata))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote, and refuse anything that is not exactly that.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: anything else than what was written.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    if "lorun" in metadata and metadata.get("digest") != _digest(tensors, metadata["lorun"]):
        raise CheckpointError(f"{path}: damaged: its contents do not match their digest; fetch it again")
    header = _header(path, metadata)
    return tensors, header | {"digest": metadata["digest"]}


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """The safetensors file; what goes wrong with reading it is a CheckpointError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such model file")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, UnicodeDecodeError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: str | Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: damaged, or not a safetensors file ({error}); fetch it again")


def _header(path: str | Path, metadata: dict[str, str]) -> dict[str, Any]:
    if "lorun" not in metadata:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a LoRun model; name one that `lorun train` wrote"
        )
    try:
        header = json.loads(metadata["lorun"])
        written_as = header["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path, error) from error
    if written_as != FORMAT:
        raise CheckpointError(f"{path}: format {written_as!r}, this version reads {FORMAT!r}; upgrade lorun")
    return header


def _config_of(path: str | Path, header: dict[str, Any]) -> NetworkSettings:
    try:
        return read_network_config(header["config"])
    except (TypeError, ValueError, KeyError) as error:
        raise _unknown_config(path, error) from error


def _unknown_config(path: str | Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: its config is not one this version knows ({error}); upgrade lorun, or fetch the file again"
    )


def _base_tensors(path: Path, base: dict[str, str]) -> dict[str, Tensor]:
    base_path = path.parent / base["file"]
    if not base_path.is_file():
        raise FileNotFoundError(
            f"{path}: holds adapters of {base['file']}, which must lie beside it and does not"
        )
    tensors, header = read_tensors(base_path)
    if header["digest"] != base["digest"]:
        raise CheckpointError(
            f"{path}: its adapters were trained on another {base['file']} than the one beside it; "
            "put the matching base there"
        )
    return tensors


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
