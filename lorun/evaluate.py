"""Tables of PSNR and SSIM: every image of a folder, every model, from simulated measurements."""

import csv
import io
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lorun import metrics
from lorun.files import check_target, write_in_one_step
from lorun.restorer import Restorer

PROTOCOL = "cs"


@dataclass(frozen=True)
class Score:
    """One image restored by one method."""

    image: str
    method: str
    psnr: float
    ssim: float
    seconds: float
    protocol: str = PROTOCOL
    """By which psnr and ssim were computed."""
    sam: float | None = None
    """Mean spectral angle in degrees, where images have spectra."""


def restore_and_score(
    image: str, method: str, restorer: Restorer, truth: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], Score, Score]:
    """Measure and restore one image; returns (start, restored) and the scores of both."""
    measurement = restorer.measure(truth)
    started = time.perf_counter()
    restored = restorer.restore(measurement)
    seconds = time.perf_counter() - started
    start = restorer.start(measurement)
    scores = (
        _score(image, f"{method} start Phi^T y", start, truth, 0.0),
        _score(image, method, restored, truth, seconds),
    )
    return (start, restored), *scores


def evaluate(images: dict[str, np.ndarray], restorers: dict[str, Restorer]) -> list[Score]:
    """Measure and restore every image with every model; before each, a row for its start Phi^T y."""
    scores = []
    with tqdm(total=len(images) * len(restorers), unit="image", dynamic_ncols=True) as bar:
        for name, truth in images.items():
            for label, restorer in restorers.items():
                _, *pair = restore_and_score(name, label, restorer, truth)
                scores += pair
                bar.set_postfix_str(f"{name} {pair[1].psnr:.2f} dB")
                bar.update()
    return scores


def averages(scores: list[Score]) -> list[Score]:
    """The mean of every method over its images."""
    methods = list(dict.fromkeys(s.method for s in scores))
    return [_average([s for s in scores if s.method == method]) for method in methods]


def to_markdown(scores: list[Score]) -> str:
    """A Markdown table of scores and averages, PSNR in dB, with the protocol in its last line."""
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


def to_csv(scores: list[Score]) -> str:
    """The same table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "method", "psnr_db", "ssim", "seconds", "protocol", "sam_degrees"])
    for s in [*scores, *averages(scores)]:
        angle = "" if s.sam is None else f"{s.sam:.4f}"
        quality = (f"{s.psnr:.4f}", f"{s.ssim:.6f}", f"{s.seconds:.4f}")
        writer.writerow([s.image, s.method, *quality, s.protocol, angle])
    return text.getvalue()


TABLES = {".md": to_markdown, ".csv": to_csv}


def write_table(scores: list[Score], path: Path) -> None:
    """Write a .md or .csv file."""
    check_target(path, *TABLES)
    text = TABLES[path.suffix.lower()](scores)
    write_in_one_step(path, lambda part: part.write_text(text, encoding="utf-8"))


def _score(image: str, method: str, restored: np.ndarray, truth: np.ndarray, seconds: float) -> Score:
    psnr = metrics.psnr(restored, truth, PROTOCOL)
    return Score(image, method, psnr, metrics.ssim(restored, truth, PROTOCOL), seconds)


def _average(scores: list[Score]) -> Score:
    psnr, ssim, seconds = (
        float(np.mean([getattr(s, key) for s in scores])) for key in ("psnr", "ssim", "seconds")
    )
    angles = [s.sam for s in scores if s.sam is not None]
    angle = float(np.mean(angles)) if angles else None
    return Score("average", scores[0].method, psnr, ssim, seconds, scores[0].protocol, angle)
