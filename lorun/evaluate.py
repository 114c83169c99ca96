"""Tables of PSNR, SSIM and, for spectra, SAM: every scene, every method, from simulated measurements."""

import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lorun.files import check_target, write_in_one_step
from lorun.methods import Method
from lorun.tasks.task import EvalOptions, Quality, Scene, Task
from lorun.zoo import load_methods, shipped_for


@dataclass(frozen=True)
class Score:
    """One image restored by one method."""

    image: str
    method: str
    psnr: float
    ssim: float
    seconds: float
    protocol: str
    """By which psnr and ssim were computed."""
    sam: float | None = None
    """Mean spectral angle in degrees, if images have spectra."""
    cell: tuple[str, str] | None = None
    """Row and column of a table of means, if the scene has one."""


@dataclass(frozen=True)
class Restored:
    """What one method made of one scene, (C, H, W) in [0, 1], and what it started from, if tables show it."""

    y: Tensor
    image: np.ndarray
    score: Score
    start: np.ndarray | None = None
    start_score: Score | None = None


def evaluate_files(
    task: Task,
    source: Path,
    options: EvalOptions | None = None,
    *,
    models: Sequence[str] = (),
    tile: int | None = None,
    device: str = "auto",
) -> list[Score]:
    """Measure and restore every scene of a file or folder with every method.

    Args:
        options: the task's own; None takes its defaults.
        models: as `restore_file` takes one; none takes the task's default.
        tile: denoise in tiles of this side, in pixels.
        device: "cpu", a GPU such as "cuda", or "auto".

    Raises:
        ValueError, TypeError, OSError: input that cannot be restored; nothing is written then.
    """
    options = task.eval_options() if options is None else options
    task.eval_inputs(source, options)
    names = list(dict.fromkeys(models)) or [task.default_model(options, shipped_for(task.name))]
    methods, _ = load_methods(names, task, tile, device)
    scenes = task.scenes(source, options, methods[names[0]].physics)
    keep = task.keeps_table_images(options)
    scores, images = evaluate(task, scenes, methods, options.protocol, keep)
    if keep:
        task.save_table_images(images, scenes, options)
    return scores


def evaluate(
    task: Task, scenes: Sequence[Scene], methods: Mapping[str, Method], protocol: str, keep: bool = False
) -> tuple[list[Score], list[np.ndarray]]:
    """Scores of every scene and method, each behind that of its start.

    And, if asked to `keep` them, the images of the first method.
    """
    scores, images = [], []
    with tqdm(total=len(scenes) * len(methods), unit="image", dynamic_ncols=True) as bar:
        for scene in scenes:
            for number, (name, method) in enumerate(methods.items()):
                done = restore_and_score(task, scene, name, method, protocol)
                scores += [done.score] if done.start_score is None else [done.start_score, done.score]
                if keep and number == 0:
                    images.append(done.image)
                bar.set_postfix_str(f"{scene.name} {done.score.psnr:.2f} dB")
                bar.update()
    return scores, images


@torch.no_grad()
def restore_and_score(task: Task, scene: Scene, name: str, method: Method, protocol: str) -> Restored:
    """Measure a scene whose truth is known, and restore it by one method."""
    physics = scene.physics or method.physics
    y = task.measurement(scene, physics)
    started = time.perf_counter()
    image = method.restore(y, scene.physics, scene.size)
    seconds = time.perf_counter() - started
    score = _score(scene, name, task.quality(image, scene, protocol), seconds, protocol)
    start = task.start(scene, y, physics)
    if start is None:
        return Restored(y, image, score)
    label, quality = f"{name} {task.start_label}", task.quality(start, scene, protocol)
    return Restored(y, image, score, start, _score(scene, label, quality, 0.0, protocol))


def averages(scores: list[Score]) -> list[Score]:
    """The mean of every method over its images."""
    methods = list(dict.fromkeys(s.method for s in scores))
    return [_average([s for s in scores if s.method == method]) for method in methods]


def to_markdown(scores: list[Score]) -> str:
    """A Markdown table of scores and averages, PSNR in dB, with the protocol in its last line."""
    if all(score.cell is not None for score in scores):
        return cells_to_markdown(scores)
    spectral = any(score.sam is not None for score in scores)
    lines = [
        f"| image | method | PSNR (dB) | SSIM |{' SAM (degrees) |' if spectral else ''} seconds |",
        f"|---|---|---:|---:|{'---:|' if spectral else ''}---:|",
    ]
    for s in [*scores, *averages(scores)]:
        seconds = f"{s.seconds:.2f}" if s.seconds else ""
        angle = "" if not spectral else " |" if s.sam is None else f" {s.sam:.2f} |"
        lines.append(f"| {s.image} | {s.method} | {s.psnr:.2f} | {s.ssim:.4f} |{angle} {seconds} |")
    return "\n".join(lines) + f"\n\nPSNR and SSIM by protocol {scores[0].protocol}.\n"


def cells_to_markdown(scores: list[Score]) -> str:
    """A Markdown table of mean PSNR in dB: in each row of cells a line for every method, and its mean."""
    cells = [score.cell for score in scores if score.cell is not None]
    rows, columns = (list(dict.fromkeys(cell[axis] for cell in cells)) for axis in (0, 1))
    methods = list(dict.fromkeys(score.method for score in scores))
    lines = [f"| | method | {' | '.join(columns)} | average |", f"|---|---|{'---:|' * (len(columns) + 1)}"]
    for row in rows:
        for method in methods:
            own = [
                score for score in scores if score.method == method and score.cell and score.cell[0] == row
            ]
            means = [
                _mean_psnr([score for score in own if score.cell == (row, column)]) for column in columns
            ]
            lines.append(f"| {row} | {method} | {' | '.join([*means, _mean_psnr(own)])} |")
    count = len(dict.fromkeys(score.image for score in scores))
    images = f"{count} image{'s' if count > 1 else ''}"
    return "\n".join(lines) + f"\n\nPSNR in dB by protocol {scores[0].protocol}, means over {images}.\n"


def _mean_psnr(scores: list[Score]) -> str:
    return f"{np.mean([score.psnr for score in scores]):.2f}" if scores else ""


def to_csv(scores: list[Score]) -> str:
    """The same table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["image", "method", "psnr_db", "ssim", "seconds", "protocol", "sam_degrees", "row", "column"]
    )
    for s in [*scores, *averages(scores)]:
        angle = "" if s.sam is None else f"{s.sam:.4f}"
        quality = (f"{s.psnr:.4f}", f"{s.ssim:.6f}", f"{s.seconds:.4f}")
        writer.writerow([s.image, s.method, *quality, s.protocol, angle, *(s.cell or ("", ""))])
    return text.getvalue()


TABLES = {".md": to_markdown, ".csv": to_csv}


def write_table(scores: list[Score], path: Path) -> None:
    """Write a .md or .csv file."""
    check_target(path, *TABLES)
    text = TABLES[path.suffix.lower()](scores)
    write_in_one_step(path, lambda part: part.write_text(text, encoding="utf-8"))


def _score(scene: Scene, method: str, quality: Quality, seconds: float, protocol: str) -> Score:
    return Score(scene.name, method, quality.psnr, quality.ssim, seconds, protocol, quality.sam, scene.cell)


def _average(scores: list[Score]) -> Score:
    psnr, ssim, seconds = (
        float(np.mean([getattr(s, key) for s in scores])) for key in ("psnr", "ssim", "seconds")
    )
    angles = [s.sam for s in scores if s.sam is not None]
    angle = float(np.mean(angles)) if angles else None
    return Score("average", scores[0].method, psnr, ssim, seconds, scores[0].protocol, angle)
