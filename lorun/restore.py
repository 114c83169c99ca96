"""Restoring a file, the same way for every task: open the scene, restore it, save it, say what was done."""

from collections.abc import Sequence
from pathlib import Path

import torch

from lorun.errors import ArgumentError
from lorun.files import check_not_input, check_target
from lorun.tasks.task import RestoreOptions, Task
from lorun.zoo import load_methods, shipped_for

# Up to this many channels make a photograph.
COLOURS = 3


@torch.no_grad()
def restore_file(
    task: Task,
    source: Path | None,
    out: Path,
    options: RestoreOptions | None = None,
    *,
    model: str | None = None,
    compare: Sequence[str] = (),
    figures: bool = False,
    tile: int | None = None,
    device: str = "auto",
) -> str:
    """Restore one scene into the file `out`; returns one line that says what was done.

    Args:
        source: the image to measure and restore, or what else the task opens; None if the options name it.
        options: the task's own; None takes its defaults.
        model: a shipped model's name, a model file, or a method of the task that needs no training; None
            takes the task's default.
        compare: further ones, for the pictures.
        figures: write the task's pictures beside `out`.
        tile: denoise in tiles of this side, in pixels.
        device: "cpu", a GPU such as "cuda", or "auto".

    Raises:
        ValueError, TypeError, OSError: input that cannot be restored; nothing is written then.
    """
    options = task.restore_options() if options is None else options
    check_target(out, *task.suffixes)
    inputs = task.inputs(source, options)
    check_not_input(out, *inputs)
    first = model or task.default_model(options, shipped_for(task.name))
    names = list(dict.fromkeys((first, *compare)))
    if figures:
        _check_pictures(task, out, inputs, names)
    elif compare:
        raise ArgumentError("figures", "compare: is for the pictures; ask for the figures too")
    methods, settings = load_methods(names, task, tile, device)
    scene = task.open(source, options, methods[first].physics)
    if figures:
        task.check_drawable(scene)
    measured = {name: task.measurement(scene, scene.physics or methods[name].physics) for name in names}
    restored = {
        name: method.restore(measured[name], scene.physics, scene.size) for name, method in methods.items()
    }
    image = restored[first]
    bands = f"{len(image)} bands of " if len(image) > COLOURS else ""
    done = f"{out}: {bands}{image.shape[1]}x{image.shape[2]} pixels restored by {first}"
    if first in settings:
        done += f" ({settings[first].label} {task.describe(settings[first])})"
    if scene.truth is not None:
        protocol = task.protocols[0]
        done += f", PSNR {task.psnr(image, scene, protocol):.2f} dB ({protocol})"
    done += "".join(f"; {note}" for note in scene.notes)
    # After what may refuse the image, because nothing is written then.
    task.save(out, image, scene, measured[first], options)
    if figures:
        start = task.start(scene, measured[first], scene.physics or methods[first].physics)
        task.draw(out, scene, measured[first], restored, start)
        done += f"; pictures: {', '.join(map(str, task.pictures(out)))}"
    return done


def _check_pictures(task: Task, out: Path, inputs: list[Path], names: list[str]) -> None:
    for picture in task.pictures(out):
        check_target(picture, ".png")
        check_not_input(picture, *inputs)
    if len(names) > task.most_pictured:
        raise ArgumentError(
            "compare", f"compare: pictures hold {task.most_pictured} methods at most, got {len(names)}"
        )
