"""The table and the picture of the study of compression."""

import json

from benchmarks.studies.compression_report import draw, read, rows_of, table

RESULTS = {
    "common": {
        "Block-9": {"parameters": 4000, "psnr": 34.0, "psnr_after_tuning": 34.1},
        "1/4, allocated": {"parameters": 1000, "psnr": 33.5, "psnr_after_tuning": 33.9},
        "gamma 10": {"parameters": 1200, "psnr": 33.25, "psnr_after_tuning": 33.75},
    }
}


def test_the_table_has_a_row_for_each_network():
    rows = table(RESULTS["common"], "Block-9").splitlines()
    assert len(rows) == 5
    assert rows[3] == "| 1/4, allocated | 1,000 | 25.0% | 33.50 | 33.90 |"


def test_measurements_are_read_and_drawn(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    assert read(tmp_path) == RESULTS
    published = {"share of differences": 0.9, "published": {"parameters": 9, "psnr": 30.0}}
    (tmp_path / "published.json").write_text(json.dumps(published))
    results = read(tmp_path)
    assert list(rows_of(results, "published")) == ["published"]
    draw(results, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
