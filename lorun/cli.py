"""The `lorun` command: demo, train, eval, restore, info, compress."""

import contextlib
import dataclasses
import inspect
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from safetensors import SafetensorError
from tyro.conf import Positional, UseAppendAction, arg, subcommand

from lorun import __version__
from lorun.compression import compress_file
from lorun.demo import run_demo
from lorun.errors import ArgumentError
from lorun.evaluate import TABLES, evaluate_files, to_markdown, write_table
from lorun.files import check_target
from lorun.report import report
from lorun.restore import restore_file
from lorun.tasks import DEFAULT_TASK, TASKS
from lorun.tasks.task import EvalOptions, RestoreOptions, Task
from lorun.training import TrainConfig, load_recipe, train
from lorun.zoo import list_models, load_model, task_of

DEFAULT_RECIPE = "cs25-unet"


def tasks_in_words() -> str:
    """What --task takes, for the help."""
    listed = "; ".join(f"{name}: {task.title}" for name, task in TASKS.items())
    return f"{listed}. --help after it lists the options of that task. A model that is named states its own."


TaskName = Annotated[str, arg(metavar="TASK", help=tasks_in_words)]
OptionalTile = Annotated[int | None, arg(metavar="PIXELS")]


@dataclass
class Demo:
    """Restore the photographs that scikit-image ships from 25 % compressive measurements.

    $ lorun demo --out demo
    """

    out: Path = Path("demo")
    """Folder for the pictures, one PNG a photograph."""

    def run(self) -> None:
        print(run_demo(self.out))
        protocol = TASKS[DEFAULT_TASK].protocols[0]
        print(f"\nPSNR and SSIM by protocol {protocol}. Pictures: {self.out}/*.png")


@dataclass
class Train:
    """Train by Algorithm 1: phase 1 the shared network, phase 2 its adapters. Continues where it stopped.

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
    """PSNR and SSIM of models on a folder of images, from simulated measurements."""

    images: Positional[Path]
    """Folder of images, or a cube, or a folder of cubes."""
    options: Annotated[EvalOptions, arg(name="")]
    task: TaskName = DEFAULT_TASK
    models: tuple[str, ...] = ()
    """Shipped models (see `lorun info`), model files or methods of the task that need no training; by default
    the LoRun model."""
    tile: OptionalTile = None
    """Denoise in tiles of this side, at least 84 for a U-Net and 208 for a ResUNet: large scenes
    in bounded memory."""
    out: Annotated[UseAppendAction[tuple[Path, ...]], arg(aliases=["-o"], metavar="PATH")] = ()
    """Write the table to this .md or .csv file as well; may be given twice, for both."""
    device: str = "auto"
    """cpu, cuda, or auto."""

    def run(self) -> None:
        for path in self.out:
            check_target(path, *TABLES)
        scores = evaluate_files(
            TASKS[self.task],
            self.images,
            self.options,
            models=self.models,
            tile=self.tile,
            device=self.device,
        )
        print(to_markdown(scores), end="")
        for path in self.out:
            write_table(scores, path)


@dataclass
class Restore:
    """Restore an image: simulate its measurement, or take a measured one."""

    out: Annotated[Path, arg(aliases=["-o"])]
    """The restored image, a .png; a cube, a .mat or .npz."""
    options: Annotated[RestoreOptions, arg(name="")]
    input: Positional[Annotated[Path | None, arg(metavar="[PATH]")]] = None
    """An image or a cube, to measure and restore; or an .npz that --measurement wrote."""
    task: TaskName = DEFAULT_TASK
    model: Annotated[str | None, arg(metavar="NAME")] = None
    """A shipped model's name, a model file, or a method of the task that needs no training."""
    tile: OptionalTile = None
    """Denoise in tiles of this side, at least 84 for a U-Net and 208 for a ResUNet: large scenes
    in bounded memory."""
    figures: bool = False
    """Write pictures beside the result: methods side by side, details, spectra."""
    compare: tuple[str, ...] = ()
    """Further models or methods, for the pictures."""
    device: str = "auto"
    """cpu, cuda, or auto."""

    def run(self) -> None:
        done = restore_file(
            TASKS[self.task],
            self.input,
            self.out,
            self.options,
            model=self.model,
            compare=self.compare,
            figures=self.figures,
            tile=self.tile,
            device=self.device,
        )
        print(done)


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
        words = TASKS[config.task].describe(config)
        print(f"{self.model}: {config.label}, {config.algorithm}, task {config.task} {words}")
        print(report(net, self.size))


