"""The demo: photographs that ship with scikit-image, measured at 25 % and restored."""

from pathlib import Path

import skimage.data
from tqdm import tqdm

from lorun.data import to_grey
from lorun.evaluate import Score, averages, restore_and_score
from lorun.methods import NetworkMethod
from lorun.tasks import TASKS
from lorun.tasks.task import Scene
from lorun.zoo import load_model

PHOTOGRAPHS = ("camera", "astronaut", "coffee", "chelsea", "coins")
SHARED, LORUN = "cs25-unet-shared9", "cs25-unet-lorun9"


def run_demo(out: Path) -> str:
    """Restore the photographs, write one PNG each into `out`, and return the table.

    A row holds LoRun-9's PSNR (protocol cs), SSIM and seconds, and beside them the PSNR of its start
    Phi^T y and of Shared-9.
    """
    (shared, _), (lorun, config) = load_model(SHARED), load_model(LORUN)
    task, methods = TASKS[config.task], (NetworkMethod(shared), NetworkMethod(lorun))
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in tqdm(PHOTOGRAPHS, unit="image", desc="restoring", dynamic_ncols=True):
        truth = to_grey(getattr(skimage.data, name)())
        scene = Scene(name, truth.shape, truth=truth[None])
        base, best = (
            restore_and_score(task, scene, model, method, task.protocols[0])
            for model, method in zip((SHARED, LORUN), methods, strict=True)
        )
        task.draw(out / f"{name}.png", scene, best.y, {config.label: best.image}, best.start)
        assert best.start_score is not None
        rows.append((best.start_score, base.score, best.score))
    return _table(rows)


def _table(rows: list[tuple[Score, Score, Score]]) -> str:
    columns = [averages(list(column)) for column in zip(*rows, strict=True)]
    lines = [f"{'image':<12}{'PSNR (dB)':>10}{'SSIM':>8}{'seconds':>9}   {'Phi^T y':>8}{'Shared-9':>10}"]
    for start, base, score in [*rows, tuple(column[0] for column in columns)]:
        lines.append(
            f"{score.image:<12}{score.psnr:>10.2f}{score.ssim:>8.4f}{score.seconds:>9.2f}   "
            f"{start.psnr:>8.2f}{base.psnr:>10.2f}"
        )
    return "\n".join(lines)
