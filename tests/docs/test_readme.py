"""README.md can be read in a minute, and its two commands exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_it_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_its_make_commands_are_targets_and_ci_runs_the_tests():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test"} <= set(re.findall(r"^    make (\w+)", README, re.MULTILINE)) <= set(targets)
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("make test")


def test_it_has_one_place_for_the_generated_section():
    assert README.count("<!-- written by python -m benchmarks.report -->\n") == 1
    assert README.count("<!-- end of what it has written -->\n") == 1


def test_it_says_what_no_gpu_has_run():
    assert "no GPU has run them yet" in README