@dataclass
class Compress:
    """Turn a trained network with separate denoisers into one base and adapters, without training.

    $ lorun compress runs/block/cs25-unet-block9.safetensors -o compressed --parameters 1600000

    $ lorun compress weights.pth -o compressed --loader my_network:load --stages stages
    """

    checkpoint: Positional[str]
    """A Block-K model file; with --loader, what the loader takes."""
    out: Annotated[Path, arg(aliases=["-o"])]
    """The folder to write into."""
    gamma: float = 10
    """Rank in percent of a layer's channels."""
    parameters: int | None = None
    """The most parameters of all stages together, spent where they keep most; in place of gamma."""
    energy: float | None = None
    """The share in (0, 1] of what tells the stages apart that is kept; in place of gamma."""
    form: Literal["reshape", "factored"] = "factored"
    base: Literal["mean", "alternating"] = "mean"
    """The mean of the stages, or the base that fits best together with the adapters."""
    align: bool = False
    """Bring the channels of separately initialised U-Nets into one order first."""
    loader: str | None = None
    """For another network: module:function, called with CHECKPOINT; returns the trained nn.Module."""
    stages: str | None = None
    """Where that network's stages are: the name of an nn.ModuleList, or a regular expression."""

    def run(self) -> None:
        options = {name: getattr(self, name) for name in ("gamma", "parameters", "energy", "form", "base")}
        print(
            compress_file(
                self.checkpoint,
                self.out,
                loader=self.loader,
                stages=self.stages,
                align=self.align,
                **options,
            )
        )


Command = Demo | Train | Eval | Restore | Info | Compress

# Arguments that say how to read a file, which only `restore` and `eval` take.
READING = ("key", "layout", "range", "wavelengths")

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
        print(f"lorun: error: {in_one_line(error, arguments[:1])}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        print("lorun: error: not enough memory; use a smaller image, crop or batch", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lorun: stopped; `lorun train` continues from its last checkpoint", file=sys.stderr)
        return 130
    return 0


def in_one_line(error: BaseException, command: Sequence[str] = ()) -> str:
    """An error's message, with the flag of the argument that it is about, if the command has one."""
    text = " ".join(str(error).split()) or type(error).__name__
    argument = getattr(error, "argument", None)
    # Training reads files as they say they are: it has no flags for how to read them.
    unknown = list(command) == ["train"] and argument in READING
    return text if argument is None or unknown else f"{text} (--{argument.replace('_', '-')})"


def parse(arguments: list[str]) -> Command:
    """The command that the arguments ask for.

    Some arguments decide which others there are, and are read before them: --recipe sets the defaults of the
    flags of `train`; --task, or else the first model that is named, chooses the options of one task.
    """
    command = arguments[0] if arguments else ""
    recipe = (
        load_recipe(_value(arguments, "--recipe") or DEFAULT_RECIPE) if command == "train" else TrainConfig()
    )
    task = TASKS[task_name(arguments) if command in ("eval", "restore") else DEFAULT_TASK]
    evaluate = Eval(images=tyro.MISSING, options=task.eval_options(), task=task.name)
    restore = Restore(out=tyro.MISSING, options=task.restore_options(), task=task.name)
    commands = (
        Annotated[Demo, subcommand("demo")]
        | Annotated[Train, subcommand("train", default=Train(out=tyro.MISSING, config=recipe))]
        | Annotated[
            Eval, subcommand("eval", default=evaluate, description=described(Eval, task.eval_examples))
        ]
        | Annotated[
            Restore,
            subcommand("restore", default=restore, description=described(Restore, task.restore_examples)),
        ]
        | Annotated[Info, subcommand("info")]
        | Annotated[Compress, subcommand("compress")]
    )
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(commands, args=arguments, prog="lorun", description=__doc__)
    except SystemExit as exit:
        if exit.code:
            hint = foreign_options(arguments, task) if command in ("eval", "restore") else ""
            raise ValueError(one_line(complaint.getvalue()) + hint) from None
        raise


def task_name(arguments: list[str]) -> str:
    """The task that the arguments are for."""
    given = _value(arguments, "--task")
    if given is not None:
        if given not in TASKS:
            raise ArgumentError("task", f"task: expected one of {', '.join(TASKS)}, got {given!r}")
        return given
    model = _value(arguments, "--model") or _value(arguments, "--models")
    asks_for_help = not {"-h", "--help"}.isdisjoint(arguments)
    return DEFAULT_TASK if model is None or asks_for_help else task_of(model)


def described(command: type, examples: Sequence[str]) -> str:
    """The help of a command, with the examples of a task."""
    return "\n\n".join(
        [inspect.cleandoc(command.__doc__ or ""), *(f"$ lorun {example}" for example in examples)]
    )


def foreign_options(arguments: list[str], task: Task) -> str:
    """Says of which other task an argument is an option, if it is one."""
    own = _flags(task.restore_options()) | _flags(task.eval_options())
    for other in TASKS.values():
        theirs = _flags(other.restore_options()) | _flags(other.eval_options())
        for argument in arguments:
            if argument.split("=")[0] in theirs - own:
                return f"; {argument} is an option of task {other.name}, this is for task {task.name}"
    return ""


def _flags(options: Any) -> set[str]:
    flags: set[str] = set()
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        name = field.name.replace("_", "-")
        flags |= _flags(value) if dataclasses.is_dataclass(value) else {f"--{name}"}
    return flags


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


def _value(arguments: list[str], flag: str) -> str | None:
    """The value, or the first of the values, that follows a flag; the last time counts, as for the parser."""
    found = None
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            found = argument.removeprefix(f"{flag}=")
        elif argument == flag and position + 1 < len(arguments):
            found = arguments[position + 1]
    return found


if __name__ == "__main__":
    sys.exit(main())
