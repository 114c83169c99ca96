from PIL import Image

from lorun import demo


def test_the_demo_writes_a_picture_and_a_row_for_each_photograph(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "PHOTOGRAPHS", ("coins",))
    table = demo.run_demo(tmp_path / "out")
    header, row, average = table.splitlines()
    assert header.split()[:3] == ["image", "PSNR", "(dB)"]
    assert row.split()[0] == "coins" and average.split()[0] == "average"
    psnr, start, shared = (float(row.split()[column]) for column in (1, 4, 5))
    assert psnr > shared > start > 27
    (picture,) = (tmp_path / "out").iterdir()
    assert Image.open(picture).size[0] > 1000
