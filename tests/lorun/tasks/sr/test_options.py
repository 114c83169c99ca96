import pytest

from lorun.cli import main, parse
from lorun.tasks.sr.options import SREval, SRRestore


def test_restore_takes_them_beside_its_own():
    arguments = "restore a.png -o b.png --task sr --scale 4 --kernel k.mat --noise 0.01 --simulate"
    assert parse(arguments.split()).options == SRRestore(4, "k.mat", 0.01, True)
    assert parse(["restore", "a.png", "-o", "b.png", "--task", "sr"]).options == SRRestore(
        2, "bicubic", 0.0, False
    )


def test_eval_takes_several_scales_and_kernels():
    arguments = "eval photos --task sr --scales 2 3 4 --kernels 12 bicubic --protocol sr-y --assumed none"
    expected = SREval("sr-y", (2, 3, 4), ("12", "bicubic"), assumed="none")
    assert parse(arguments.split()).options == expected


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("restore a.png -o b.png --task sr --scale 2.5", "2.5"),
        ("restore a.png -o b.png --kernel k.mat", "--kernel is an option of task sr, this is for task cs"),
        ("eval photos --task sr --protocol cs", "cs"),
    ],
)
def test_what_is_refused(capsys, arguments, words):
    assert main(arguments.split()) == 2
    assert words in capsys.readouterr().err
