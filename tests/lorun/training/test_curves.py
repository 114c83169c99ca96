import json

from PIL import Image

from lorun.training.curves import save_curves


def test_curves_join_the_phases(tmp_path):
    for phase in ("a", "b"):
        entries = [{"step": n, "loss": 1 / n} | ({"psnr": 30.0} if n % 5 == 0 else {}) for n in range(1, 11)]
        (tmp_path / f"{phase}.jsonl").write_text("\n".join(map(json.dumps, entries)))
    save_curves({"one": tmp_path / "a.jsonl", "two": tmp_path / "b.jsonl"}, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (800, 320)
