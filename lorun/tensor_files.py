"""Files of tensors: safetensors with a small JSON header and a digest inside. No pickle anywhere."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lorun.files import write_in_one_step

FORMAT = "lorun-1"


class CheckpointError(ValueError):
    """A file of tensors that cannot be used; the message says why and what to do."""


def write_tensors(tensors: dict[str, Tensor], header: dict[str, Any], path: str | Path) -> None:
    """Write tensors, a JSON header and a digest of both; `path` is replaced in one step at the end."""
    text = json.dumps({"format": FORMAT, **header}, sort_keys=True)
    metadata = {"lorun": text, "digest": _digest(tensors, text)}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_in_one_step(path, lambda part: part.write_bytes(save(tensors, metadata)))


class TensorFile(Mapping[str, Tensor]):
    """An open file that `write_tensors` wrote: its tensors by name, each read when it is asked for.

    Attributes:
        header: what was written beside the tensors, with the "digest" of all of it.
    """

    def __init__(self, file: Any, header: dict[str, Any]) -> None:
        self._file, self.header = file, header
        self._names = sorted(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextmanager
def open_tensors(path: str | Path) -> Iterator[TensorFile]:
    """Open what `write_tensors` wrote, and refuse anything that is not exactly that.

    The whole file is read once, a tensor at a time, so that memory holds the largest of them.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: anything else than what was written.
    """
    with opened(path) as file:
        metadata = file.metadata() or {}
        if "lorun" in metadata and metadata.get("digest") != _digest(file, metadata["lorun"]):
            raise CheckpointError(f"{path}: damaged: its contents do not match their digest; fetch it again")
        header = read_header(path, metadata)
        yield TensorFile(file, header | {"digest": metadata["digest"]})


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors and the header of what `write_tensors` wrote; raises as `open_tensors`."""
    with open_tensors(path) as file:
        return dict(file), file.header


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """The safetensors file; what goes wrong with opening it is a CheckpointError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such model file")
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, error) from error
    with file as readable:
        yield readable


def damaged(path: str | Path, error: Exception) -> CheckpointError:
    """What is raised for a file that cannot be read."""
    return CheckpointError(f"{path}: damaged, or not a safetensors file ({error}); fetch it again")


def read_header(path: str | Path, metadata: dict[str, str]) -> dict[str, Any]:
    """The header in a file's metadata."""
    if "lorun" not in metadata:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a LoRun model; name one that `lorun train` wrote"
        )
    try:
        header = json.loads(metadata["lorun"])
        written_as = header["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise damaged(path, error) from error
    if written_as != FORMAT:
        raise CheckpointError(f"{path}: format {written_as!r}, this version reads {FORMAT!r}; upgrade lorun")
    return header


def _digest(tensors: Any, text: str) -> str:
    digest = hashlib.sha256(text.encode())
    # Of a dict of tensors, or of an open file, one at a time.
    read = tensors.__getitem__ if isinstance(tensors, dict) else tensors.get_tensor
    for name in sorted(tensors.keys()):
        tensor = read(name).contiguous()
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
