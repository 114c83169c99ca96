"""The demo: photographs that ship with scikit-image, measured at 25 % and restored."""

from pathlib import Path

import skimage.data
from tqdm import tqdm

from lorun.data import to_grey
from lorun.evaluate import Score, averages, restore_and_score
from lorun.figures import save_comparison
from lorun.restorer import Restorer
from lorun.zoo import create_model

PHOTOGRAPHS = ("camera", "astronaut", "coffee", "chelsea", "coins")
SHARED, LORUN = "cs25-unet-shared9", "cs25-unet-lorun9"


def run_demo(out: Path) -> str:
    """Restore the photographs, write one PNG each into `out`, and return the table.

    A row holds LoRun-9's PSNR (protocol "cs"), SSIM and seconds, and beside them the PSNR of its start
    Phi^T y and of Shared-9.
    """
    shared, lorun = Restorer(create_model(SHARED)), Restorer(create_model(LORUN))
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in tqdm(PHOTOGRAPHS, unit="image", desc="restoring", dynamic_ncols=True):
        truth = to_grey(getattr(skimage.data, name)())
        _, _, base = restore_and_score(name, SHARED, shared, truth)
        images, start, score = restore_and_score(name, LORUN, lorun, truth)
        titles = (f"start Phi^T y, {start.psnr:.2f} dB", f"LoRun-9, {score.psnr:.2f} dB", f"truth: {name}")
        save_comparison(out / f"{name}.png", *images, truth, titles)
        rows.append((start, base, score))
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
