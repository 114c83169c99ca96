"""From a small config to a network: what a checkpoint needs to know to be rebuilt."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from lorun.tasks import DEFAULT_TASK, TASKS
from lorun.tasks.task import NetworkSettings
from lorun.unfolding import UnfoldingNetwork

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def network_config(task: str = DEFAULT_TASK, **settings: Any) -> NetworkSettings:
    """The config of a network of a task.

    Args:
        task: a name in `lorun.tasks.TASKS`.
        settings: as the class `TASKS[task].network` lists them; what is left out has its default.

    Raises:
        ValueError: an unknown task, a setting that this task does not have, or a value out of its range.
    """
    if task not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")
    kind = TASKS[task].network
    known = [field.name for field in fields(kind)]
    for name in settings:
        if name not in known:
            raise ValueError(f"{name}: no setting of task {task}; expected one of {', '.join(known)}")
    return kind(task=task, **settings)


# The name of this function from before every task had settings of its own.
NetworkConfig = network_config


def read_network_config(stored: dict[str, Any]) -> NetworkSettings:
    """The config in a file; raises as `network_config`."""
    return network_config(**without_other_tasks(stored))


def without_other_tasks(stored: dict[str, Any]) -> dict[str, Any]:
    """The settings of a network without those that only other tasks have and that have their defaults.

    Files used to list the settings of all tasks.
    """
    task = stored.get("task", DEFAULT_TASK)
    if task not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")
    return without_foreign_defaults(stored, TASKS[task].network, [task.network for task in TASKS.values()])


def without_foreign_defaults(
    values: dict[str, Any], own: "type[DataclassInstance]", kinds: "Sequence[type[DataclassInstance]]"
) -> dict[str, Any]:
    """Values without those that are no field of `own` and the default of a field of one of the `kinds`."""
    names = {field.name for field in fields(own)}
    foreign: dict[str, Any] = {}
    for kind in kinds:
        foreign |= json.loads(json.dumps(asdict(kind())))  # as files hold them
    return {
        name: value
        for name, value in values.items()
        if name in names or name not in foreign or not _is_default(value, foreign[name])
    }


def _is_default(value: Any, default: Any) -> bool:
    """Whether a value of a file says what the default says; a table may leave settings out."""
    if isinstance(value, dict) and isinstance(default, dict):
        return default | value == default
    return value == default


def build_network(config: NetworkSettings) -> UnfoldingNetwork:
    """The untrained network that a config describes."""
    task = TASKS[config.task]
    return UnfoldingNetwork(
        physics=task.physics(config),
        denoiser=task.denoiser(config),
        stages=config.stages,
        variant=config.variant,
        algorithm=config.algorithm,
        gamma=config.gamma,
        form=config.form,
        start_step=task.start_step(config),
    )
