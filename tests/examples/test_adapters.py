"""The examples of docs/adapters.md run, and what they print is so."""

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def printed(monkeypatch, capsys):
    """printed(name): what an example prints, run as a program."""

    def run(name):
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.setattr(sys, "argv", [name])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_a_network_of_another_style_is_converted_trained_saved_and_loaded(printed):
    text = printed("convert_your_network.py")
    first, last = map(float, re.search(r"loss: (\S+) in the first ten steps, (\S+) in", text).groups())
    assert last < 0.8 * first
    assert "loaded into a fresh network, equal: True" in text
    assert float(re.search(r"differs by (\S+)", text).group(1)) < 1e-5
    source = (EXAMPLES / "convert_your_network.py").read_text()
    added = source.split("# --- all that LoRun adds")[1].split("# -----")[0]
    assert len([line for line in added.splitlines() if line.strip()]) <= 20


def test_each_set_of_adapters_wins_on_its_own_task(printed):
    rows = re.findall(r"^(few|many|none) +(\S+) dB +(\S+) dB", printed("switch_adapters.py"), re.MULTILINE)
    values = {name: (float(few), float(many)) for name, few, many in rows}
    assert values["few"][0] > values["none"][0] and values["few"][0] > values["many"][0]
    assert values["many"][1] > values["none"][1] and values["many"][1] > values["few"][1]


def test_a_third_of_the_parameters_keeps_the_quality(printed):
    rows = re.findall(r"^([\d,]+) parameters: (\S+) dB", printed("compress_network.py"), re.MULTILINE)
    counts = [int(count.replace(",", "")) for count, _ in rows]
    values = [float(value) for _, value in rows]
    assert counts[1] == counts[2] <= counts[0] / 3
    assert values[1] > values[0] - 0.5 and values[2] > values[0] - 0.3


def test_a_merged_network_is_the_same_in_onnx_runtime(printed):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'lorun[export]'")
    text = printed("export_onnx.py")
    assert float(re.search(r"differs from torch by at most (\S+)", text).group(1)) < 1e-4
