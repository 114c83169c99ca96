"""The `lorun` command: demo, train, eval, restore, info."""

import contextlib
import io
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from safetensors import SafetensorError
from tyro.conf import Positional, UseAppendAction, arg, subcommand

from lorun import __version__
from lorun.data import list_photos, read_grey
from lorun.demo import run_demo
from lorun.device import choose_device
from lorun.evaluate import TABLES, Score, evaluate, to_markdown, write_table
from lorun.evaluate_spectral import SpectralEval, evaluate_cubes
from lorun.files import check_target
from lorun.report import report
from lorun.restore import restore_file
from lorun.restore_spectral import DEFAULT_MODEL, SpectralOptions, restore_cube
from lorun.restorer import Restorer
from lorun.spectral_files import OptionalPath, OptionalText, settings_made
from lorun.training import TrainConfig, load_recipe, train
from lorun.zoo import list_models, load_model

DEFAULT_RECIPE = "cs25-unet"
DEFAULT_CS_MODEL = "cs25-unet-lorun9"
DEFAULT_RATIO = 0.25


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
    """PSNR and SSIM of models on a folder of images or spectral cubes, from simulated measurements.

    $ lorun eval photos --models cs25-unet-shared9 cs25-unet-lorun9 -o table.md

    $ lorun eval cubes --task cassi --mask mask.mat --models cassi-unet-lorun9 gap-tv -o table.md -o table.csv
    """

    images: Positional[Path]
    """Folder of images, whose colours become Y; with --task cassi a cube, or a folder of cubes."""
    task: Literal["cs", "cassi"] = "cs"
    """cs: compressive sensing of photographs; cassi: snapshots of spectral cubes."""
    models: tuple[str, ...] = ()
    """Shipped models (see `lorun info`), model files or, for CASSI, gap-tv and smooth-start;
    by default the LoRun model."""
    out: Annotated[UseAppendAction[tuple[Path, ...]], arg(aliases=["-o"], metavar="PATH")] = ()
    """Write the table to this .md or .csv file as well; may be given twice, for both."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    spectral: Annotated[SpectralEval, arg(name="")] = field(default_factory=SpectralEval)

    def run(self) -> None:
        for path in self.out:
            check_target(path, *TABLES)
        scores = self._cassi() if self.task == "cassi" else self._cs()
        print(to_markdown(scores), end="")
        for path in self.out:
            write_table(scores, path)

    def _cs(self) -> list[Score]:
        refuse_spectral(self.spectral)
        device = choose_device(self.device)
        names = self.models or (DEFAULT_CS_MODEL,)
        restorers = {name: Restorer(load_model(name, "cs")[0].to(device)) for name in names}
        images = {path.name: read_grey(path) for path in list_photos(self.images)}
        return evaluate(images, restorers)

    def _cassi(self) -> list[Score]:
        return evaluate_cubes(self.images, self.spectral, self.models or (DEFAULT_MODEL,), self.device)


@dataclass
class Restore:
    """Restore a photograph or a spectral cube: simulate its measurement, or take a measured one.

    $ lorun restore photo.png --ratio 0.25 -o restored.png --measurement photo.npz

    $ lorun restore photo.npz --ratio 0.25 -o restored.png

    $ lorun restore --task cassi --meas scene1.mat --mask mask.mat -o out.mat --figures

    $ lorun restore cube.mat --task cassi --mask mask.mat -o out.mat --figures --compare gap-tv
    """

    out: Annotated[Path, arg(aliases=["-o"])]
    """The restored image, a .png; with --task cassi the cube, a .mat or .npz."""
    input: Positional[Annotated[Path | None, arg(metavar="[PATH]")]] = None
    """An image, or with --task cassi a cube, to measure and restore; or an .npz that --measurement wrote."""
    task: Literal["cs", "cassi"] = "cs"
    """cs: compressive sensing of photographs; cassi: snapshots of spectral cubes."""
    ratio: float = DEFAULT_RATIO
    """Sampling ratio of compressive sensing, a fraction: picks the shipped model."""
    model: OptionalText = None
    """A shipped model's name or a model file; with --task cassi also gap-tv or smooth-start."""
    measurement: OptionalPath = None
    """Also write the simulated measurement of compressive sensing: `y` (M, h, w) and `size` in an .npz."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    spectral: Annotated[SpectralOptions, arg(name="")] = field(default_factory=SpectralOptions)

    def run(self) -> None:
        print(self._cassi() if self.task == "cassi" else self._cs())

    def _cs(self) -> str:
        refuse_spectral(self.spectral)
        if self.input is None:
            raise ValueError("input: name an image or an .npz measurement to restore")
        return restore_file(self.input, self.out, self.ratio, self.model, self.measurement, self.device)

    def _cassi(self) -> str:
        if self.ratio != DEFAULT_RATIO or self.measurement is not None:
            raise ValueError("ratio, measurement: are for compressive sensing; leave them out")
        return restore_cube(self.input, self.out, self.spectral, self.model, self.device)


@dataclass
class Info:
    """Stages, parameters by part, FLOPs and the saving against Block-K of a model; without one, the list.

    $ lorun info cs25-unet-lorun9 --size 512 512
    """

    model: Positional[Annotated[str | None, arg(metavar="[NAME]")]] = None
    """A shipped model's name or a model file."""
    size: tuple[int, int] = (256, 256)
    """Height and width of the image that FLOPs are counted for."""

    def run(self) -> None:
        if self.model is None:
            print("\n".join(list_models()))
            return
        net, config = load_model(self.model)
        print(f"{self.model}: {config.label}, {config.algorithm}, task {config.task}{config.camera}")
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


def refuse_spectral(settings: SpectralOptions | SpectralEval) -> None:
    """Raise where compressive sensing would leave a setting unused."""
    if made := settings_made(settings):
        raise ValueError(f"{', '.join(made)}: for spectral cubes only; add --task cassi, or leave them out")


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
