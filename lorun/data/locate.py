"""Where training data lies."""

import os
from pathlib import Path

from lorun.errors import ArgumentError, MissingDataError


def find_data(names: tuple[str, ...], setting: str = "data") -> list[Path]:
    """Files and folders by name, each checked to exist; relative ones lie under $LORUN_DATA.

    Args:
        setting: which setting of a training run lists them, for the error.

    Raises:
        MissingDataError: one does not exist.
    """
    paths = [Path(os.environ.get("LORUN_DATA", ".")) / name for name in names]
    for path in paths:
        if not path.exists():
            raise MissingDataError(
                setting,
                f"{path}: no such training data; set LORUN_DATA to the folder that holds it, or change the "
                f"setting {setting}",
            )
    return paths


def find_training_data(names: tuple[str, ...]) -> list[Path]:
    """As `find_data`; raises ArgumentError if there is none."""
    if not names:
        raise ArgumentError("data", "data: name at least one folder of training data")
    return find_data(names)


def find_photo_folders(names: tuple[str, ...]) -> list[Path]:
    """As `find_training_data`; raises ValueError if one is no folder."""
    folders = find_training_data(names)
    for path in folders:
        if not path.is_dir():
            raise ValueError(f"{path}: expected a folder of training photographs, got a file")
    return folders
