"""Writing a file in one step, so that a failed write leaves the old file and never half of a new one."""

import os
from collections.abc import Callable
from pathlib import Path


def write_in_one_step(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write` with the path of a file beside `path`, and rename that to `path` when it is complete."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_target(path: Path, *suffixes: str) -> None:
    """Raise if a file of this name cannot be written: before the work, not after it."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder to write {path.name} into; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name a file")


def check_not_input(out: Path, *inputs: Path | None) -> None:
    """Raise if writing `out` would replace one of the files that it is made of."""
    for path in inputs:
        if path is not None and path.exists() and out.exists() and out.samefile(path):
            raise ValueError(f"{out}: is the input; choose another name for the result")


def inside(directory: str | Path, name: str) -> Path:
    """The path of a file in a directory.

    Raises:
        ValueError: a name or a link that leads out of the directory.
    """
    path = Path(directory) / name
    if not path.resolve().is_relative_to(Path(directory).resolve()):
        raise ValueError(
            f"{name}: expected a file inside {directory}, got {path.resolve()}; copy the file itself there"
        )
    return path
