"""The models that ship with the package: list them, create them by name."""

from pathlib import Path

from lorun.checkpoint import load_network, read_tensors
from lorun.networks import NetworkConfig, build_network
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
    net, config, _ = load_network(model_path(name))
    return net if pretrained else build_network(config).eval()


def load_model(model: str | Path, task: str | None = None) -> tuple[UnfoldingNetwork, NetworkConfig]:
    """A shipped model by name, or a model file by its path (anything with a suffix or a folder).

    Args:
        task: "cs" or "cassi", which the model must be for; None takes any.
    """
    is_path = isinstance(model, Path) or Path(model).name != model or Path(model).suffix != ""
    net, config, _ = load_network(Path(model) if is_path else model_path(model))
    if task not in (None, config.task):
        others = ", ".join(name for name in list_models() if load_config(name).task == task)
        raise ValueError(
            f"{model}: is a model for task {config.task}, not {task}; for {task} these ship: {others}"
        )
    return net, config


def model_path(name: str) -> Path:
    """Where the file of a shipped model lies."""
    if name not in list_models():
        raise ValueError(
            f"model: no shipped model is called {name!r}; expected one of {', '.join(list_models())}"
        )
    return MODELS / f"{name}.safetensors"


def model_for_ratio(ratio: float) -> str:
    """The shipped LoRun model of a sampling ratio, a fraction."""
    configs = {name: load_config(name) for name in list_models() if "lorun" in name}
    names = {config.ratio: name for name, config in configs.items() if config.task == "cs"}
    if ratio not in names:
        known = ", ".join(str(known) for known in sorted(names))
        raise ValueError(
            f"ratio: no shipped model restores ratio {ratio}; expected one of {known}, or name a model file"
        )
    return names[ratio]


def load_config(name: str) -> NetworkConfig:
    """The config of a shipped model."""
    return NetworkConfig(**read_tensors(model_path(name))[1]["config"])
