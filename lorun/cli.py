"""The `lorun` command: demo, train, eval, restore, info."""

import contextlib
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from safetensors import SafetensorError
from tyro.conf import Positional, arg, subcommand

from lorun import __version__
from lorun.data import list_photos, read_grey
from lorun.demo import run_demo
from lorun.device import choose_device
from lorun.evaluate import TABLES, evaluate, to_markdown, write_table
from lorun.files import check_target
from lorun.report import report
from lorun.restore import restore_file
from lorun.restorer import Restorer
from lorun.training import TrainConfig, load_recipe, train
from lorun.zoo import list_models, load_model

DEFAULT_RECIPE = "cs25-unet"


@dataclass
class Demo:
    """Restore the photographs that scikit-image ships from 25 % compressive measurements.

    $ lorun demo --out demo
    """

    out: Path = Path("demo")
    """Folder for the pictures, one PNG a photograph."""

    def run(self) -> None:
        print(run_demo(self.out))
        print(f"\nPSNR and SSIM by protocol cs. Pictures: {self.out}/*.png")


@dataclass
class Train:
    """Train by Algorithm 1: phase 1 the shared network, phase 2 its adapters. Goes on where it stopped.

    $ lorun train --out runs/cs25

    $ lorun train --recipe my.toml --out runs/mine --phase2.lr 5e-4 --network.gamma 5
    """

    out: Path
    """Folder for checkpoints, training curves and the model files."""
    config: Annotated[TrainConfig, arg(name="")]
    recipe: str = DEFAULT_RECIPE
    """A .toml file, or the name of a recipe that ships; flags change single settings of it."""

    def run(self) -> None:
        print(f"model: {train(self.config, self.out)}")


@dataclass
class Eval:
    """PSNR and SSIM of models on a folder of photographs, from simulated measurements.

    $ lorun eval photos --models cs25-unet-shared9 cs25-unet-lorun9 -o table.md
    """

    images: Positional[Path]
    """Folder of images; colours become Y."""
    models: tuple[str, ...] = ("cs25-unet-lorun9",)
    """Names of shipped models (see `lorun info`) or paths of model files."""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Write the table to this .md or .csv file as well."""
    device: str = "auto"
    """cpu, cuda, or auto."""

    def run(self) -> None:
        if self.out is not None:
            check_target(self.out, *TABLES)
        if not self.models:
            raise ValueError("models: name at least one shipped model or model file")
        device = choose_device(self.device)
        restorers = {name: Restorer(load_model(name)[0].to(device)) for name in self.models}
        images = {path.name: read_grey(path) for path in list_photos(self.images)}
        scores = evaluate(images, restorers)
        print(to_markdown(scores), end="")
        if self.out is not None:
            write_table(scores, self.out)


@dataclass
class Restore:
    """Restore one photograph: simulate its measurement, or take a measured .npz.

    $ lorun restore photo.png --ratio 0.25 -o restored.png --measurement photo.npz

    $ lorun restore photo.npz --ratio 0.25 -o restored.png
    """

    input: Positional[Path]
    """An image, whose measurement is simulated, or an .npz with `y` (M, h, w) and `size` (H, W)."""
    out: Annotated[Path, arg(aliases=["-o"])]
    """The restored image, a .png."""
    ratio: float = 0.25
    """Sampling ratio, a fraction: picks the shipped model."""
    model: str | None = None
    """A shipped model's name or a model file, in place of --ratio."""
    measurement: Path | None = None
    """Also write the simulated measurement, an .npz."""
    device: str = "auto"
    """cpu, cuda, or auto."""

    def run(self) -> None:
        print(restore_file(self.input, self.out, self.ratio, self.model, self.measurement, self.device))


@dataclass
class Info:
    """Stages, parameters by part, FLOPs and the saving against Block-K of a model; without one, the list.

    $ lorun info cs25-unet-lorun9 --size 512 512
    """

    model: Positional[str | None] = None
    """A shipped model's name or a model file."""
    size: tuple[int, int] = (256, 256)
    """Height and width of the image that FLOPs are counted for."""

    def run(self) -> None:
        if self.model is None:
            print("\n".join(list_models()))
            return
        net, config = load_model(self.model)
        print(f"{self.model}: {config.label}, {config.algorithm}, task {config.task} at ratio {config.ratio}")
        print(report(net, self.size))


Command = Demo | Train | Eval | Restore | Info

EXPECTED = (ValueError, TypeError, OSError, ArithmeticError, SafetensorError, MemoryError)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:
        print(__version__)
        return 0
    try:
        command = parse(arguments)
        command.run()
    except EXPECTED as error:
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"lorun: error: {text}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        print("lorun: error: not enough memory; use a smaller image, crop or batch", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lorun: stopped; `lorun train` goes on from its last checkpoint", file=sys.stderr)
        return 130
    return 0


def parse(arguments: list[str]) -> Command:
    """The command that the arguments ask for; --recipe sets the defaults of the flags of `train`."""
    recipe = load_recipe(_recipe_name(arguments)) if arguments[:1] == ["train"] else TrainConfig()
    commands = (
        Annotated[Demo, subcommand("demo")]
        | Annotated[Train, subcommand("train", default=Train(out=tyro.MISSING, config=recipe))]
        | Annotated[Eval, subcommand("eval")]
        | Annotated[Restore, subcommand("restore")]
        | Annotated[Info, subcommand("info")]
    )
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(commands, args=arguments, prog="lorun", description=__doc__)
    except SystemExit as exit:
        if exit.code:
            raise ValueError(one_line(complaint.getvalue())) from None
        raise


def one_line(box: str) -> str:
    """What tyro says in a drawn box of many lines, as one line without the box and the repeated help."""
    said = []
    for line in box.splitlines():
        text = line.strip().strip("│|").strip()
        if text.startswith(("For full helptext", "Argument helptext")):
            break
        if not text.startswith("╭") and set(text) - set("-─╰╯ "):
            said.append(text)
    # tyro names the group of settings by an inner name of its own.
    message = re.sub(r"Error parsing __tyro\S*: ", "", " ".join(said))
    return f"{message}; see `lorun --help`"


def _recipe_name(arguments: list[str]) -> str:
    for position, argument in enumerate(arguments):
        if argument.startswith("--recipe="):
            return argument.removeprefix("--recipe=")
        if argument == "--recipe" and position + 1 < len(arguments):
            return arguments[position + 1]
    return DEFAULT_RECIPE


if __name__ == "__main__":
    sys.exit(main())
