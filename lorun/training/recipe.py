"""Training runs as files: TOML recipes, and the settings that a run's folder records."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, get_args, get_origin

from lorun.networks import without_foreign_defaults, without_other_tasks
from lorun.tasks import DEFAULT_TASK, TASKS
from lorun.training.config import TrainConfig

RECIPES = Path(__file__).parent / "recipes"


def load_recipe(name: str | Path) -> TrainConfig:
    """Read a recipe: a TOML file, or the name of one that ships with the package, such as cs25-unet.

    Raises:
        FileNotFoundError: no such recipe.
        ValueError: no TOML, or a setting that is unknown, of another type or out of its range.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = RECIPES / f"{name}.toml"
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise FileNotFoundError(f"{name}: no such recipe; give a .toml file or one of {shipped}")
    try:
        return config_from_dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """A config as files hold it: the settings of its task beside the others."""
    values = dataclasses.asdict(config)
    return values | values.pop("task_settings")


def config_from_dict(values: dict[str, Any]) -> TrainConfig:
    """The config in a file; settings of other tasks may be there if they have their defaults.

    Raises:
        ValueError: a setting that is unknown, of another type or out of its range.
    """
    values = _table("settings", values)
    stored = without_other_tasks(_table("network", values.get("network", {})))
    task = TASKS[stored.get("task", DEFAULT_TASK)]
    own = task.training
    others = [other.training for other in TASKS.values()]
    rest = without_foreign_defaults(values, own, others)
    _refuse_unknown(rest, [*_names(TrainConfig), *_names(own)])
    return TrainConfig(
        **_checked_values(TrainConfig, {n: v for n, v in rest.items() if n not in (*_names(own), "network")}),
        network=_read(task.network, stored),
        task_settings=_read(own, {n: v for n, v in rest.items() if n in _names(own)}),
    )


def _read(kind: type, values: dict[str, Any]) -> Any:
    """An instance of a dataclass from a table of a file."""
    _refuse_unknown(values, _names(kind))
    return kind(**_checked_values(kind, values))


def _names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.name != "task_settings"]


def _refuse_unknown(values: dict[str, Any], known: list[str]) -> None:
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"unknown setting {unknown[0]!r}; expected one of {', '.join(known)}")


def _checked_values(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    return {name: _checked(name, types[name], value) for name, value in values.items()}


def _table(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected a table, [{name}], got {value!r}")
    return value


def _checked(name: str, kind: Any, value: Any) -> Any:
    """A value of a file as its setting's type; raises if it is of another."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _read(kind, _table(name, value))
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        fitting = (int, float) if item is float else item
        if not isinstance(value, list) or not all(isinstance(entry, fitting) for entry in value):
            raise ValueError(f"{name}: expected a list of {item.__name__}, got {value!r}")
        return tuple(value)
    allowed = (int, float) if kind is float else kind
    if isinstance(kind, type) and (not isinstance(value, allowed) or isinstance(value, bool)):
        raise ValueError(f"{name}: expected {kind.__name__}, got {value!r}")
    return value
