"""The models that ship with the package, and everything else that restores, by name."""

from collections.abc import Sequence
from pathlib import Path

from lorun.checkpoint import load_network, read_config
from lorun.device import choose_device
from lorun.errors import ArgumentError
from lorun.methods import Method, NetworkMethod, UntrainedMethod
from lorun.networks import build_network
from lorun.tasks import TASKS
from lorun.tasks.task import NetworkSettings, Task
from lorun.unfolding import UnfoldingNetwork

MODELS = Path(__file__).parent / "models"


def list_models() -> list[str]:
    """Names that `create_model` knows, such as cs25-unet-lorun9."""
    return sorted(path.stem for path in MODELS.glob("*.safetensors"))


def create_model(name: str, pretrained: bool = True) -> UnfoldingNetwork:
    """A shipped model by name, in float32 and evaluation mode.

    Args:
        name: one of `list_models()`.
        pretrained: False gives the same network before training.

    Raises:
        ValueError: an unknown name.
        CheckpointError: the installed file is damaged.
    """
    net, config, _ = load_network(shipped_path(name))
    return net if pretrained else build_network(config).eval()


def load_model(model: str | Path, task: str | None = None) -> tuple[UnfoldingNetwork, NetworkSettings]:
    """A shipped model by name, or a model file by its path (anything with a suffix or a folder).

    Args:
        task: name of the task that the model must be for; None takes any.

    Raises:
        ValueError: an unknown name, or a model for another task.
        OSError: no such file.
        CheckpointError: a damaged file, or no LoRun model.
    """
    net, config, _ = load_network(model_path(model))
    if task not in (None, config.task):
        others = ", ".join(shipped_for(task))
        raise ValueError(
            f"{model}: is a model for task {config.task}, not {task}; for {task} these ship: {others}"
        )
    return net, config


def model_path(model: str | Path) -> Path:
    """The file of a model: of a shipped one by name, or itself."""
    if isinstance(model, Path) or Path(model).name != model or Path(model).suffix != "":
        return Path(model)
    return shipped_path(model)


def shipped_path(name: str) -> Path:
    """The file of a shipped model."""
    if name not in list_models():
        raise ValueError(
            f"model: no shipped model is called {name!r}; expected one of {', '.join(list_models())}"
        )
    return MODELS / f"{name}.safetensors"


def shipped_for(task: str) -> dict[str, NetworkSettings]:
    """The configs of the shipped models of a task, by name."""
    configs = {name: read_config(shipped_path(name)) for name in list_models()}
    return {name: config for name, config in configs.items() if config.task == task}


def task_of(model: str) -> str:
    """The task of a model, as its file says, or of an untrained method; raises as `load_model`."""
    for task in TASKS.values():
        if model in task.untrained:
            return task.name
    return read_config(model_path(model)).task


def load_methods(
    names: Sequence[str], task: Task, tile: int | None = None, device: str = "auto"
) -> tuple[dict[str, Method], dict[str, NetworkSettings]]:
    """Shipped models, model files and untrained methods of a task; and the networks' settings, both by name.

    Untrained methods get the physics of the networks, or without one the task's default.

    Raises:
        ValueError: a model for another task, models that cannot restore the same scenes, an unusable device,
            or tiles for methods that have none.
    """
    where = choose_device(device)
    networks: dict[str, Method] = {}
    settings: dict[str, NetworkSettings] = {}
    for name in names:
        if name not in task.untrained:
            net, settings[name] = load_model(name, task.name)
            networks[name] = NetworkMethod(net.to(where), tile)
    if tile is not None and not networks:
        raise ArgumentError(
            "tile", f"tile: is for networks, and {' and '.join(names)} work on whole scenes; leave it out"
        )
    task.check_models(settings)
    physics = task.physics(next(iter(settings.values()), task.network()))
    untrained: dict[str, Method] = {
        name: UntrainedMethod(task.untrained[name], physics) for name in names if name in task.untrained
    }
    methods = networks | untrained
    return {name: methods[name] for name in names}, settings
