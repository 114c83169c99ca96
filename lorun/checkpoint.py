"""Model files: the tensors of a network, and the config that it is rebuilt from."""

import dataclasses
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorun.adapters.record import recorded, share_as_recorded
from lorun.networks import build_network, read_network_config
from lorun.tasks.task import NetworkSettings
from lorun.tensor_files import (
    CheckpointError,
    TensorFile,
    open_tensors,
    opened,
    read_header,
    read_tensors,
    write_tensors,
)
from lorun.unfolding import UnfoldingNetwork
from lorun_kernels import unwrapped


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
        net: the network, which torch.compile, DataParallel or DistributedDataParallel may have wrapped.
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
    record = recorded(unwrapped(net))
    if record is not None:
        header["sharing"] = record
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
    with ExitStack() as files:
        file = files.enter_context(open_tensors(path))
        config = _config_of(path, file.header)
        tensors: Mapping[str, Tensor] = file
        if "base" in file.header:
            tensors = ChainMap(file, files.enter_context(_base_of(Path(path), file.header["base"])))  # type: ignore[arg-type]
        try:
            net = _network_of(config, file.header.get("sharing"))
        except (TypeError, ValueError, RuntimeError) as error:
            raise _unknown_config(path, error) from error
        assign_tensors(net, tensors, path)
        return net.eval(), config, file.header["notes"]


def _network_of(config: NetworkSettings, record: dict[str, Any] | None) -> UnfoldingNetwork:
    """The untrained network; with the record of a compressed one, its stages share a base."""
    if record is None:
        return build_network(config)
    # Built with one denoiser, so that memory never holds one for each stage.
    net = build_network(dataclasses.replace(config, variant="shared")).with_separate_stages()
    share_as_recorded(net, record)
    return net


def network_tensors(net: UnfoldingNetwork) -> dict[str, Tensor]:
    """Every parameter of a network, once, even if stages share it; of a wrapped network, that inside."""
    return dict(unwrapped(net).named_parameters())


def assign_tensors(net: UnfoldingNetwork, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy tensors into a network's parameters, one at a time; each must be there, in its shape."""
    expected = network_tensors(net)
    missing = sorted(set(expected) - set(tensors))
    if missing:
        raise CheckpointError(
            f"{source}: lacks {missing[0]!r}, which its config asks for; fetch the file again"
        )
    for name, parameter in expected.items():
        tensor = tensors[name]
        if parameter.shape != tensor.shape:
            raise CheckpointError(
                f"{source}: {name!r} has shape {tuple(tensor.shape)}, its config asks for "
                f"{tuple(parameter.shape)}; fetch the file again"
            )
        with torch.no_grad():
            parameter.copy_(tensor)


def read_config(path: str | Path) -> NetworkSettings:
    """The config in a model file, without reading its tensors.

    Raises:
        CheckpointError: a file that is not a LoRun model.
    """
    with opened(path) as file:
        metadata = file.metadata() or {}
    return _config_of(path, read_header(path, metadata))


def _config_of(path: str | Path, header: dict[str, Any]) -> NetworkSettings:
    try:
        return read_network_config(header["config"])
    except (TypeError, ValueError, KeyError) as error:
        raise _unknown_config(path, error) from error


def _unknown_config(path: str | Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: its config is not one this version knows ({error}); upgrade lorun, or fetch the file again"
    )


@contextmanager
def _base_of(path: Path, base: dict[str, str]) -> Iterator[TensorFile]:
    """The open base file of a file of adapters."""
    base_path = path.parent / base["file"]
    if not base_path.is_file():
        raise FileNotFoundError(
            f"{path}: holds adapters of {base['file']}, which must lie beside it and does not"
        )
    with open_tensors(base_path) as file:
        if file.header["digest"] != base["digest"]:
            raise CheckpointError(
                f"{path}: its adapters were trained on another {base['file']} than the one beside it; "
                "put the matching base there"
            )
        yield file
