import csv
import io

import numpy as np
import pytest

from lorun.evaluate import Score, averages, evaluate_files, to_csv, to_markdown, write_table
from lorun.tasks import TASKS

SCORES = [
    Score("a.png", "one", 30.0, 0.9, 0.5, "cs"),
    Score("b.png", "one", 34.0, 0.94, 0.7, "cs"),
    Score("a.png", "two", 20.0, 0.5, 0.0, "cs"),
]


def test_averages_are_over_the_images_of_each_method():
    one, two = averages(SCORES)
    assert (one.image, one.method, one.protocol, one.sam) == ("average", "one", "cs", None)
    assert (one.psnr, one.ssim, one.seconds) == pytest.approx((32, 0.92, 0.6))
    assert two.psnr == 20


def test_tables_hold_every_score_and_the_averages(tmp_path):
    rows = list(csv.DictReader(io.StringIO(to_csv(SCORES))))
    assert [float(row["psnr_db"]) for row in rows] == [30, 34, 20, 32, 20]
    text = to_markdown(SCORES)
    assert "| a.png | two | 20.00 | 0.5000 |  |" in text and "SAM" not in text
    assert text.endswith("PSNR and SSIM by protocol cs.\n")
    for name in ("t.md", "t.csv"):
        write_table(SCORES, tmp_path / name)
    assert (tmp_path / "t.md").read_text() == text
    with pytest.raises(ValueError, match="ends in .md or .csv"):
        write_table(SCORES, tmp_path / "t.txt")


def test_a_scene_without_spectra_has_no_angle():
    scores = [
        Score("black", "a", 40.0, 1.0, 0.1, "cassi-mst", None),
        Score("lit", "a", 30.0, 0.9, 0.1, "cassi-mst", 7.0),
    ]
    assert "| black | a | 40.00 | 1.0000 | | 0.10 |" in to_markdown(scores)
    assert "| average | a | 35.00 | 0.9500 | 7.00 | 0.10 |" in to_markdown(scores)


def test_scores_with_cells_are_shown_as_their_means():
    scores = [
        Score("a", "one", 30.0, 0.9, 0.1, "sr-rgb", None, ("x2", "k1")),
        Score("b", "one", 32.0, 0.9, 0.1, "sr-rgb", None, ("x2", "k1")),
        Score("a", "two", 20.0, 0.9, 0.1, "sr-rgb", None, ("x2", "k1")),
        Score("a", "one", 25.0, 0.9, 0.1, "sr-rgb", None, ("x3", "k2")),
    ]
    assert to_markdown(scores).splitlines() == [
        "| | method | k1 | k2 | average |",
        "|---|---|---:|---:|---:|",
        "| x2 | one | 31.00 |  | 31.00 |",
        "| x2 | two | 20.00 |  | 20.00 |",
        "| x3 | one |  | 25.00 | 25.00 |",
        "| x3 | two |  |  |  |",
        "",
        "PSNR in dB by protocol sr-rgb, means over 2 images.",
    ]
    assert to_markdown(scores[2:3]).endswith("means over 1 image.\n")
    assert "x3,k2" in to_csv(scores)


def test_options_are_the_tasks_defaults_if_none_are_given(tmp_path):
    np.save(tmp_path / "not_an_image.npy", np.zeros(3))
    with pytest.raises(ValueError, match="holds no image"):
        evaluate_files(TASKS["cs"], tmp_path)
