"""`lorun compress`: from a checkpoint of separate denoisers to files of one base and adapters."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from lorun.adapters import compress, save_adapters, unet_channel_groups
from lorun.checkpoint import load_network, save_network
from lorun.denoisers import UNet
from lorun.errors import ArgumentError
from lorun.stage_report import StageReport, report_stages
from lorun.zoo import model_path


def compress_file(
    checkpoint: str | Path,
    out: Path,
    *,
    loader: str | None = None,
    stages: str | None = None,
    align: bool = False,
    **options: Any,
) -> StageReport:
    """Compress a trained network, write what it becomes into the folder `out`, and report it.

    A Block-K model file of ours becomes OUT/NAME-compressed.safetensors, a model file that everything here
    takes. Another network comes from a loader, and becomes a directory that `lorun.load_adapters` reads into
    the network as its code builds it. Beside it is report.txt.

    Args:
        checkpoint: a model file, a shipped model's name, or whatever the loader takes.
        loader: "module:function"; the function is called with the checkpoint's path, and returns the trained
            network. The module is looked for in the current folder too.
        stages: of a network from a loader, as `lorun.compress` takes them.
        align: bring the channels of the stages into one order first; for our U-Net.
        options: further arguments of `lorun.compress`.

    Raises:
        ValueError: a model that is not Block-K, a loader that does not give a network, or as `compress`.
        OSError: no such file, or a folder that cannot be written.
    """
    if loader is not None:
        if align:
            raise ArgumentError("align", "align: is for our U-Net; give lorun.compress groups of channels")
        model = load_with(loader, checkpoint)
        compress(model, stages, **options)
        save_adapters(model, out, base=True)
        return _reported(model, out)
    if stages is not None:
        raise ArgumentError("stages", "stages: is for networks from a loader; ours are its denoisers")
    path = model_path(checkpoint)
    net, config, notes = load_network(path)
    if config.variant != "block":
        raise ValueError(
            f"{checkpoint}: is {config.label}, which has one denoiser; expected a Block-K model, which "
            "`lorun train --network.variant block` trains"
        )
    groups = None
    if align:
        denoiser = net.denoisers[0]
        if not isinstance(denoiser, UNet):
            raise ArgumentError("align", f"align: expected U-Nets, got a {type(denoiser).__name__}; leave it")
        groups = unet_channel_groups(denoiser)
    compress(net, "denoisers", align=groups, **options)
    out.mkdir(parents=True, exist_ok=True)
    save_network(net, config, out / f"{path.stem}-compressed.safetensors", notes=notes)
    return _reported(net, out)


def load_with(loader: str, checkpoint: str | Path) -> nn.Module:
    """The network that somebody's function returns for a checkpoint."""
    module_name, _, function_name = loader.partition(":")
    if not module_name or not function_name:
        raise ArgumentError("loader", f"loader: expected module:function, got {loader!r}")
    sys.path.insert(0, "")
    try:
        function: Callable[[str], Any] | None = getattr(
            importlib.import_module(module_name), function_name, None
        )
    except ImportError as error:
        raise ArgumentError("loader", f"loader: cannot import {module_name!r}: {error}") from error
    finally:
        sys.path.remove("")
    if not callable(function):
        raise ArgumentError("loader", f"loader: {module_name} has no function {function_name!r}")
    model = function(str(checkpoint))
    if not isinstance(model, nn.Module):
        raise ArgumentError("loader", f"loader: expected an nn.Module from it, got {type(model).__name__}")
    return model


def _reported(model: nn.Module, out: Path) -> StageReport:
    made = report_stages(model)
    (out / "report.txt").write_text(f"{made}\n", encoding="utf-8")
    return made
